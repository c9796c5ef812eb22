"""From prompts and seeds to pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from backends import Backend
from small import around, inner_model, random_state, save_random_model

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.types import Images
from mdm_apple.errors import ConfigError
from mdm_apple.sampling.generate import Preview, Prompt, clean_estimate, finish, generate
from mdm_apple.sampling.walk import SamplerConfig

PROMPTS = [Prompt("red heart", 1), Prompt("cat face", 1), Prompt("red heart", 2)]
SAMPLERS = [
    SamplerConfig("ddpm", 4),
    SamplerConfig("ddim", 4, eta=0.5, guidance_scale=3.0),
    SamplerConfig("dpmpp", 4, spacing="log_snr"),
]
names = [sampler.kind for sampler in SAMPLERS]


def close(got: list[Images], wanted: list[Images], atol: float = 1e-4) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def pick(levels: list[Images], row: int) -> list[Images]:
    return [level[row : row + 1] for level in levels]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=names)
def test_a_picture_does_not_depend_on_the_batch_around_it(
    backend: Backend, model_folder: Path, sampler: SamplerConfig
) -> None:
    runtime = backend.runtime(model_folder)
    together = finish(generate(runtime, PROMPTS, sampler))
    assert [level.shape for level in together] == [(3, 3, 16, 16), (3, 3, 8, 8)]
    for row, prompt in enumerate(PROMPTS):
        close(pick(together, row), finish(generate(runtime, [prompt], sampler)))


def test_prompt_seed_and_negative_each_change_the_picture(
    backend: Backend, model_folder: Path
) -> None:
    runtime, sampler = backend.runtime(model_folder), SamplerConfig(num_steps=4, guidance_scale=3.0)
    prompts = [*PROMPTS, Prompt("red heart", 1, negative="yellow banana")]
    outer = finish(generate(runtime, prompts, sampler))[0]
    for other in (1, 2, 3):
        assert np.abs(outer[0] - outer[other]).max() > 1e-2


def test_the_same_request_gives_the_same_picture_bit_for_bit(
    backend: Backend, model_folder: Path
) -> None:
    sampler = SamplerConfig("ddpm", 4)
    one, other = (
        finish(generate(backend.runtime(model_folder), PROMPTS[:1], sampler)) for _ in range(2)
    )
    close(one, other, atol=0)


def test_guidance_one_ignores_the_negative_prompt(backend: Backend, model_folder: Path) -> None:
    runtime, sampler = backend.runtime(model_folder), SamplerConfig(num_steps=3)
    unwanted = dataclasses.replace(PROMPTS[0], negative="yellow banana")
    close(
        finish(generate(runtime, PROMPTS[:1], sampler)),
        finish(generate(runtime, [unwanted], sampler)),
        atol=0,
    )


def test_guidance_zero_is_the_negative_prompt_alone(backend: Backend, model_folder: Path) -> None:
    runtime = backend.runtime(model_folder)
    unguided = finish(generate(runtime, [Prompt("yellow banana", 1)], SamplerConfig(num_steps=3)))
    zero = finish(
        generate(
            runtime,
            [Prompt("red heart", 1, negative="yellow banana")],
            SamplerConfig(num_steps=3, guidance_scale=0.0),
        )
    )
    close(zero, unguided)


# --- stopping early ---------------------------------------------------------------------------


def three_levels(rescale: float | None = None, shift_power: float | None = 2.0) -> ModelConfig:
    tiny = preset("tiny")
    schedule = dataclasses.replace(tiny.diffusion.schedule, shift_power=shift_power)
    return dataclasses.replace(
        tiny,
        model=around(dataclasses.replace(tiny.model, normalize_input=True), temb_dim=64),
        side=32,
        diffusion=dataclasses.replace(
            tiny.diffusion, schedule=schedule, rescale_signal=rescale, threshold="none"
        ),
    )


@pytest.mark.parametrize("shift_power", [2.0, None])
@pytest.mark.parametrize("side", [16, 8])
def test_stopping_runs_the_inner_model_as_if_nothing_were_around_it(
    backend: Backend, tmp_path: Path, side: int, shift_power: float | None
) -> None:
    """Zero features, its own tables, its own normalisation, the noise of its own levels."""
    config = three_levels(shift_power=shift_power)
    weights = random_state(config.model)
    full = save_random_model(tmp_path / "full", config, weights)
    inside = config
    while inside.side > side:
        inside = inner_model(inside)
        prefix = "inner_unet."
        weights = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
    alone = save_random_model(tmp_path / "alone", inside, weights)
    sampler = SamplerConfig("ddpm", 4, guidance_scale=2.0)
    stopped = finish(generate(backend.runtime(full), PROMPTS[:2], sampler, stop_at=side))
    assert [level.shape[-1] for level in stopped] == list(inside.sides)
    close(stopped, finish(generate(backend.runtime(alone), PROMPTS[:2], sampler)), atol=0)


def test_stopping_at_the_innermost_level_ignores_the_rescaling_of_plain_models(
    backend: Backend, tmp_path: Path
) -> None:
    """A nest is trained without it, so a level that runs alone is sampled without it."""
    sampler, pictures = SamplerConfig("ddpm", 3), []
    for name, rescale in (("with", 3.0), ("without", None)):
        folder = save_random_model(tmp_path / name, three_levels(rescale))
        runtime = backend.runtime(folder)
        pictures.append(finish(generate(runtime, PROMPTS[:1], sampler, stop_at=8)))
    close(pictures[0], pictures[1], atol=0)


def test_stopping_differs_from_a_preview_of_the_full_nest(
    backend: Backend, model_folder: Path
) -> None:
    runtime, sampler = backend.runtime(model_folder), SamplerConfig(num_steps=4)
    full = finish(generate(runtime, PROMPTS[:1], sampler))
    stopped = finish(generate(runtime, PROMPTS[:1], sampler, stop_at=8))
    assert np.abs(full[1] - stopped[0]).max() > 1e-2


def test_stopping_at_the_full_side_stops_nothing(backend: Backend, model_folder: Path) -> None:
    runtime, sampler = backend.runtime(model_folder), SamplerConfig(num_steps=2)
    close(
        finish(generate(runtime, PROMPTS[:1], sampler, stop_at=16)),
        finish(generate(runtime, PROMPTS[:1], sampler)),
        atol=0,
    )


def test_a_side_the_model_lacks_is_refused_with_those_it_has(
    backend: Backend, model_folder: Path
) -> None:
    with pytest.raises(ConfigError, match="sides 16, 8, got 12"):
        next(generate(backend.runtime(model_folder), PROMPTS, SamplerConfig(), stop_at=12))


# --- previews ---------------------------------------------------------------------------------


def test_every_step_shows_every_level_and_the_last_one_the_result(
    backend: Backend, model_folder: Path
) -> None:
    runtime = backend.runtime(model_folder)
    previews = list(generate(runtime, PROMPTS, SamplerConfig("ddpm", 5)))
    assert [p.index for p in previews] == [0, 1, 2, 3, 4]
    assert {p.total for p in previews} == {5}
    assert [p.final is not None for p in previews] == [False] * 4 + [True]
    for preview in previews:
        assert [level.shape for level in preview.x0] == [(3, 3, 16, 16), (3, 3, 8, 8)]
        for level in preview.x0:
            assert level.dtype == np.float32
            assert np.abs(level).max() <= 1
    final = previews[-1].final
    assert final is not None
    close(final, previews[-1].x0, atol=1e-5)


def test_looking_at_previews_changes_nothing(backend: Backend, model_folder: Path) -> None:
    runtime, sampler = backend.runtime(model_folder), SamplerConfig("ddpm", 4)

    def spoiled() -> list[Images]:
        last: Preview | None = None
        for preview in generate(runtime, PROMPTS[:1], sampler):
            last = preview
            if preview.final is None:
                for level in preview.x0:
                    level[...] = 0
        assert last is not None
        assert last.final is not None
        return last.final

    close(spoiled(), finish(generate(runtime, PROMPTS[:1], sampler)), atol=0)


# --- noise and caption alone ----------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [None, 8])
def test_the_clean_estimate_is_the_first_step_of_the_whole_table(
    backend: Backend, model_folder: Path, stop_at: int | None
) -> None:
    runtime = backend.runtime(model_folder)
    first = next(generate(runtime, PROMPTS, SamplerConfig("ddim", None), stop_at))
    close(clean_estimate(runtime, PROMPTS, stop_at), first.x0, atol=1e-5)
