"""PyTorch: network, text encoder, learner, runtime."""
