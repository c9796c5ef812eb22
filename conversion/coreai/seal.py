"""Saves a program as an .aimodel that is a function of its contents: same model, same bytes.

coreai stamps the date, and writes the keys of metadata.json in random order.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mdm_apple.errors import system_reason
from mdm_apple.storage.tensorfile import write_bytes

from ..bundle.manifest import PROGRAM, PROGRAM_HASH
from ..errors import ConversionError

METADATA = "metadata.json"


def save_sealed(program: Any, path: Path, license_text: str | None) -> None:
    """Write a program whose constants are named to a new folder `path`. Raises ConversionError."""
    try:
        program.save_asset(path)
    except (RuntimeError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = (
            system_reason(cause)
            if isinstance(cause, OSError)
            else ("the disk is full or a file size limit is reached; free space and try again.")
        )
        raise ConversionError(f"{path.name}: cannot be written; {reason}") from error
    metadata: dict[str, Any] = json.loads((path / METADATA).read_text(encoding="utf-8"))
    metadata.pop("creationDate", None)
    metadata["license"] = license_text or ""
    text = json.dumps(metadata, indent=2, sort_keys=True) + "\n"
    write_bytes(path / METADATA, text.encode())
    for file in path.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def has_own_hash(path: Path) -> bool:
    """Whether main.hash is the SHA-256 of the bytecode; Apple's runtime does not compare them."""
    with (path / PROGRAM).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest() == (path / PROGRAM_HASH).read_bytes()
