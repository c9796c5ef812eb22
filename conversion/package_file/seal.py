"""Makes a saved .mlpackage a function of its contents: same model, same bytes.

coremltools gives the items of a package random identifiers, stamps the date of conversion and
writes protobuf maps in arbitrary order. This module derives the identifiers from paths, removes the
date and sorts the maps.
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from mdm_apple.storage.files import is_system_file

from ..execute.schema import model_message

_CONTENT = ("Manifest.json", "Data")

_DATE_KEY = "com.github.apple.coremltools.conversion_date"


def seal_package(path: Path, name: str, license_text: str | None) -> None:
    """Rewrite the manifest and the model description of a package that was just saved.

    Args:
        name: the package's name in its bundle; recorded in its metadata.
        license_text: licence of the weights; also recorded.
    """
    for entry in path.iterdir():
        if entry.name not in _CONTENT:  # a map for debugging, as large as the program
            entry.unlink()
    manifest = path / "Manifest.json"
    content: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
    entries: dict[str, dict[str, str]] = content["itemInfoEntries"]
    root = entries[content["rootModelIdentifier"]]["path"]
    content["itemInfoEntries"] = {_identifier(e["path"]): e for e in entries.values()}
    content["rootModelIdentifier"] = _identifier(root)
    # write the form to which coremltools rewrites it whenever it opens a package
    text = json.dumps(content, indent=4, sort_keys=True) + "\n"
    manifest.write_text(text, encoding="utf-8")

    model = path / "Data" / root
    message = model_message()
    message.ParseFromString(model.read_bytes())
    metadata = message.description.metadata
    metadata.userDefined.pop(_DATE_KEY, None)
    metadata.userDefined["mdm.package"] = name
    metadata.license = license_text or ""
    model.write_bytes(message.SerializeToString(deterministic=True))
    for file in path.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def copy_package(source: Path, target: Path) -> None:
    """Copy a folder to a new path; raises the OSError of the first file that fails.

    shutil.copytree would continue and then raise a list.
    """
    for path in sorted(source.rglob("*")):
        if any(map(is_system_file, path.relative_to(source).parts)):
            continue
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def _identifier(item_path: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"mdm-apple:{item_path}")).upper()


def package_size(path: Path) -> int:
    """Total bytes of a package's files."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
