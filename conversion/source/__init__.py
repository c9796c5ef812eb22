"""The model to convert, and its reference trajectories."""
