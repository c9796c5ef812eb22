"""What fp16 and the Neural Engine hold; both formats are held to the same numbers."""

from __future__ import annotations

LARGEST_FP16 = 65504.0
HIGHEST_RANK = 5
SHORT_AXIS = 32  # fp16 numbers in 64 bytes; the last axis is padded to that
SMALL_CONSTANT = 1 << 16  # numbers; larger constants are weights, not masks
MOST_FRAMES = 256  # of a clip, as in manifest.schema.json
