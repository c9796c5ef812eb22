"""Bundles that tests need, each converted once on this machine and copied from then on.

A conversion repeats to the byte, so a key over all that it depends on names its result: the code
that it reaches, the packages below it, the processor (the golden record holds what torch computes
here), the model and the options. test_convert.py converts once outside the cache and compares.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from import_graph import ROOT, closures, module_files

from mdm_apple.config.strict_json import to_json
from mdm_apple.conversion.bundle.folder import MANIFEST, Bundle
from mdm_apple.conversion.compress.palettize import PalettizeReport, WeightReport, palettize
from mdm_apple.conversion.compress.settings import Setting
from mdm_apple.conversion.convert import ConvertOptions, convert
from mdm_apple.conversion.source.model import ModelSource

UNUSED_DAYS = 3  # entries of code that has changed since


def converted(source: ModelSource, out: Path, options: ConvertOptions | None = None) -> Bundle:
    """What `convert` writes to `out`: a copy, which a test may change."""
    options = options or ConvertOptions()
    key = digest([*surroundings("mdm_apple.conversion.convert"), repr(options), *content(source)])
    place = kept(key, lambda folder: convert(source, folder / "bundle", options))
    shutil.copytree(place / "bundle", out)
    return Bundle.open(out)


def palettized(
    bundle: Bundle, out: Path, setting: Setting, max_package_mb: float | None = None
) -> tuple[Bundle, PalettizeReport]:
    """What `palettize` writes to `out` and reports: a copy, which a test may change."""

    def make(folder: Path) -> None:
        made = palettize(bundle, folder / "bundle", setting, max_package_mb=max_package_mb)
        (folder / "report.json").write_text(json.dumps(dataclasses.asdict(made[1])))

    given = [repr(setting), repr(max_package_mb), bundle.file(MANIFEST).read_bytes()]
    key = digest([*surroundings("mdm_apple.conversion.compress.palettize"), *given])
    place = kept(key, make)
    shutil.copytree(place / "bundle", out)
    report = json.loads((place / "report.json").read_text())
    weights = tuple(WeightReport(**weight) for weight in report.pop("weights"))
    return Bundle.open(out), PalettizeReport(weights=weights, **report)


def remembered(given: Iterable[str | bytes], compute: Callable[[], Any]) -> Any:
    """What other packages compute from the same numbers, as JSON."""
    place = kept(
        digest([*machine(), *given]),
        lambda folder: (folder / "result.json").write_text(json.dumps(compute())),
    )
    return json.loads((place / "result.json").read_text())


def kept(key: str, make: Callable[[Path], object]) -> Path:
    """The folder of that key; `make` fills it the first time, for all processes that ask."""
    root = Path(os.environ.get("MDM_TEST_CACHE", ROOT / ".cache" / "test-bundles"))
    root.mkdir(parents=True, exist_ok=True)
    place = root / key
    with (root / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            with tempfile.TemporaryDirectory(dir=root) as scratch:
                new = Path(scratch) / "new"
                new.mkdir()
                make(new)
                new.rename(place)
            forget_unused(root)
        os.utime(place)
    return place


def forget_unused(root: Path) -> None:
    """Another process may be at work here, so what vanishes meanwhile is no fault."""
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for entry in root.iterdir():
        with suppress(FileNotFoundError):
            if entry.stat().st_mtime < oldest:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256 over the parts and where they end."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


@cache
def surroundings(module: str) -> tuple[str | bytes, ...]:
    """What decides the result besides what is given: the code that `module` reaches, and where."""
    files = module_files()
    code = [files[name].read_bytes() for name in sorted(closures(files)(module))]
    code += [file.read_bytes() for file in sorted((ROOT / "conversion").rglob("*.json"))]
    return (*code, *machine())


def machine() -> tuple[str, ...]:
    """Packages, processor and threads."""
    packages = ("torch", "coremltools", "numpy", "safetensors", "coreai-core", "coreai-torch")
    return (
        *(installed_version(name) for name in packages),
        platform.python_version(),
        processor(),
        torch.backends.cpu.get_cpu_capability(),
        f"{torch.get_num_threads()} threads",
    )


def installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """Its instructions, which libraries choose their loops by."""
    described = Path("/proc/cpuinfo")
    if not described.is_file():
        return platform.platform()
    flags = {line for line in described.read_text().splitlines() if line.startswith("flags")}
    return "\n".join(sorted({platform.machine(), *flags}))


def content(source: ModelSource) -> Iterable[str | bytes]:
    """A model: configuration, tokenizer, and every number of its networks."""
    yield to_json(source.config)
    yield source.tokenizer or b"none"
    for module in (source.net, source.encoder):
        for name, value in (module.state_dict() if module is not None else {}).items():
            yield f"{name} {value.dtype} {tuple(value.shape)}"
            yield value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
