"""The 32 objects of moving clips, chosen by eye: looks that differ, also when they are turned."""

from __future__ import annotations

# English names of emoji; a longer list of objects takes the first of these, so the order stays.
OBJECTS = (
    *("rocket", "cat", "tent", "red apple", "automobile", "dragon", "evergreen tree", "guitar"),
    *("anchor", "dog", "pizza", "key", "whale", "umbrella", "sunflower", "robot"),
    *("trophy", "duck", "red heart", "bicycle", "cactus", "crab", "musical note", "top hat"),
    *("lion", "carrot", "ferry", "snake", "backpack", "rose", "zebra", "paintbrush"),
)
