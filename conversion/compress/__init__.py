"""Smaller weights: palettes, integers, and how many bits each weight gets."""
