"""The folder that an app takes: packages, tables, tokenizer, golden record, and their manifest.

A bundle appears whole or not at all. It opens only if its files match the manifest byte for byte:
none missing, none added, no links, nothing outside the folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mdm_apple.bundled_models import MAX_MANIFEST_BYTES
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.strict_json import read_config
from mdm_apple.config.types import Compute, NumpyArray
from mdm_apple.diffusion.schedule import Schedule
from mdm_apple.errors import system_reason
from mdm_apple.storage.files import (
    PARTIAL,
    is_system_file,
    locked_place,
    partials,
    remove_abandoned,
    sync_folder,
)
from mdm_apple.storage.tensorfile import read_tensors, write_bytes

from ..errors import BundleError
from ..layouts.names import POOLED, TEXT_FEATURES, TEXT_MASK, TEXT_SEEN, TOKEN_IDS
from .clips import clip_of, fault_of_clip
from .manifest import (
    PROGRAM,
    PROGRAM_HASH,
    SUFFIXES,
    FileInfo,
    Manifest,
    PackageInfo,
    read_manifest,
    write_manifest,
)
from .readme import README, readme

MANIFEST = "manifest.json"
MAX_FILES = 10_000


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Make one with `Bundle.open`, which checks its files."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Check everything in the folder at `path`; the packages are only compared by hash.

        Raises BundleError with one sentence, or TensorFileError if the tables are not safetensors.
        """
        if not path.is_dir():
            raise BundleError(f"{path}: no such bundle; expected a folder made by mdm convert.")
        manifest = read_manifest(_manifest_text(path / MANIFEST), str(path / MANIFEST))
        _check_listing(path, manifest)
        _check_files(path, manifest)
        _check_own_hashes(path, manifest)
        _check_wiring(path, manifest)
        bundle = cls(path, manifest)
        _check_noise(bundle)
        return bundle

    @property
    def sides(self) -> tuple[int, ...]:
        return tuple(level.side for level in self.manifest.levels)

    @property
    def compute(self) -> Compute:
        """The layers that it was converted with."""
        engine = any(p.compute == "cpuAndNeuralEngine" for p in self.manifest.packages)
        return "ane" if engine else "gpu"

    def file(self, name: str) -> Path:
        """Path of a file or package of the bundle."""
        return self.path.joinpath(*PurePosixPath(name).parts)

    def config(self) -> ModelConfig:
        """The configuration of the model that was converted. Raises BundleError."""
        config = read_config(ModelConfig, self.file(self.manifest.config))
        steps = config.diffusion.schedule.num_steps
        found = (config.sides, steps, clip_of(config))
        if found != (self.sides, self.manifest.num_steps, self.manifest.video):
            raise BundleError(
                f"{self.path}: {self.manifest.config} belongs to another model; copy the bundle "
                "again."
            )
        return config

    def tables(self) -> dict[str, NumpyArray]:
        """See `embedding_tables`; raises BundleError when one is absent or of the wrong length."""
        tables = read_tensors(self.file(self.manifest.tables))
        levels, steps = self.manifest.levels, self.manifest.num_steps
        lengths = {level.alpha_bar: (1, steps + 1) for level in levels}
        lengths |= {self.manifest.alpha_bar: (1, steps + 1)}
        lengths |= {level.time: (2, steps) for level in levels}
        if student := self.manifest.student:
            lengths |= {n: (2, len(student.targets)) for v in levels if (n := v.target_time)}
            lengths |= {n: (2, len(student.weights)) for v in levels if (n := v.guidance)}
        for name, (dimensions, length) in lengths.items():
            if name not in tables:
                raise BundleError(f"{self.path}: {self.manifest.tables} lacks the table {name!r}.")
            if tables[name].ndim != dimensions or len(tables[name]) != length:
                raise BundleError(
                    f"{self.path}: expected {length} rows in the table {name!r}, got shape "
                    f"{tables[name].shape}."
                )
        return tables

    def schedule(self) -> Schedule:
        """The noise schedule of every level from the bundle's own tables, as an app will use it."""
        tables = self.tables()
        levels = tuple(tables[level.alpha_bar] for level in self.manifest.levels)
        return Schedule(tables[self.manifest.alpha_bar], levels)

    def package(self, name: str) -> PackageInfo:
        """The entry of a package. Raises BundleError."""
        for package in self.manifest.packages:
            if package.name == name:
                return package
        raise BundleError(f"{self.path}: holds no package {name!r}.")

    def function(self, info: PackageInfo) -> str | None:
        """The function an entry names in its package; None if the package has only one."""
        shared = [package.path for package in self.manifest.packages].count(info.path) > 1
        return info.name if shared else None


