"""The models that come in the box, ready without any download: emoji, and its student."""

from __future__ import annotations

from pathlib import Path

EMOJI = Path(__file__).parent / "models" / "emoji"
EMOJI_STUDENT = EMOJI.with_name("emoji_student")  # the same pictures in 1, 2 or 4 steps
