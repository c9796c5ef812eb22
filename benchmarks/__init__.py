"""Measurements. Nothing here is a test: see RESULTS.md for what came out, and on what machine."""
