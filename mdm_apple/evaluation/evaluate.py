"""Quality of a model's pictures, without downloads: caption retrieval, cleanness, distances.

Input: a `Runtime` of any backend and captioned pictures. Output: numbers per seed, their mean and
worst, and the pictures behind them. Nothing is sharpened, rounded or selected: pictures come from
the sampler and are only clipped to [-1, 1].

Retrieval: a generated picture is compared with every picture of the data at 32 px (or its own side
if that is smaller), both average-pooled, by Euclidean distance of RGB in [-1, 1]. It is a hit in
the top k if fewer than k pictures of other captions are nearer than the requested one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.ranges import in_range
from mdm_apple.config.types import Images
from mdm_apple.data.dataset import Dataset
from mdm_apple.errors import MdmError
from mdm_apple.evaluation.distances import (
    Features,
    frechet_distance,
    gradient_magnitude,
    kernel_distance,
    layout_features,
    precision_recall,
)
from mdm_apple.evaluation.retrieval import (
    as_images,
    drawn_captions,
    open_gallery,
    pool,
    retrieval_ranks,
    retrieval_side,
)
from mdm_apple.sampling.generate import Prompt, Runtime, clean_estimate, finish, generate
from mdm_apple.sampling.inner_model import level_of_side
from mdm_apple.sampling.walk import SamplerConfig, check_student

WHITE_TOLERANCE = 6 / 127.5  # 6 of 255, in units of [-1, 1]
MAX_EVAL_SEED = 2**16 - 1
MAX_COUNT = 2**16
MAX_SHOWN = 64


@dataclass(frozen=True)
class EvaluationPlan:
    """The pictures to make, and how.

    seeds: each draws `count` captions without repetition, and the noise of their pictures.
    """

    sampler: SamplerConfig
    count: int = 512
    seeds: tuple[int, ...] = (0,)
    stop_at: int | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_count_and_seeds(self.count, self.seeds)


def check_picture_model(config: ModelConfig, stop_at: int | None) -> None:
    """Refuse a model that makes clips, which have a judge of their own. Raises MdmError.

    stop_at: side of the highest level that runs; that of a key frame makes pictures.
    """
    if config.clip_shapes[level_of_side(config, stop_at)][0] > 1:
        frames, side = config.clip_shapes[-1]
        alone = f", and its pictures with --stop-at {frames}x{side}" if frames == 1 else ""
        raise MdmError(
            f"model: makes clips, which are scored by `mdm evaluate --data motion` only{alone}."
        )


def side_to_open(config: ModelConfig, stop_at: int | None) -> int:
    """The side of the pictures to compare with; a canvas has no pictures of its own size."""
    return config.side if config.frames == 1 else config.sides[level_of_side(config, stop_at)]


def check_count_and_seeds(count: int, seeds: Sequence[int]) -> None:
    """Refuse a number of captions or seeds that no evaluation takes. Raises MdmError."""
    in_range("count", count, 4, MAX_COUNT, what="captions", error=MdmError)
    for seed in seeds:
        in_range("eval-seed", seed, 0, MAX_EVAL_SEED, error=MdmError)
    if len(set(seeds)) != len(seeds) or not seeds:
        raise MdmError(f"eval-seed: expected different seeds, got {seeds}.")


@dataclass(frozen=True)
class Scores:
    """Results of one seed; higher is better for scores in `LEAST_IS_WORST`.

    top1, top5: shares of captions whose picture was retrieved. white_share: share of the white
    pixels of the real pictures that are within 6/255 of white in the generated ones; None if there
    are no white pixels. gradient_ratio: mean gradient magnitude relative to the real
    pictures. text_only_mse: error of the clean estimate from noise and caption alone, per level,
    highest first. consistency: RMSE of each level, average-pooled, to the level below.
    teacher_distance: RMSE to a teacher's pictures from the same noise, per level; empty without a
    teacher. For the rest see distances.py.
    """

    top1: float
    top5: float
    white_share: float | None
    gradient_ratio: float
    text_only_mse: tuple[float, ...]
    consistency: tuple[float, ...]
    layout_frechet: float
    layout_kernel: float
    layout_precision: float
    layout_recall: float
    teacher_distance: tuple[float, ...] = ()


# which end of a score is bad; a gradient ratio is worst when furthest from 1
LEAST_IS_WORST = ("top1", "top5", "white_share", "layout_precision", "layout_recall")
MOST_IS_WORST = (
    "text_only_mse",
    "consistency",
    "layout_frechet",
    "layout_kernel",
    "teacher_distance",
)


@dataclass(frozen=True)
class Pair:
    """A caption, the real picture and the generated one, (3, side, side) in [-1, 1]."""

    caption: str
    real: Images
    made: Images


class Judge(Protocol):
    """A separate score over all pictures: FID, CLIP score."""

    name: str

    def add(self, real: Images, made: Images, captions: Sequence[str]) -> None: ...

    def value(self) -> float: ...


@dataclass(frozen=True)
class Evaluation:
    """Scores by seed, and some of the pictures behind them."""

    side: int  # side of the scored pictures
    compared_at: int  # side at which retrieval compares
    gallery: int  # number of pictures that retrieval chooses from
    scores: dict[int, Scores]
    shown: list[Pair]  # the first pictures of the first seed


def evaluate(
    runtime: Runtime,
    dataset: Dataset,
    plan: EvaluationPlan,
    progress: Callable[[int], object] = lambda _: None,
    teacher: Teacher | None = None,
    judges: Sequence[Judge] = (),
) -> Evaluation:
    """Score pictures of `plan.count` captions per seed against the whole data set.

    Args:
        dataset: opened at `side_to_open`.
        progress: called with the number of pictures just made.
        teacher: makes the same pictures from the same noise, to measure how far a student is off.
        judges: receive the pictures of every seed.
    """
    config = runtime.config
    check_student(config.distilled, plan.sampler)
    first = level_of_side(config, plan.stop_at)
    side = config.sides[first]
    check_picture_model(config, plan.stop_at)
    if dataset.varies:
        raise MdmError(
            "data: scenes are drawn anew each time, so none of them is the right one; score a "
            "model of scenes with `mdm evaluate --data scenes`."
        )
    if plan.count > len(dataset):
        raise MdmError(
            f"count: expected at most {len(dataset)}, the number of pictures in the data, got "
            f"{plan.count}."
        )
    compared_at = retrieval_side(side)
    gallery = open_gallery(dataset, compared_at)
    scores: dict[int, Scores] = {}
    shown: list[Pair] = []
    for seed in plan.seeds:
        parts: list[Measured] = []
        chosen = drawn_captions(len(dataset), plan.count, seed)
        for start in range(0, plan.count, plan.batch_size):
            rows = chosen[start : start + plan.batch_size]
            captions = [dataset.item(int(i)).caption for i in rows]
            prompts = [Prompt(c, seed * MAX_COUNT + start + k) for k, c in enumerate(captions)]
            real = _real(dataset, rows, config.sides[first:])
            made = finish(generate(runtime, prompts, plan.sampler, plan.stop_at))
            estimate = clean_estimate(runtime, prompts, plan.stop_at)
            ranks = retrieval_ranks(
                pool(made[0], compared_at), gallery, captions, dataset.captions()
            )
            by_teacher = teacher.pictures(prompts, plan.stop_at) if teacher else ()
            parts.append(measure(real, made, estimate, ranks, by_teacher))
            for judge in judges:
                judge.add(real[0], made[0], captions)
            if len(shown) < MAX_SHOWN and seed == plan.seeds[0]:
                shown += map(Pair, captions, real[0], made[0])
            progress(len(prompts))
        scores[seed] = summarise(parts)
    return Evaluation(side, compared_at, len(dataset), scores, shown[:MAX_SHOWN])


@dataclass(frozen=True)
class Teacher:
    """The model that a student learned from, and how to make its pictures."""

    runtime: Runtime
    sampler: SamplerConfig

    def pictures(self, prompts: Sequence[Prompt], stop_at: int | None) -> list[Images]:
        return finish(generate(self.runtime, prompts, self.sampler, stop_at))


@dataclass(frozen=True)
class Measured:
    """Measurements of each picture of a batch; the first axis is the picture (N, ...).

    white: number of pixels that are pure white in the real picture, and of those that are nearly
    white in the generated one too. gradient: mean magnitude, real and generated. text_only: squared
    error per level. level_gap: squared error between neighbouring levels. teacher_gap: squared
    error to the teacher's picture, per level.
    """

    ranks: NDArray[np.int64]
    white: NDArray[np.int64]
    gradient: NDArray[np.float64]
    text_only: NDArray[np.float64]
    level_gap: NDArray[np.float64]
    teacher_gap: NDArray[np.float64]
    real_features: Features
    made_features: Features


def measure(
    real: Sequence[Images],
    made: Sequence[Images],
    estimate: Sequence[Images],
    ranks: NDArray[np.int64],
    by_teacher: Sequence[Images] = (),
) -> Measured:
    """Compare pictures, and estimates from noise and caption alone, with real pictures per level.

    Args:
        real, made, estimate: (N, 3, side, side) per level, highest first, in [-1, 1].
        by_teacher: a teacher's pictures from the same noise, or empty.
    """
    white = (real[0] >= 1 - 1e-6).all(axis=1)
    nearly = (made[0] >= 1 - WHITE_TOLERANCE - 1e-6).all(axis=1)
    below = [pool(high, low.shape[-1]) for high, low in pairwise(made)]
    return Measured(
        ranks=ranks,
        white=np.stack([white, white & nearly], axis=1).sum(axis=(2, 3)),
        gradient=np.stack([gradient_magnitude(x[0]) for x in (real, made)], axis=1),
        text_only=_squared_errors(estimate, real),
        level_gap=_squared_errors(below, made[1:]),
        teacher_gap=_squared_errors(made[: len(by_teacher)], by_teacher),
        real_features=layout_features(real[0]),
        made_features=layout_features(made[0]),
    )


def summarise(parts: Sequence[Measured]) -> Scores:
    """Combine the measurements of a seed into its scores."""

    def every(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    real, made = every("real_features"), every("made_features")
    ranks, (white, nearly) = every("ranks"), every("white").sum(axis=0).tolist()
    gradient = every("gradient").mean(axis=0)
    precision, recall = precision_recall(real, made)
    return Scores(
        top1=float((ranks < 1).mean()),
        top5=float((ranks < 5).mean()),
        white_share=nearly / white if white else None,
        gradient_ratio=float(gradient[1] / max(gradient[0], 1e-12)),
        text_only_mse=tuple(every("text_only").mean(axis=0).tolist()),
        consistency=tuple(np.sqrt(every("level_gap").mean(axis=0)).tolist()),
        layout_frechet=frechet_distance(real, made),
        layout_kernel=kernel_distance(real, made),
        layout_precision=precision,
        layout_recall=recall,
        teacher_distance=tuple(np.sqrt(every("teacher_gap").mean(axis=0)).tolist()),
    )


def _squared_errors(a: Sequence[Images], b: Sequence[Images]) -> NDArray[np.float64]:
    """Mean over each picture, per level: (N, levels)."""
    errors = [
        ((x - y) ** 2).mean(axis=(1, 2, 3), dtype=np.float64) for x, y in zip(a, b, strict=True)
    ]
    return np.stack(errors, axis=1) if errors else np.zeros((1, 0))


def mean_scores(scores: Sequence[Scores]) -> dict[str, object]:
    """Each score averaged over the seeds."""
    return {
        name: _over_seeds([getattr(s, name) for s in scores], np.mean)
        for name in Scores.__dataclass_fields__
    }


def worst_scores(scores: Sequence[Scores]) -> dict[str, object]:
    """Each score at its worst seed."""
    ends: dict[str, Callable[..., object]] = {
        **dict.fromkeys(LEAST_IS_WORST, np.min),
        **dict.fromkeys(MOST_IS_WORST, np.max),
        "gradient_ratio": _furthest_from_one,
    }
    return {
        name: _over_seeds([getattr(s, name) for s in scores], ends[name])
        for name in Scores.__dataclass_fields__
    }


def _furthest_from_one(values: Sequence[float], axis: int) -> float:
    return max(values, key=lambda v: abs(v - 1))


def _over_seeds(values: Sequence[object], reduce: Callable[..., object]) -> object:
    if values[0] is None:
        return None
    reduced = reduce(values, axis=0)
    return np.asarray(reduced).tolist()


def _real(dataset: Dataset, chosen: NDArray[np.int64], sides: Sequence[int]) -> list[Images]:
    """The real pictures of these sides as in training: average-pooled from the highest."""
    full = as_images(np.stack([dataset.item(int(i)).image for i in chosen]))
    return [pool(full, side) for side in sides]
