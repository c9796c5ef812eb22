"""Checks that a bundle computes the same as its model."""
