"""The only door for Apple's own files. Tensors are read, nothing is run."""
