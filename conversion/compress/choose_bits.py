"""Mixed bits: chooses the bits of each weight within a budget of bytes or of error.

Input: sensitivities. Output: a recipe. The errors of weights are assumed to add up, which holds
while each is small and independent of the others.

A named variant is as large as the bundle would be with one number of bits for all weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from mdm_apple.config.types import Variant

from ..errors import ConversionError
from .knapsack import Frontier, frontier
from .recipe import SCHEMA_VERSION, Recipe
from .sensitivity import Option, Sensitivity

VARIANTS: tuple[Variant, ...] = get_args(Variant)
AS_LARGE_AS: dict[Variant, int] = {"quality": 6, "balanced": 4, "compact": 3}  # bits everywhere


@dataclass(frozen=True)
class Chosen:
    """A recipe and its expected size and error.

    bytes: of all packages. snr: of predictions, in dB. bits: stored bits per weight, counting
    palettes and the weights that the recipe keeps at 16 bits.
    """

    recipe: Recipe
    bytes: int
    snr: float
    bits: float


def recipe_for(
    sensitivity: Sensitivity, variant: Variant | None, budget: float | None, least_db: float | None
) -> Chosen:
    """The recipe of a named variant, for a budget in megabytes, or for a quality in decibels.

    Exactly one is given. Raises ConversionError if the budget is too small.
    """
    if variant is not None:
        return variant_recipe(sensitivity, variant)
    if budget is not None:
        return recipe_within(sensitivity, round(budget * 1e6), f"mixed-{budget:g}mb")
    assert least_db is not None, "one of the three is given"
    return recipe_reaching(sensitivity, least_db, f"mixed-{least_db:g}db")


def variant_recipe(sensitivity: Sensitivity, variant: Variant) -> Chosen:
    """The best recipe no larger than the bundle with the variant's bits for all weights."""
    size = sensitivity.uniform_bytes(AS_LARGE_AS[variant])
    return recipe_within(sensitivity, size, variant)


def recipe_within(sensitivity: Sensitivity, size: int, name: str) -> Chosen:
    """The recipe of least error in at most `size` bytes. Raises ConversionError if none fits."""
    room = size - sensitivity.fixed_bytes
    choices = _frontier(sensitivity)
    picked = choices.within(room) if room >= 0 else None
    if picked is None:
        least = sensitivity.fixed_bytes + choices.smallest
        raise ConversionError(
            f"budget: {size / 1e6:g} MB is too small for this bundle, which needs at least "
            f"{math.ceil(least / 1000) / 1000:.3f} MB."
        )
    return _chosen(sensitivity, picked, name)


def recipe_reaching(sensitivity: Sensitivity, snr: float, name: str) -> Chosen:
    """The smallest recipe whose predictions are expected to reach `snr` dB."""
    picked = _frontier(sensitivity).reaching(10 ** (-snr / 10))
    assert picked is not None, "16 bits everywhere cause no error"
    return _chosen(sensitivity, picked, name)


def _frontier(sensitivity: Sensitivity) -> Frontier:
    return frontier([[(o.bytes, o.error) for o in w.options] for w in sensitivity.weights])


def _chosen(sensitivity: Sensitivity, picked: Sequence[int], name: str) -> Chosen:
    bits: dict[str, dict[str, int]] = {}
    options: list[Option] = []
    for weight, index in zip(sensitivity.weights, picked, strict=True):
        options.append(weight.options[index])
        bits.setdefault(weight.package, {})[weight.weight] = options[-1].bits
    recipe = Recipe(SCHEMA_VERSION, name, sensitivity.group, sensitivity.protect_ends, bits)
    error, size = sum(o.error for o in options), sum(o.bytes for o in options)
    return Chosen(
        recipe,
        sensitivity.fixed_bytes + size,
        -10 * math.log10(error) if error > 0 else math.inf,
        8 * size / sensitivity.elements,
    )
