"""Runs a bundle to make pictures, in Python or behind a pipe."""
