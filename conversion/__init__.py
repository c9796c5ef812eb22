"""From a model folder to a Core ML bundle, proven against the network it came from.

source -> parts (a layout) -> convert -> bundle -> palettize -> verify. `execute` runs saved
packages without Core ML; `run.runtime` uses it to sample from a bundle.
"""
