"""The only entry for Apple's own files. Tensors are read, nothing is executed."""
