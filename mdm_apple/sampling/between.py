"""Pictures between two: prompts whose noise or text lies on the way to another."""

from __future__ import annotations

from mdm_apple.config.ranges import in_range
from mdm_apple.errors import MdmError
from mdm_apple.sampling.generate import Prompt
from mdm_apple.sampling.pictures import Recipe

MOST_FRAMES = 4096


def between(
    one: str, other: str, frames: int, seed: int, to_seed: int | None, negative: str = ""
) -> list[Prompt]:
    """Prompts in equal shares from one text to the other, both ends counted. Raises MdmError."""
    in_range("frames", frames, 2, MOST_FRAMES, error=MdmError)
    return [Prompt(one, seed, negative, to_seed, other, k / (frames - 1)) for k in range(frames)]


def arc(recipe: Recipe, amount: float, seed: int) -> Prompt:
    """The prompt of a picture with its noise moved towards another seed's. Raises MdmError."""
    in_range("amount", amount, 0, 1, error=MdmError)
    if recipe.share is not None:
        raise MdmError(
            "vary: that picture already lies between two; vary one of the two that it came from."
        )
    return Prompt(recipe.prompt, recipe.seed, recipe.negative, seed, None, amount)
