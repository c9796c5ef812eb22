"""Results of a package as files in a folder: .npy, .png for a picture, .json for labels."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mdm_apple.config.types import NumpyArray
from mdm_apple.errors import system_reason
from mdm_apple.storage.files import FileError, occupied, remove_empty, sync_folder

from .features import Feature
from .pictures import channels_of, from_values

_LONGEST_NAME = 100


def write_results(
    out: Path, results: Mapping[str, Any], features: Mapping[str, Feature]
) -> dict[str, Path]:
    """Write every result; returns its file by name.

    The folder appears complete. If it exists, files of the same names are replaced and others stay.

    Raises FileError, with nothing left of this call.
    """
    data = {name: _encoded(value, features.get(name)) for name, value in results.items()}
    names = _file_names({name: suffix for name, (suffix, _) in data.items()})
    out = out.absolute()
    staged = out.with_name(f".{out.name}.{os.getpid()}.partial")
    missing = [folder for folder in out.parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        for name, (_, content) in data.items():
            with (staged / names[name]).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if occupied(out):
            for file_name in names.values():
                os.replace(staged / file_name, out / file_name)
            sync_folder(out)
        else:
            os.replace(staged, out)
        sync_folder(out.parent)
    except OSError as error:
        raise FileError(f"{out}: cannot be written; {system_reason(error)}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        remove_empty(missing)
    return {name: out / file_name for name, file_name in names.items()}


def _encoded(value: Any, feature: Feature | None) -> tuple[str, bytes]:
    """The ending of the file, and its bytes."""
    if not isinstance(value, np.ndarray):
        return ".json", (json.dumps(_plain(value), ensure_ascii=False, indent=2) + "\n").encode()
    colors = feature.colors if feature is not None else None
    buffer = io.BytesIO()
    if colors is not None and _is_picture(value, channels_of(colors)):
        Image.fromarray(from_values(value, colors)).save(buffer, "PNG")
        return ".png", buffer.getvalue()
    np.save(buffer, value, allow_pickle=False)
    return ".npy", buffer.getvalue()


def _is_picture(value: NumpyArray, channels: int) -> bool:
    return value.ndim == 4 and value.shape[:2] == (1, channels) and value.size > 0


def _plain(value: Any) -> Any:
    """A label, or probabilities by label; JSON knows no NaN."""
    if isinstance(value, dict):
        pairs: dict[Any, float] = value
        return {str(k): v if math.isfinite(v) else None for k, v in pairs.items()}
    return value


def _file_names(suffixes: Mapping[str, str]) -> dict[str, str]:
    """A plain file name for each result; the names of results come from outside."""
    taken: set[str] = set()
    names: dict[str, str] = {}
    for name, suffix in suffixes.items():
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:_LONGEST_NAME].lstrip(".-") or "output"
        found, number = f"{stem}{suffix}", 1
        while found.lower() in taken:  # some file systems do not tell capitals apart
            number += 1
            found = f"{stem}_{number}{suffix}"
        taken.add(found.lower())
        names[name] = found
    return names
