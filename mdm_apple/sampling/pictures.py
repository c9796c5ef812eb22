"""Finished pictures as files: bytes per pixel, grids, and PNGs that contain their recipe."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from mdm_apple.config.model import Threshold
from mdm_apple.config.strict_json import from_json
from mdm_apple.config.types import Bits, Pixels, Precision
from mdm_apple.diffusion.schedule import Spacing
from mdm_apple.errors import MdmError
from mdm_apple.sampling.walk import SamplerKind
from mdm_apple.storage.files import atomic_file

RECIPE_KEY = "mdm"
MAX_RECIPE = 1 << 16


@dataclass(frozen=True)
class Recipe:
    """What reproduces a picture: `mdm sample --like FILE.png`."""

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


def tile_steps(steps: Sequence[Sequence[Pixels]]) -> Pixels:
    """Arrange steps as columns and levels (H, W, 3) as rows, highest on top, all at one side."""
    side = steps[0][0].shape[0]
    levels = range(len(steps[0]))
    shown = [enlarge(step[i], side) for i in levels for step in steps]
    return tile(np.stack(shown), columns=len(steps))


def as_png(pixels: Pixels, recipe: Recipe | None = None) -> bytes:
    """One picture (H, W, 3) as the contents of a PNG file."""
    info = PngImagePlugin.PngInfo()
    if recipe is not None:
        info.add_itxt(RECIPE_KEY, json.dumps(asdict(recipe), ensure_ascii=False))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def save_png(path: Path, pixels: Pixels) -> None:
    """Write one picture (H, W, 3), atomically."""
    with atomic_file(path) as file:
        file.write(as_png(pixels))


def read_recipe(path: Path) -> Recipe:
    """The recipe inside a PNG made by `mdm sample`. Raises MdmError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as picture:
                picture.load()
                text = getattr(picture, "text", {}).get(RECIPE_KEY)
    except FileNotFoundError:
        raise MdmError(f"{path}: no such file.") from None
    except (
        OSError,
        UnidentifiedImageError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ):
        raise MdmError(f"{path}: expected a PNG made by mdm sample, but cannot read it.") from None
    if text is None or len(text) > MAX_RECIPE:
        raise MdmError(f"{path}: carries no recipe; only PNGs made by mdm sample do.")
    return from_json(Recipe, str(text), str(path))
