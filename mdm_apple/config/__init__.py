"""Definition of a model: frozen dataclasses, strict JSON, presets, names and shapes of weights."""
