"""The mathematics, once for every framework: schedule, noise, predictions, loss."""
