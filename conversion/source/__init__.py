"""What is converted: the model, and its trajectories to compare with."""
