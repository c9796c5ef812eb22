"""Captioned pictures, and the batches that a training step sees."""
