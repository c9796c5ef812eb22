"""Whose are the masks of dropout? Each row of a batch has its own, on any number of processes."""

from __future__ import annotations

import hashlib

from mdm_apple.config.types import Indices

# In training.json. Runs that were begun without it go on as they were: each process draws for all
# its rows together, so their masks depend on the number of processes and parts.
DROPOUT, BY_ROW = "dropout", "rows"


def row_seeds(seed: int, step: int, rows: Indices) -> list[int]:
    """Numbers of 62 bits, from which the masks of these rows of a step follow."""
    texts = [b"dropout %d %d %d" % (seed, step, row) for row in rows.tolist()]
    digests = [hashlib.sha256(text).digest() for text in texts]
    return [int.from_bytes(digest[:8], "big") >> 2 for digest in digests]
