"""A nest in two dimensions, with NumPy alone: start here to see what this project is about.

A "picture" has two pixels, so it is a point in the plane. Its small version has one pixel, the mean
of the two. The nest walks both from noise to data at once: two noisy states, one timestep, and a
denoiser that looks at both when it estimates either.

A real model learns its denoiser. Here the data are a mixture of Gaussians, so the best possible
denoiser can be written down: given what is seen, each component is a Gaussian posterior, and the
components are weighed by how well they explain it. Everything else is the project's own: noise
schedule, arithmetic and sampler, as every network uses them.

    python examples/toy_2d.py --out toy.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mdm_apple.config.model import DiffusionConfig, ScheduleConfig
from mdm_apple.diffusion.arithmetic import v_from_x0
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.diffusion.schedule import Schedule, build_schedule
from mdm_apple.sampling.walk import SamplerConfig, sample

Points = NDArray[np.float64]

CENTRES = np.array([[-0.6, -0.5], [0.6, -0.4], [0.0, 0.6]])  # of three equally likely blobs
WIDTH = 0.1  # standard deviation of a blob, along each axis
POOL = np.array([[0.5, 0.5]])  # the small picture is the mean of the two pixels
SCALES = (2, 1)  # pixels per side of each level, over the smallest: highest level first
DIFFUSION = DiffusionConfig(
    # The mean of two pixels has half their noise variance, so the large level gets twice the noise.
    ScheduleConfig("cosine", shift_power=1.0),
    prediction="v",
    threshold="none",
)


def pool(large: Points) -> Points:
    """(N, 2) points to the (N, 1) small versions of them."""
    return large @ POOL.T


def posterior_mean(large: Points, small: Points, alpha_bar: Sequence[float]) -> Points:
    """The expected clean point (N, 2), given its noisy large and small versions."""
    signal = np.array([alpha_bar[0], alpha_bar[0], alpha_bar[1]]) ** 0.5
    seen = np.concatenate([large, small], axis=1)  # (N, 3), linear in the clean point
    matrix = signal[:, None] * np.concatenate([np.eye(2), POOL])  # (3, 2)
    noise = np.diag(1 - signal**2)
    covariance = WIDTH**2 * matrix @ matrix.T + noise  # of what is seen, within one blob
    gain = WIDTH**2 * matrix.T @ np.linalg.inv(covariance)  # (2, 3)
    off = seen[None] - (CENTRES @ matrix.T)[:, None]  # (blobs, N, 3)
    log_fit = -0.5 * np.einsum("kni,ij,knj->kn", off, np.linalg.inv(covariance), off)
    weight = np.exp(log_fit - log_fit.max(axis=0))
    weight /= weight.sum(axis=0)
    means = CENTRES[:, None] + off @ gain.T  # (blobs, N, 2)
    return np.einsum("kn,kni->ni", weight, means)


def walk_to_data(schedule: Schedule, count: int, steps: int, seed: int) -> list[Points]:
    """Samples of both levels, (count, 2) and (count, 1), from noise alone."""
    random = np.random.default_rng(seed)

    def normals() -> list[Points]:
        return [random.standard_normal((count, 2)), random.standard_normal((count, 1))]

    def denoise(x_t: list[Points], time: int) -> list[Points]:
        alpha_bar = [float(table[time + 1]) for table in schedule.tables]
        clean = posterior_mean(x_t[0], x_t[1], alpha_bar)
        levels = zip(x_t, (clean, pool(clean)), alpha_bar, strict=True)
        return [v_from_x0(x, x0, a) for x, x0, a in levels]

    sampler = SamplerConfig("dpmpp", num_steps=steps)
    walk = sample(denoise, normals(), normals, schedule, DIFFUSION, sampler, SCALES, NumpyOps())
    return list(walk)[-1].x_next


def draw(large: Points, small: Points, path: Path) -> None:
    """The plane with rings of two standard deviations, and below it the small level's histogram."""
    side, below = 480, 120
    image = Image.new("RGB", (side, side + below), "white")
    pen = ImageDraw.Draw(image)

    def place(value: float) -> float:
        return (value + 1.2) / 2.4 * side

    for x, y in large:
        left, top = place(x), side - place(y)
        pen.ellipse((left - 1, top - 1, left + 1, top + 1), fill=(200, 60, 60))
    radius = 2 * WIDTH / 2.4 * side
    for x, y in CENTRES:
        box = (place(x) - radius, side - place(y) - radius)
        pen.ellipse((*box, box[0] + 2 * radius, box[1] + 2 * radius), outline="black")
    counts, edges = np.histogram(small, bins=60, range=(-1.2, 1.2))
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        height = count / counts.max() * (below - 10)
        bar = (place(left), side + below - height, place(right), side + below)
        pen.rectangle(bar, fill=(60, 90, 200))
    image.save(path)


def main(out: Path, count: int, steps: int, seed: int) -> None:
    large, small = walk_to_data(build_schedule(DIFFUSION.schedule, SCALES), count, steps, seed)
    draw(large, small, out)
    variance = WIDTH**2 + CENTRES.var(axis=0)  # of the data
    pooled = WIDTH**2 / 2 + pool(CENTRES).var()
    apart = np.abs(pool(large) - small).max()
    print(
        f"mean {np.abs(large.mean(axis=0) - CENTRES.mean(axis=0)).max():.3f} from the data's, "
        f"variance of the large level {np.abs(large.var(axis=0) / variance - 1).max():.3f} and of "
        f"the small level {abs(small.var() / pooled - 1):.3f} off, levels {apart:.4f} apart"
    )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path("toy.png"))
    arguments.add_argument("--count", type=int, default=3000)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--seed", type=int, default=0)
    main(**vars(arguments.parse_args()))
