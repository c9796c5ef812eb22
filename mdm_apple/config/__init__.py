"""What a model is: frozen dataclasses, strict JSON, presets, names and shapes of its weights."""
