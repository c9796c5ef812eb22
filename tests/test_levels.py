"""Inner levels as models of their own."""

from __future__ import annotations

import dataclasses

import pytest

from mdm_apple.config.model import ConfigError
from mdm_apple.config.presets import PRESETS, preset
from mdm_apple.diffusion.schedule import build_schedule
from mdm_apple.sampling.inner_model import inner_model, level_of_side

EMOJI = preset("emoji")


@pytest.mark.parametrize("side", [64, 32, 16])
def test_an_inner_model_is_that_level_of_the_whole(side: int) -> None:
    inner = inner_model(EMOJI, side)
    depth = level_of_side(EMOJI, side)
    assert inner.sides == EMOJI.sides[depth:]
    assert inner.model == EMOJI.model.levels[depth]
    assert inner.text == EMOJI.text


@pytest.mark.parametrize("name", [n for n, c in PRESETS.items() if len(c.sides) > 1])
def test_an_inner_model_sees_the_noise_that_its_levels_see_within_the_whole(name: str) -> None:
    config = PRESETS[name]
    whole = build_schedule(config.diffusion.schedule, config.model.scales)
    inner = inner_model(config, config.sides[1])
    alone = build_schedule(inner.diffusion.schedule, inner.model.scales)
    assert all((a == b).all() for a, b in zip(alone.tables, whole.tables[1:], strict=True))


def test_an_inner_model_keeps_the_shares_of_a_batch_and_the_weights_of_its_levels() -> None:
    weighted = dataclasses.replace(EMOJI.diffusion, level_weights=(1.0, 2.0, 3.0))
    config = dataclasses.replace(EMOJI, diffusion=weighted)
    whole = config.diffusion.mixed_fractions
    assert whole is not None
    middle, core = inner_model(config, 32).diffusion, inner_model(config, 16).diffusion
    assert middle.mixed_fractions == whole[1:]
    assert core.mixed_fractions is None
    assert (middle.level_weights, core.level_weights) == ((2.0, 3.0), (3.0,))


def test_a_side_that_no_level_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"16.*got 48"):
        inner_model(EMOJI, 48)
