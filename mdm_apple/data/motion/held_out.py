"""Which pairs of object and motion training never sees; derived, so that nobody chooses them."""

from __future__ import annotations

from collections.abc import Sequence

from mdm_apple.data.scenes.held_out import hashed


def held_out(objects: Sequence[str], motions: Sequence[str]) -> frozenset[tuple[str, str]]:
    """One motion for each object, and each motion as often as the others, give or take one."""
    queue = sorted(objects, key=lambda name: hashed("motion", name))
    order = sorted(motions, key=lambda name: hashed("motion", name))
    return frozenset((name, order[place % len(order)]) for place, name in enumerate(queue))
