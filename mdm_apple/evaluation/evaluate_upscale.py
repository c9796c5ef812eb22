"""How well a model enlarges pictures, beside bicubic interpolation.

Input: a `Runtime` and captioned pictures, reduced to a level of the model by averaging and rounded
to bytes, as a file would hold them. Output: the distance to the real pictures in decibels, and of
their details as a set.

Details: the luma in [-1, 1] is split into bands by smoothing it again and again with (1 2 1) in
both directions; a band is the difference of two neighbours. The features of a picture are the mean
magnitude of each band in each of 4 x 4 cells (48 numbers, times 4 as in `layout_features`), and the
detail distance is the Fréchet distance between those of the real and of the enlarged pictures. It
is 0 for the real ones, and large where edges are soft or where texture is invented.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.types import Images, Pixels
from mdm_apple.data.dataset import Dataset
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.errors import MdmError
from mdm_apple.evaluation.distances import CELLS, GRAY, Features, frechet_distance
from mdm_apple.evaluation.evaluate import MAX_COUNT, MAX_SHOWN, check_count_and_seeds
from mdm_apple.evaluation.retrieval import as_images, drawn_captions, pool
from mdm_apple.sampling.generate import Prompt, Runtime, finish, generate
from mdm_apple.sampling.given_picture import GivenPicture
from mdm_apple.sampling.inner_model import level_of_side, picture_sides
from mdm_apple.sampling.pictures import to_pixels
from mdm_apple.sampling.walk import SamplerConfig

BANDS = 3


@dataclass(frozen=True)
class UpscalePlan:
    """The pictures to enlarge, and how. side: of the small ones, a level of the model."""

    sampler: SamplerConfig
    side: int
    count: int = 512
    seeds: tuple[int, ...] = (0,)
    stop_at: int | None = None

    def __post_init__(self) -> None:
        check_count_and_seeds(self.count, self.seeds)


@dataclass(frozen=True)
class UpscaleScores:
    """Results of one seed, for the model and for bicubic interpolation.

    psnr: mean over pictures, in decibels. detail: the detail distance. pools_back: the largest
    difference between a small picture and its enlargement, averaged again, in steps of a byte.
    """

    psnr: float
    bicubic_psnr: float
    detail: float
    bicubic_detail: float
    pools_back: float


@dataclass(frozen=True)
class UpscaleEvaluation:
    """Scores by seed. shown: real, bicubic and enlarged pictures of the first seed."""

    scores: dict[int, UpscaleScores]
    shown: list[tuple[Pixels, Pixels, Pixels]]


def check_upscale(config: ModelConfig, side: int, stop_at: int | None) -> None:
    """Refuse a side that the model cannot enlarge from. Raises MdmError."""
    first = level_of_side(config, stop_at)
    lower = picture_sides(config, first + 1)
    if config.clip_shapes[first][0] > 1 or side not in lower:
        known = ", ".join(map(str, sorted(lower))) or "none"
        raise MdmError(f"upscale: expected a level below the pictures ({known}), got {side}.")


def evaluate_upscale(
    runtime: Runtime,
    dataset: Dataset,
    plan: UpscalePlan,
    progress: Callable[[int], object] = lambda _: None,
) -> UpscaleEvaluation:
    """Enlarge `plan.count` pictures of each seed, one by one, with their captions.

    Args:
        dataset: opened at `side_to_open`. progress: called with 1 after each picture.
    """
    check_upscale(runtime.config, plan.side, plan.stop_at)
    if dataset.varies or plan.count > len(dataset):
        raise MdmError(f"count: expected at most {len(dataset)} fixed pictures, got {plan.count}.")
    target = runtime.config.sides[level_of_side(runtime.config, plan.stop_at)]
    scores, shown = dict[int, UpscaleScores](), list[tuple[Pixels, Pixels, Pixels]]()
    for seed in plan.seeds:
        parts = list[tuple[Pixels, Pixels, Pixels]]()
        gaps = list[float]()
        for k, row in enumerate(drawn_captions(len(dataset), plan.count, seed)):
            item = dataset.item(int(row))
            real = to_pixels(pool(as_images(item.image[None]), target))[0]
            small = to_pixels(pool(as_images(real[None]), plan.side))[0]
            prompts = [Prompt(item.caption, seed * MAX_COUNT + k)]
            given = GivenPicture(small)
            made = finish(generate(runtime, prompts, plan.sampler, plan.stop_at, given))
            enlarged = to_pixels(made[0])[0]
            parts.append((real, bicubic(small, target), enlarged))
            back = pool(as_images(enlarged[None]), plan.side) - as_images(small[None])
            gaps.append(float(np.abs(back).max()) * 127.5)
            progress(1)
        scores[seed] = scores_of(parts, max(gaps))
        shown = shown or parts[:MAX_SHOWN]
    return UpscaleEvaluation(scores, shown)


def scores_of(parts: list[tuple[Pixels, Pixels, Pixels]], pools_back: float) -> UpscaleScores:
    """The scores of real, bicubic and enlarged pictures (side, side, 3)."""
    real, smooth, made = (as_images(np.stack(kind)) for kind in zip(*parts, strict=True))
    features = detail_features(real)
    return UpscaleScores(
        mean_psnr(made, real),
        mean_psnr(smooth, real),
        frechet_distance(features, detail_features(made)),
        frechet_distance(features, detail_features(smooth)),
        pools_back,
    )


def bicubic(small: Pixels, side: int) -> Pixels:
    """The plain enlargement to compare with."""
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def detail_features(images: Images) -> Features:
    """48 numbers per picture (N, 3, S, S): its details by band and part; see above."""
    luma = np.tensordot(images.astype(np.float64), GRAY, axes=([1], [0]))[:, None]
    border, bands = np.ones_like(luma[:1]), list[NDArray[np.float64]]()
    ops = NumpyOps()
    for _ in range(BANDS):
        smooth = ops.smooth(luma) / ops.smooth(border)  # an average of fewer at the border
        bands.append(np.abs(luma - smooth))
        luma = smooth
    size = images.shape[-1] // CELLS
    planes = np.concatenate(bands, axis=1)[..., : size * CELLS, : size * CELLS]
    cells = planes.reshape(len(images), BANDS, CELLS, size, CELLS, size).mean(axis=(3, 5))
    return 4 * cells.reshape(len(images), -1)


def mean_psnr(a: Images, b: Images) -> float:
    """Peak signal-to-noise ratio of pictures in [-1, 1], averaged over them; at most 100 dB."""
    errors = ((a - b) ** 2).mean(axis=(1, 2, 3), dtype=np.float64)
    return float((10 * np.log10(4 / np.maximum(errors, 4e-10))).mean())
