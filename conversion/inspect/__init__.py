"""The contents of a package, and anything that would slow down the Neural Engine."""
