"""Three lines make a picture; the rest shows what else a model can do.

python examples/sample.py --out pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mdm_apple as mdm


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model = mdm.load("box:student")
    picture = model("red heart", seed=7)
    picture.save(out / "heart.png")

    # Every picture exists at all scales at once: highest first.
    print("levels:", [level.shape[0] for level in picture.levels])

    # The recipe inside the file makes the same bytes again.
    print("recipe:", picture.recipe)

    # Several seeds at once; consecutive seeds from the first one.
    for made in model("cat face", n=3, seed=1):
        assert made.recipe is not None
        made.save(out / f"cat_{made.recipe.seed}.png")

    # Steps as they are made: the small levels show the picture before the large ones do.
    for step in mdm.load("box:emoji").steps("red apple", seed=3, steps=4):
        step.image.save(out / f"step_{step.index}.png")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path("pictures"))
    main(arguments.parse_args().out)
