"""manifest.json of a bundle: as it stands, and with its list of files and its digest mended."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np

from mdm_apple.config.strict_json import from_json
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.bundle.manifest import FileInfo, Manifest, read_manifest, write_manifest
from mdm_apple.errors import MdmError
from mdm_apple.storage.tensorfile import write_tensors

STEPS = 4
TABLES = {
    "alpha_bar": np.linspace(1, 0.1, STEPS + 1),
    "alpha_bar_0": np.linspace(1, 0.2, STEPS + 1),
    "time_0": np.zeros((STEPS, 2), np.float32),
}
FILES = ("config.json", "golden.safetensors", "denoiser.mlpackage/Manifest.json")


def read(folder: Path, data: bytes) -> None:
    text = data.decode("utf-8", "replace")  # the product has refused other bytes before
    with suppress(MdmError):
        read_manifest(text, "manifest.json")
    manifest = from_json(Manifest, text, "manifest.json")
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    write_tensors(folder / "tables.safetensors", TABLES)
    names = sorted((*FILES, "tables.safetensors"))
    files = tuple(described(name, (folder / name).read_bytes()) for name in names)
    whole = dataclasses.replace(manifest, files=files)
    (folder / "manifest.json").write_bytes(write_manifest(whole))
    Bundle.open(folder)


def described(name: str, data: bytes) -> FileInfo:
    return FileInfo(name, len(data), sha256(data).hexdigest())
