"""Finished pictures as files: bytes per pixel, grids, PNGs, and the recipe that files contain."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdm_apple.clip_file.embedded_text import embedded_text, png_text
from mdm_apple.clip_file.timing import check_fps
from mdm_apple.config.model import Threshold
from mdm_apple.config.strict_json import ADDED_LATER, as_values, from_json
from mdm_apple.config.types import Bits, Pixels, Precision
from mdm_apple.diffusion.schedule import Spacing
from mdm_apple.errors import MdmError
from mdm_apple.sampling.walk import SamplerKind
from mdm_apple.storage.files import atomic_file

SHEET_COLUMNS, SHEET_SIDE = 16, 64


@dataclass(frozen=True)
class Recipe:
    """What reproduces a picture or clip: `mdm sample --like FILE`."""

    prompt: str
    negative: str
    seed: int
    sampler: SamplerKind
    steps: int | None
    eta: float
    guidance: float
    threshold: Threshold | None
    grid: Spacing  # the spacing of steps, under its original name
    stop_at: int | None
    model: str  # SHA-256 of the weights
    backend: str
    precision: Precision
    version: str
    quantize: Bits | None = None  # bits of Linear layers, in MLX
    # of a clip; SHA-256 of the pixels of the frames that were given, at the clip's own side
    frames: int | None = field(default=None, metadata=ADDED_LATER)
    fps: float | None = field(default=None, metadata=ADDED_LATER)
    first_frame: str | None = field(default=None, metadata=ADDED_LATER)
    last_frame: str | None = field(default=None, metadata=ADDED_LATER)
    # of a picture that was given: SHA-256 of its pixels and its mask at the model's side, and of
    # one that was enlarged, its side
    image: str | None = field(default=None, metadata=ADDED_LATER)
    mask: str | None = field(default=None, metadata=ADDED_LATER)
    strength: float | None = field(default=None, metadata=ADDED_LATER)
    extend: str | None = field(default=None, metadata=ADDED_LATER)
    harmonize: int | None = field(default=None, metadata=ADDED_LATER)
    level: int | None = field(default=None, metadata=ADDED_LATER)
    # of a picture between two: what it lies towards, and how far
    to_prompt: str | None = field(default=None, metadata=ADDED_LATER)
    to_seed: int | None = field(default=None, metadata=ADDED_LATER)
    share: float | None = field(default=None, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        check_fps(self.fps)


def to_pixels(images: NDArray[np.float32]) -> Pixels:
    """Convert (B, 3, H, W) in [-1, 1] to (B, H, W, 3) bytes."""
    scaled = np.rint((np.clip(images, -1, 1) + 1) * 127.5)
    return scaled.astype(np.uint8).transpose(0, 2, 3, 1)


def enlarge(pixels: Pixels, side: int) -> Pixels:
    """Enlarge a picture (H, W, 3) to `side` by repetition, to show low levels beside high ones."""
    factor = max(1, side // pixels.shape[0])
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def tile(pixels: Pixels, columns: int, gap: int = 2) -> Pixels:
    """Arrange pictures (B, H, W, 3) row by row on white: one (H', W', 3)."""
    count, height, width, _ = pixels.shape
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8
    )
    for k in range(count):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        canvas[top : top + height, left : left + width] = pixels[k]
    return canvas


def contact_sheet(clips: Sequence[Pixels]) -> Pixels:
    """Frames (N, H, W, 3) of clips, each clip from a row of its own on: one (H', W', 3)."""
    columns = min(len(clips[0]), SHEET_COLUMNS)
    return tile(np.stack([enlarge(f, SHEET_SIDE) for clip in clips for f in clip]), columns)


def tile_clip_steps(steps: Sequence[Sequence[Pixels]]) -> Pixels:
    """Arrange steps as rows and frames as columns, a block for each level, highest on top.

    Args:
        steps: of each step, the frames (N, H, W, 3) of every level.
    """
    side = max(SHEET_SIDE, steps[0][0].shape[1])
    blocks = [
        tile(np.stack([enlarge(f, side) for step in steps for f in step[i]]), len(steps[0][i]))
        for i in range(len(steps[0]))
    ]
    width, gap = max(block.shape[1] for block in blocks), 6
    padded = [
        np.pad(b, ((0, gap), (0, width - b.shape[1]), (0, 0)), constant_values=255) for b in blocks
    ]
    return np.concatenate(padded)[:-gap]


def tile_steps(steps: Sequence[Sequence[Pixels]]) -> Pixels:
    """Arrange steps as columns and levels (H, W, 3) as rows, highest on top, all at one side."""
    side = steps[0][0].shape[0]
    levels = range(len(steps[0]))
    shown = [enlarge(step[i], side) for i in levels for step in steps]
    return tile(np.stack(shown), columns=len(steps))


def recipe_text(recipe: Recipe | None) -> str | None:
    """The recipe as files hold it."""
    return None if recipe is None else json.dumps(as_values(recipe), ensure_ascii=False)


def as_png(pixels: Pixels, recipe: Recipe | None = None) -> bytes:
    """One picture (H, W, 3) as the contents of a PNG file."""
    file = io.BytesIO()
    info = png_text(recipe_text(recipe))
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def save_png(path: Path, pixels: Pixels) -> None:
    """Write one picture (H, W, 3), atomically."""
    with atomic_file(path) as file:
        file.write(as_png(pixels))


def read_recipe(path: Path) -> Recipe:
    """The recipe inside a picture or clip made by `mdm sample`. Raises MdmError."""
    text = embedded_text(path)
    if text is None:
        raise MdmError(f"{path}: carries no recipe; only files made by mdm sample do.")
    return from_json(Recipe, text, str(path))
