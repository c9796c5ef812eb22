"""How a model learns: settings, the loop, runs and their folders, distillation."""
