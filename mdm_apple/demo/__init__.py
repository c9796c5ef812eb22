"""The whole way on one page: train, sample, convert, palettize, verify."""
