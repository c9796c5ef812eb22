"""Matryoshka diffusion models from training to a phone."""

__version__ = "0.1.0"
