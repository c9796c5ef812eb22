"""The whole pipeline on one page: train, sample, convert, palettize, verify."""
