"""Clips of drawings that move as their caption says."""
