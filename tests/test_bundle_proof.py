"""Bundles are the same bytes whoever makes them, and no damage to one goes unnoticed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mdm_apple.conversion.bundle.folder import MANIFEST, Bundle, finish_bundle
from mdm_apple.conversion.bundle.manifest import FileInfo, Manifest, write_manifest
from mdm_apple.conversion.compress.palettize import palettize
from mdm_apple.conversion.compress.settings import Setting
from mdm_apple.conversion.convert import convert
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.execute.schema import model_message
from mdm_apple.conversion.run.packages import Denoiser
from mdm_apple.conversion.source.model import ModelSource
from mdm_apple.errors import MdmError

pytest_plugins = ["bundles"]

Damage = Callable[[Path, random.Random], None]

TWICE = """
import sys
from mdm_apple.cli import main
folder, fp16, small = sys.argv[1:]
for arguments in (
    ["convert", folder, "--out", fp16],
    ["palettize", fp16, "--bits", "4", "--group", "16", "--out", small],
):
    sys.argv = ["mdm", *arguments, "--quiet"]
    main()
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow  # its small twin is in test_convert.py
def test_nested_and_palettized_bundles_are_the_same_bytes_in_another_process(
    tiny_source: ModelSource, model_folder: Path, tmp_path: Path
) -> None:
    """With another hash seed: nothing depends on the order of a set."""
    here = convert(tiny_source, tmp_path / "here")
    small, _ = palettize(here, tmp_path / "here-4", Setting(4, group=16))
    there = [str(tmp_path / name) for name in ("there", "there-4")]
    seed = "77" if os.environ.get("PYTHONHASHSEED") == "12345" else "12345"
    done = subprocess.run(
        [sys.executable, "-c", TWICE, str(model_folder), *there],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for bundle, other in zip((here, small), there, strict=True):
        assert contents(bundle.path) == contents(Path(other))


def use(path: Path) -> None:
    """What every runtime does: open the bundle, then load each of its packages."""
    bundle = Bundle.open(path)
    Denoiser(bundle, "fp16")
    for package in bundle.manifest.packages:
        Package.open(bundle.file(package.path)).load()


def files_of(bundle: Path) -> list[Path]:
    return sorted(p for p in bundle.rglob("*") if p.is_file())


def flip(bundle: Path, pick: random.Random) -> None:
    """One bit, anywhere: each byte of the bundle is equally likely."""
    files = files_of(bundle)
    (file,) = pick.choices(files, [p.stat().st_size for p in files])
    flip_in(file, pick)


def flip_in(file: Path, pick: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[pick.randrange(len(data))] ^= 1 << pick.randrange(8)
    file.write_bytes(data)


def flip_small(bundle: Path, pick: random.Random) -> None:
    """The same with each file equally likely, since weights are most of the bytes."""
    flip_in(pick.choice(files_of(bundle)), pick)


def remove(bundle: Path, pick: random.Random) -> None:
    pick.choice(files_of(bundle)).unlink()


def cut_short(bundle: Path, pick: random.Random) -> None:
    file = pick.choice(files_of(bundle))
    file.write_bytes(file.read_bytes()[: pick.randrange(file.stat().st_size)])


def lengthen(bundle: Path, pick: random.Random) -> None:
    with pick.choice(files_of(bundle)).open("ab") as file:
        file.write(pick.randbytes(1 + pick.randrange(9)))


def exchange(bundle: Path, pick: random.Random) -> None:
    """Two files swap their contents."""
    one, other = pick.sample(files_of(bundle), 2)
    while one.read_bytes() == other.read_bytes():
        one, other = pick.sample(files_of(bundle), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def add(bundle: Path, pick: random.Random) -> None:
    folder = pick.choice([bundle, *(p for p in bundle.rglob("*") if p.is_dir())])
    (folder / f"extra{pick.randrange(100)}").write_bytes(pick.randbytes(3))


def link_out(bundle: Path, pick: random.Random) -> None:
    """A file becomes a link to the same bytes elsewhere."""
    file = pick.choice(files_of(bundle))
    outside = bundle.parent / f"outside-{pick.randrange(1 << 30)}"
    shutil.move(file, outside)
    file.symlink_to(outside)


def altered(bundle: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Write the manifest anew, with the right digest, as someone would who knows the form."""
    manifest = Bundle.open(bundle).manifest
    (bundle / MANIFEST).write_bytes(write_manifest(change(manifest)))


def point_outside(bundle: Path, pick: random.Random) -> None:
    path = pick.choice(["../x", "/etc/passwd", "a/../../x", "..", "a//b", "c:\\x"])
    file = FileInfo(path, 0, "0" * 64)
    altered(bundle, lambda m: dataclasses.replace(m, files=(*m.files, file)))


def other_schema(bundle: Path, pick: random.Random) -> None:
    manifest = bundle / MANIFEST
    data = json.loads(manifest.read_text())
    data["schema"] = pick.choice([0, 2, -1, "1", None, 1.5, True, 10**9])
    manifest.write_text(json.dumps(data, indent=2) + "\n")


def unknown_operation(bundle: Path, pick: random.Random) -> None:
    """In a package, with hashes and digest made right: only loading it can tell."""
    manifest = Bundle.open(bundle).manifest
    path = bundle / pick.choice(manifest.packages).path
    model = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    message = model_message()
    message.ParseFromString(model.read_bytes())
    function = message.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    pick.choice([o for o in operations if o.type != "const"]).type = "summon_numbers"
    model.write_bytes(message.SerializeToString(deterministic=True))
    (bundle / MANIFEST).unlink()
    finish_bundle(bundle, manifest)


DAMAGES: tuple[Damage, ...] = (
    flip,
    flip_small,
    remove,
    cut_short,
    lengthen,
    exchange,
    add,
    link_out,
    point_outside,
    other_schema,
    unknown_operation,
)


def damaged_and_refused(bundle: Bundle, at: Path, number: int) -> None:
    """Damage `number` of the endless random list: refused in one sentence, by an MdmError."""
    pick, damage = random.Random(number), DAMAGES[number % len(DAMAGES)]
    copy = Path(shutil.copytree(bundle.path, at / f"{number}.bundle"))
    damage(copy, pick)
    with pytest.raises(MdmError) as refusal:
        use(copy)
    text = str(refusal.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert "summon_numbers" in text or damage is not unknown_operation
    shutil.rmtree(copy)


def test_whole_bundle_is_used(tiny_bundle: Bundle) -> None:
    use(tiny_bundle.path)


@pytest.mark.parametrize("number", range(2 * len(DAMAGES)))
def test_damage_is_refused(tiny_bundle: Bundle, tmp_path: Path, number: int) -> None:
    damaged_and_refused(tiny_bundle, tmp_path, number)


@pytest.mark.slow
def test_a_hundred_of_a_hundred_damages_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for number in range(1000, 1100):
        damaged_and_refused(tiny_bundle, tmp_path, number)
