"""Scores of a model of scenes: its pictures of the test captions, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.types import Images
from mdm_apple.data.scenes.factors import CANVAS
from mdm_apple.data.twemoji import open_twemoji
from mdm_apple.errors import MdmError
from mdm_apple.evaluation.evaluate import MAX_COUNT, check_count_and_seeds
from mdm_apple.evaluation.scene_scores import Asked, asked_of, scene_shares, word_shares
from mdm_apple.evaluation.share import Share
from mdm_apple.sampling.generate import Prompt, Runtime, finish, generate
from mdm_apple.sampling.walk import SamplerConfig, check_student


@dataclass(frozen=True)
class ScenePlan:
    """The pictures to make, and how.

    count: captions of each row, at most. seeds: each makes one picture of each caption.
    """

    sampler: SamplerConfig
    count: int = 512
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_count_and_seeds(self.count, self.seeds)

    @property
    def rows(self) -> dict[str, tuple[Asked, ...]]:
        """The captions of each row."""
        return {row: asked[: self.count] for row, asked in asked_of().items()}

    @property
    def total(self) -> int:
        """Number of pictures."""
        return len(self.seeds) * sum(map(len, self.rows.values()))


def check_scene_model(config: ModelConfig) -> None:
    """Refuse a model whose pictures are not those of scenes."""
    if config.frames > 1:
        raise MdmError("data: scenes are pictures, and the model makes clips; give --data motion.")
    if config.side != CANVAS:
        raise MdmError(
            f"data: scenes are judged at {CANVAS} px, and the model makes pictures of "
            f"{config.side} px."
        )


def evaluate_scenes(
    runtime: Runtime, plan: ScenePlan, progress: Callable[[int], object] = lambda _: None
) -> dict[str, dict[str, Share]]:
    """For each row of the test the shares of pictures that show what was asked, by factor.

    Args:
        progress: called with the number of pictures just made.
    """
    check_scene_model(runtime.config)
    check_student(runtime.config.distilled, plan.sampler)
    emoji = open_twemoji(CANVAS)
    found: dict[str, dict[str, Share]] = {}
    for row, asked in plan.rows.items():
        pictures = _pictures(runtime, plan, asked, progress)
        repeated = asked * len(plan.seeds)
        if asked[0].stated is None:
            found[row] = word_shares(pictures, repeated, emoji)
        else:
            found[row] = scene_shares(pictures, repeated)
    return found


def _pictures(
    runtime: Runtime,
    plan: ScenePlan,
    asked: Sequence[Asked],
    progress: Callable[[int], object],
) -> Images:
    """All captions with the first seed, then all with the next."""
    prompts = [
        Prompt(one.caption, seed * MAX_COUNT + place)
        for seed in plan.seeds
        for place, one in enumerate(asked)
    ]
    parts: list[Images] = []
    for start in range(0, len(prompts), plan.batch_size):
        some = prompts[start : start + plan.batch_size]
        parts.append(finish(generate(runtime, some, plan.sampler))[0])
        progress(len(some))
    return np.concatenate(parts)
