"""Layers that are faster on a CPU than PyTorch's own, each above a measured size."""
