"""Work on single packages: seal, split, merge, rewrite, measure."""
