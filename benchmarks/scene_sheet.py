"""Draw 64 scenes with their captions, as training sees them.

python -m benchmarks.scene_sheet docs/scenes.png
"""

from __future__ import annotations

import io
import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mdm_apple.data.batches import RowStream
from mdm_apple.data.scenes.dice import Dice
from mdm_apple.data.scenes.draw_scene import picture_of
from mdm_apple.data.scenes.drawings import Drawings
from mdm_apple.data.scenes.factors import CANVAS
from mdm_apple.data.scenes.objects import drawing_paths
from mdm_apple.data.scenes.open_scenes import SceneRows
from mdm_apple.storage.files import atomic_file

COUNT, COLUMNS, SEED = 64, 8, 0
WIDTH, HEIGHT, LINE, LETTERS = 132, 108, 11, 26
COLORS = 160  # of the file, so that it stays small


def contact_sheet() -> Image.Image:
    """64 scenes, chosen at random and not by eye."""
    rows, drawings, stream = SceneRows(CANVAS), Drawings(drawing_paths()), RowStream(SEED)
    chosen = np.random.RandomState(SEED).choice(rows.scenes, COUNT, replace=False)
    sheet = Image.new("RGB", (COLUMNS * WIDTH, COUNT // COLUMNS * HEIGHT), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for place, index in enumerate(chosen.tolist()):
        scene = rows.scene(index, Dice(stream.at(0, place, 0)))
        left, top = place % COLUMNS * WIDTH, place // COLUMNS * HEIGHT + 4
        start = left + (WIDTH - CANVAS) // 2
        draw.rectangle((start - 1, top - 1, start + CANVAS, top + CANVAS), outline="#aaaaaa")
        sheet.paste(Image.fromarray(picture_of(scene, CANVAS, drawings)), (start, top))
        for number, line in enumerate(textwrap.wrap(scene.caption, LETTERS)):
            where = (left + WIDTH / 2, top + CANVAS + 3 + number * LINE)
            draw.text(where, line, fill="black", font=font, anchor="ma")
    return sheet


def main() -> None:
    """Write the PNG."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    written = io.BytesIO()
    contact_sheet().quantize(COLORS).save(written, "PNG", optimize=True)
    with atomic_file(Path(sys.argv[1])) as file:
        file.write(written.getvalue())
    print(f"{sys.argv[1]}: {len(written.getvalue())} bytes")


if __name__ == "__main__":
    main()
