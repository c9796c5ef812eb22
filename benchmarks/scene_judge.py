"""How often the judge of scenes is right about pictures that are known.

    python -m benchmarks.scene_judge 4000

Scenes of training are rendered anew, then spoiled in several ways, and judged by their captions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from mdm_apple.config.types import Floats, Images
from mdm_apple.data.scenes.dice import Dice
from mdm_apple.data.scenes.draw_scene import draw_related, draw_scene, picture_of
from mdm_apple.data.scenes.drawings import Drawings
from mdm_apple.data.scenes.factors import CANVAS, Scene
from mdm_apple.data.scenes.objects import drawing_paths, objects
from mdm_apple.evaluation.retrieval import as_images
from mdm_apple.evaluation.scene_scores import Asked, scene_shares

RELATED_EVERY = 4
NOISES = (0.1, 0.2)  # standard deviations, where pictures are in [-1, 1]
BLUR = 0.8  # radius in pixels


def some_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes of training, of all objects in turn; every fourth is a relation."""
    nouns = [thing.one for thing in objects()]
    related = [thing.one for thing in objects() if thing.related]
    found: list[Scene] = []
    for k in range(count):
        dice = Dice(np.random.Generator(np.random.Philox(key=[seed, k])))
        turn, kind = divmod(k, RELATED_EVERY)
        if kind == 0:
            found.append(draw_related(related[turn % len(related)], dice))
        else:
            place = turn * (RELATED_EVERY - 1) + kind - 1
            found.append(draw_scene(nouns[place % len(nouns)], dice))
    return found


def rendered(scenes: Sequence[Scene]) -> Images:
    """The pictures of scenes: (N, 3, 64, 64) in [-1, 1]."""
    drawings = Drawings(drawing_paths())
    return as_images(np.stack([picture_of(scene, CANVAS, drawings) for scene in scenes]))


def noisy(pictures: Images, deviation: float) -> Floats:
    """Pictures with normal noise, clipped."""
    noise = np.random.RandomState(0).standard_normal(pictures.shape).astype(np.float32)
    return np.clip(pictures + np.float32(deviation) * noise, -1, 1).astype(np.float32)


def blurred(pictures: Images) -> Floats:
    """Pictures under a Gaussian blur."""
    pixels = np.rint((pictures.transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)
    soft = [Image.fromarray(one).filter(ImageFilter.GaussianBlur(BLUR)) for one in pixels]
    return as_images(np.stack([np.asarray(one) for one in soft]))


def main() -> None:
    """Print a table: how the pictures were spoiled, and the share of hits of each factor."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    scenes = some_scenes(int(sys.argv[1]))
    asked = [Asked("", scene.caption, (), scene.stated) for scene in scenes]
    pictures = rendered(scenes)
    spoiled = {"as drawn": pictures}
    spoiled |= {f"noise {deviation}": noisy(pictures, deviation) for deviation in NOISES}
    spoiled["blurred"] = blurred(pictures)
    names: list[str] = []
    for name, some in spoiled.items():
        shares = scene_shares(some, asked)
        if not names:
            names = list(shares)
            print("| pictures |", " | ".join(names), "|")
        print(f"| {name} |", " | ".join(f"{100 * shares[n].share:.1f}" for n in names), "|")
        if name == "as drawn":
            print("| shuffled |", " | ".join(f"{100 * shares[n].chance:.1f}" for n in names), "|")
            print("| captions |", " | ".join(str(shares[n].count) for n in names), "|")


if __name__ == "__main__":
    main()
