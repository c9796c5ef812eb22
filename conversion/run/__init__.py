"""A bundle that makes pictures, in Python or behind a pipe."""
