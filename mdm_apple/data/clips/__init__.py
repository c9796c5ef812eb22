"""The user's own clips: files from outside, decoded once into canvases."""
