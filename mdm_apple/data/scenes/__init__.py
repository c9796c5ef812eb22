"""Captioned scenes of emoji: how many of what, where, in which colour, on which background."""
