"""Scores of a model of `--data motion`: do its clips move as they were asked to, and steadily?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.config.types import Images
from mdm_apple.data.motion.objects import OBJECTS, check_objects
from mdm_apple.data.motion.open_motion import VARIANTS, check_variants
from mdm_apple.data.motion.poses import MOTIONS
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.diffusion.pyramid import level_below
from mdm_apple.errors import MdmError
from mdm_apple.evaluation.evaluate import MAX_COUNT, check_count_and_seeds
from mdm_apple.evaluation.motion_captions import AskedClip, asked_clips
from mdm_apple.evaluation.motion_judge import Hits, MotionJudge, Steadiness
from mdm_apple.evaluation.share import Share
from mdm_apple.sampling.generate import Prompt, Runtime, finish, generate
from mdm_apple.sampling.inner_model import level_of_side
from mdm_apple.sampling.walk import SamplerConfig, check_student


@dataclass(frozen=True)
class MotionPlan:
    """The clips to make, and how.

    count: captions, or as many as there are. seeds: each makes one clip of each caption. objects,
    variants: that the model was trained with. captions: use only these; None uses all. stop_at:
    side of the canvas of the highest level that runs; None runs them all.
    """

    sampler: SamplerConfig
    count: int = 128
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 32
    objects: int = len(OBJECTS)
    captions: tuple[str, ...] | None = None
    variants: int = VARIANTS
    stop_at: int | None = None

    def __post_init__(self) -> None:
        check_count_and_seeds(self.count, self.seeds)
        check_objects(self.objects)
        check_variants(self.variants)
        known = {one.caption for one in asked_clips(MAX_COUNT, self.objects)}
        unknown = [caption for caption in self.captions or () if caption not in known]
        if unknown:
            raise MdmError(
                f"captions: expected an object with a motion, as in cat growing, got {unknown[0]}."
            )

    @property
    def asked(self) -> list[AskedClip]:
        """The captions, each once."""
        if self.captions is None:
            return asked_clips(self.count, self.objects)
        every = asked_clips(MAX_COUNT, self.objects)
        return [one for one in every if one.caption in self.captions][: self.count]

    @property
    def total(self) -> int:
        """Number of clips."""
        return len(self.seeds) * len(self.asked)


@dataclass(frozen=True)
class MotionScores:
    """rows: for trained and held-out pairs, with and without spins, the shares of hits.

    A key frame has no motion: its hits are those of the object. consistency: RMSE of each level to
    the level below, which has its frames in fewer pixels or fewer of its frames; highest first, in
    units of [-1, 1]. frechet: see `MotionJudge.frechet`.
    """

    rows: Mapping[str, Mapping[str, Share]]
    steadiness: Steadiness
    consistency: tuple[float, ...]
    frechet: float


def check_motion_model(config: ModelConfig) -> None:
    """Refuse a model that makes no clips."""
    if config.frames == 1:
        raise MdmError(
            "data: motion needs a model of clips, such as one of mdm train --preset motion; this "
            "one makes pictures."
        )


def evaluate_motion(
    runtime: Runtime, plan: MotionPlan, progress: Callable[[int], object] = lambda _: None
) -> MotionScores:
    """Make the clips and judge them.

    Args:
        progress: called with the number of clips just made.
    """
    config = runtime.config
    check_motion_model(config)
    check_student(config.distilled, plan.sampler)
    first = level_of_side(config, plan.stop_at)
    frames, _ = config.clip_shapes[first]
    judge = MotionJudge(config.sides[first], frames, plan.objects, plan.variants)
    asked = plan.asked * len(plan.seeds)
    prompts = [
        Prompt(one.caption, seed * MAX_COUNT + place)
        for seed in plan.seeds
        for place, one in enumerate(plan.asked)
    ]
    canvases: list[Images] = []
    gaps: list[list[float]] = []
    for start in range(0, len(prompts), plan.batch_size):
        some = prompts[start : start + plan.batch_size]
        made = finish(generate(runtime, some, plan.sampler, plan.stop_at))
        gaps += _gaps(made, config.model.levels[first:])
        canvases.append(made[0])
        progress(len(some))
    made = np.concatenate(canvases)
    return MotionScores(
        _rows(judge.hits(made, asked), asked, plan.objects),
        judge.steadiness(made, asked),
        tuple(np.sqrt(np.mean(gaps, axis=0)).tolist()),
        judge.frechet(made),
    )


def _gaps(made: Sequence[Images], levels: Sequence[UNetConfig]) -> list[list[float]]:
    """For each clip the squared error between neighbouring levels, as training derives them."""
    found = [
        (level_below(high, level, NumpyOps()) - low) ** 2
        for level, (high, low) in zip(levels, pairwise(made), strict=False)
    ]
    means = [gap.mean(axis=(1, 2, 3)) for gap in found]
    return np.stack(means, axis=1).tolist() if means else [[] for _ in made[0]]


def _rows(hits: Hits, asked: Sequence[AskedClip], objects: int) -> dict[str, dict[str, Share]]:
    """Shares of hits, for the rows that have clips."""
    spins = np.array([one.spins for one in asked])
    unseen = np.array([one.held_out for one in asked])
    chosen = {
        "trained": ~unseen,
        "trained, spinning": ~unseen & spins,
        "held out": unseen,
        "held out, spinning": unseen & spins,
        "held out, not spinning": unseen & ~spins,
    }
    chance = dict.fromkeys(hits, 1 / len(MOTIONS)) | {
        "pair": 1 / (len(MOTIONS) * objects),
        "object": 1 / objects,
    }
    return {
        row: {
            name: Share(int(hit[some].sum()), int(some.sum()), chance[name])
            for name, hit in hits.items()
        }
        for row, some in chosen.items()
        if some.any()
    }
