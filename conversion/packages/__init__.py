"""One package: sealed, split, merged, rewritten, weighed."""
