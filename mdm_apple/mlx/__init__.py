"""MLX: network, text encoder, learner, runtime, under the names of the PyTorch side."""
