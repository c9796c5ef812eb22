"""Saves a program as an .aimodel that is a function of its contents: same model, same bytes.

coreai stamps the date, and writes the keys of metadata.json in random order.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from mdm_apple.errors import system_reason
from mdm_apple.storage.tensorfile import write_bytes

from ..bundle.manifest import PROGRAM, PROGRAM_HASH
from ..errors import ConversionError
from .program import most_bytes

METADATA = "metadata.json"
BLOCK = 1 << 22  # bytes


def save_sealed(program: Any, path: Path, license_text: str | None) -> None:
    """Write a program whose constants are named to a new folder `path`. Raises ConversionError."""
    try:
        save(program, path)
    except OSError as error:
        raise ConversionError(f"{path.name}: cannot be written; {system_reason(error)}") from error
    except RuntimeError as error:
        said = (str(error.__cause__ or error).strip().splitlines() or ["nothing"])[0]
        raise ConversionError(
            f"{path.name}: Apple's packages cannot save it ({said}); leave out --format coreai, "
            "and report this with the model's config.json."
        ) from error
    metadata: dict[str, Any] = json.loads((path / METADATA).read_text(encoding="utf-8"))
    metadata.pop("creationDate", None)
    metadata["license"] = license_text or ""
    text = json.dumps(metadata, indent=2, sort_keys=True) + "\n"
    write_bytes(path / METADATA, text.encode())
    for file in path.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def save(program: Any, path: Path) -> None:
    """Write a program with the date and metadata of coreai. Raises OSError or RuntimeError."""
    _check_space(path.parent, most_bytes(program))
    try:
        program.save_asset(path)
    except RuntimeError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise


def _check_space(folder: Path, size: int) -> None:
    """Raise OSError unless a file of this size can be written.

    coreai ends the process when a write fails in its middle.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        if sys.platform == "linux":
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            for start in range(0, size, BLOCK):
                file.write(bytes(min(BLOCK, size - start)))
            file.flush()


def has_own_hash(path: Path) -> bool:
    """Whether main.hash is the SHA-256 of the bytecode; Apple's runtime does not compare them."""
    with (path / PROGRAM).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest() == (path / PROGRAM_HASH).read_bytes()