def is_bundle(path: Path) -> bool:
    """Whether the folder is meant to be a bundle, whole or not."""
    return (path / MANIFEST).is_file()


@contextmanager
def bundle_folder(out: Path, overwrite: bool = False) -> Generator[Path]:
    """A new folder that becomes `out` when the block succeeds, and vanishes otherwise.

    What a killed process left half-made for `out` is removed; a bundle that it had put aside comes
    back. Raises BundleError if `out` exists (unless told to overwrite a bundle), if another process
    makes it, or if it cannot be written.
    """
    out = out.absolute()
    try:
        _tidy(out)
        _refuse_occupied(out, overwrite)
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.{os.getpid()}{PARTIAL}")
        temporary.mkdir()
        try:
            with locked_place(temporary):
                yield temporary
                _refuse_occupied(out, overwrite)  # by another process since
                _put_in_place(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise BundleError(f"{out}: cannot be written; {system_reason(error)}") from None


def _refuse_occupied(out: Path, overwrite: bool) -> None:
    occupied = any(out.iterdir()) if out.is_dir() else out.exists() or out.is_symlink()
    if occupied and not overwrite:
        raise BundleError(f"{out}: exists already; choose another --out or add --overwrite.")
    if occupied and not is_bundle(out):
        raise BundleError(
            f"{out}: is not a bundle, so it is not overwritten; choose another --out."
        )


def _put_in_place(temporary: Path, out: Path) -> None:
    previous = _previous(out)
    try:
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        elif out.exists() or out.is_symlink():
            os.rename(out, previous)
        os.rename(temporary, out)
        sync_folder(out.parent)
    finally:
        if previous.exists() and not out.exists():
            os.rename(previous, out)
        shutil.rmtree(previous, ignore_errors=True)


def _previous(out: Path) -> Path:
    """Where a bundle is for the moment in which a new one takes its place."""
    return out.with_name(f".{out.name}.previous")


def _tidy(out: Path) -> None:
    """Refuse if another process makes this bundle; else undo what a killed one left."""
    if not out.parent.is_dir():
        return
    for place in partials(out):
        with locked_place(place) as alone:
            if not alone:
                raise BundleError(
                    f"{out}: another command is making it; choose another --out, or wait for it."
                )
    remove_abandoned(out)
    previous = _previous(out)
    if previous.exists():
        if out.exists():
            shutil.rmtree(previous)
        else:
            os.rename(previous, out)


def finish_bundle(folder: Path, manifest: Manifest) -> None:
    """Write README.md, list and hash the files of the folder, sync them, and write the manifest."""
    write_bytes(folder / README, readme(manifest).encode())
    names = [name for name in sorted(_walk(folder)) if name != MANIFEST]
    for name in names:
        _sync(folder / name)
    files = [_described(folder, name) for name in names]
    complete = dataclasses.replace(manifest, files=tuple(files))
    write_bytes(folder / MANIFEST, write_manifest(complete))
    for parent, _, _ in os.walk(folder):
        sync_folder(Path(parent))


def _manifest_text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path}: expected a file of at most {MAX_MANIFEST_BYTES >> 20} MiB.")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file; expected a bundle made by mdm convert.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read as UTF-8 text ({error}).") from None


def _check_listing(path: Path, manifest: Manifest) -> None:
    """The manifest and the folder must name the same files, all inside."""
    listed = [file.path for file in manifest.files]
    for name in (*listed, *_named(manifest)):
        parts = name.split("/")
        if "\\" in name or "\0" in name or ":" in name or not all(parts) or {".", ".."} & {*parts}:
            raise BundleError(f"{path}: the listed path {name!r} leads out of the bundle.")
    if len({name.casefold() for name in listed}) != len(listed):
        raise BundleError(f"{path}: its manifest lists a file twice.")
    present = set(_walk(path)) - {MANIFEST}
    missing, unlisted = sorted(set(listed) - present), sorted(present - set(listed))
    if missing:
        raise BundleError(f"{path}: {missing[0]} is missing; copy the whole bundle again.")
    if unlisted:
        raise BundleError(f"{path}: {unlisted[0]} is not listed in {MANIFEST}; remove it.")
    folders = {str(parent) for name in listed for parent in PurePosixPath(name).parents}
    for name in _named(manifest):
        if name not in listed and name not in folders:
            raise BundleError(f"{path}: {MANIFEST} names {name}, which it does not list.")


