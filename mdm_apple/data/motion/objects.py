"""The 32 objects of moving clips, chosen by eye: looks that differ, also when they are turned."""

from __future__ import annotations

from mdm_apple.data.dataset import DataError

# English names of emoji; a longer list of objects takes the first of these, so the order stays.
OBJECTS = (
    *("rocket", "cat", "tent", "red apple", "automobile", "dragon", "evergreen tree", "guitar"),
    *("anchor", "dog", "pizza", "key", "whale", "umbrella", "sunflower", "robot"),
    *("trophy", "duck", "red heart", "bicycle", "cactus", "crab", "musical note", "top hat"),
    *("lion", "carrot", "ferry", "snake", "backpack", "rose", "zebra", "paintbrush"),
)


def check_objects(count: int) -> None:
    """Refuse a number of objects that the list does not have. Raises DataError."""
    if not 2 <= count <= len(OBJECTS):
        raise DataError(f"motion: expected 2 to {len(OBJECTS)} objects, got {count}.")
