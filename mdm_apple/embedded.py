"""The model that comes in the box: emoji, trained on Twemoji, ready without any download."""

from __future__ import annotations

from pathlib import Path

EMOJI = Path(__file__).parent / "models" / "emoji"