def _named(manifest: Manifest) -> list[str]:
    tokenizer = manifest.text.tokenizer if manifest.text else None
    fixed = [manifest.tables, manifest.config, manifest.golden.path]
    return [*fixed, *(p.path for p in manifest.packages), *([tokenizer] if tokenizer else [])]


def _check_files(path: Path, manifest: Manifest) -> None:
    for file in manifest.files:
        found = _described(path, file.path)
        if found != file:
            reason = "size" if found.size != file.size else "SHA-256"
            raise BundleError(
                f"{path}: the {reason} of {file.path} differs from the manifest; it is damaged "
                "or was altered, so copy the bundle again."
            )


def _check_own_hashes(path: Path, manifest: Manifest) -> None:
    """An .aimodel states the hash of its program, which Apple's runtime does not compare."""
    digests = {file.path: file.sha256 for file in manifest.files}
    sizes = {file.path: file.size for file in manifest.files}
    names = {package.path for package in manifest.packages}
    for name in (name for name in names if name.endswith(SUFFIXES["coreai"])):
        program, stated = f"{name}/{PROGRAM}", f"{name}/{PROGRAM_HASH}"
        if sizes.get(stated) != 32 or (path / stated).read_bytes().hex() != digests.get(program):
            raise BundleError(
                f"{path}: {stated} is not the SHA-256 of its {PROGRAM}; convert the model again."
            )


def _check_wiring(path: Path, manifest: Manifest) -> None:
    """Every input must come from the host or an earlier package, and every level be predicted."""
    sides = [level.side for level in manifest.levels]
    if sides != sorted(set(sides), reverse=True):
        raise BundleError(f"{path}: levels must go from the largest side down, got {sides}.")
    if fault := fault_of_clip(manifest):
        raise BundleError(f"{path}: its video {fault}; convert the model again.")
    if not all(1 <= t <= manifest.num_steps for t in manifest.golden.times):
        raise BundleError(f"{path}: its golden record names steps that its tables do not have.")
    known = {TOKEN_IDS, TEXT_MASK, TEXT_FEATURES}
    if manifest.text is not None and manifest.text.padding == "longest":
        known.add(TEXT_SEEN)
    known |= {name for level in manifest.levels for name in (level.image, level.temb)}
    names: set[str] = set()
    for package in manifest.packages:
        if package.name in names:
            raise BundleError(f"{path}: lists the package {package.name} twice.")
        names.add(package.name)
        for feature in package.inputs:
            if feature.name not in known:
                raise BundleError(
                    f"{path}: {package.name} takes {feature.name!r}, but no earlier package has it."
                )
        known |= {feature.name for feature in package.outputs}
    if manifest.layout == "multifunction":
        stops = sorted((p.side or 0 for p in manifest.packages if p.phase == "step"), reverse=True)
        if stops != sides:
            raise BundleError(f"{path}: expected a function per side {sides}, got {stops}.")
    wanted = [level.prediction for level in manifest.levels]
    if manifest.text:
        wanted.append(POOLED)
    for name in wanted:
        if name not in known:
            raise BundleError(f"{path}: no package outputs {name!r}.")


def _check_noise(bundle: Bundle) -> None:
    """alpha_bar must fall from 1 with every index and stay above 0: a host divides by it."""
    tables = bundle.tables()
    for name in (bundle.manifest.alpha_bar, *(lv.alpha_bar for lv in bundle.manifest.levels)):
        table = tables[name]
        falls = bool((table[1:] < table[:-1]).all())  # false for NaN
        if not (falls and table[0] == 1 and table[-1] > 0):
            raise BundleError(
                f"{bundle.path}: the table {name!r} does not fall from 1 towards 0; it is damaged "
                "or was altered, so convert the model again."
            )


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _described(folder: Path, name: str) -> FileInfo:
    path = folder / name
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileInfo(name, os.fstat(file.fileno()).st_size, digest)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _walk(folder: Path) -> list[str]:
    """All files below the folder, relative, with forward slashes; refuses links and devices.

    What an operating system left there is no part of the bundle.
    """
    found: list[str] = []
    pending = [folder]
    while pending:
        for entry in os.scandir(pending.pop()):
            path = Path(entry.path)
            if is_system_file(entry.name):
                continue
            if entry.is_symlink():
                raise BundleError(f"{path}: is a link, which a bundle must not hold; remove it.")
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif entry.is_file(follow_symlinks=False):
                found.append(path.relative_to(folder).as_posix())
            else:
                raise BundleError(f"{path}: is not a plain file; remove it.")
            if len(found) > MAX_FILES:
                raise BundleError(f"{folder}: holds more than {MAX_FILES} files.")
    return found
