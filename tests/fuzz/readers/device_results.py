"""Results that a device measured, one JSON object per line."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.conversion.device.results import read_results


def read(folder: Path, data: bytes) -> None:
    path = folder / "mac.jsonl"
    path.write_bytes(data)
    read_results(path)
