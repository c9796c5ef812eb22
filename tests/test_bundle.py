"""A bundle is whole, unaltered and self-contained, or it is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import jsonschema
import numpy as np
import pytest

from mdm_apple.cli import group
from mdm_apple.conversion.bundle.folder import MANIFEST, Bundle, bundle_folder, finish_bundle
from mdm_apple.conversion.bundle.manifest import (
    FileInfo,
    Manifest,
    StudentInfo,
    schema,
    write_manifest,
)
from mdm_apple.conversion.bundle.readme import README, readme
from mdm_apple.conversion.compress.palettize import PalettizeReport
from mdm_apple.conversion.coreml import quiet_coremltools
from mdm_apple.conversion.errors import BundleError
from mdm_apple.conversion.package_file.seal import copy_package
from mdm_apple.conversion.source.model import ModelSource
from mdm_apple.diffusion.schedule import build_schedule
from mdm_apple.storage.tensorfile import write_tensors

pytest_plugins = ["bundles"]


@pytest.fixture
def copied(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle"))


def rewrite(path: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Alter a manifest as someone would who knows how the digest is made."""
    manifest = Bundle.open(path).manifest
    (path / MANIFEST).write_bytes(write_manifest(change(manifest)))


def test_manifest_is_valid_by_its_schema(tiny_bundle: Bundle) -> None:
    data = json.loads((tiny_bundle.path / MANIFEST).read_text())
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(schema()).validate(data)
    assert [level["side"] for level in data["levels"]] == [16, 8]
    assert [package["phase"] for package in data["packages"]] == ["text", "prompt", "step"]
    assert data["created"] is None


def test_tables_are_the_schedule_to_the_last_bit(
    tiny_bundle: Bundle, tiny_source: ModelSource
) -> None:
    tables = tiny_bundle.tables()
    config = tiny_source.config
    schedule = build_schedule(config.diffusion.schedule, config.model.scales)
    assert tables["alpha_bar"].dtype == np.float64
    assert np.array_equal(tables["alpha_bar"], schedule.base)
    for side, table in zip(config.sides, schedule.tables, strict=True):
        assert np.array_equal(tables[f"alpha_bar_{side}"], table)
        assert tables[f"time_{side}"].shape == (1000, 64)
        assert tables[f"time_{side}"].dtype == np.float32


def test_flipped_byte_in_any_file_is_refused(copied: Path) -> None:
    pick = random.Random(0)
    files = [p for p in copied.rglob("*") if p.is_file()]
    assert len(files) > 10
    for file in files:
        whole = file.read_bytes()
        for _ in range(4):
            place, bit = pick.randrange(len(whole)), 1 << pick.randrange(8)
            damaged = bytearray(whole)
            damaged[place] ^= bit
            file.write_bytes(damaged)
            with pytest.raises(BundleError):
                Bundle.open(copied)
        file.write_bytes(whole)
    Bundle.open(copied)


def test_reformatted_manifest_is_refused(copied: Path) -> None:
    manifest = copied / MANIFEST
    manifest.write_text(manifest.read_text().replace("  ", "\t", 1))
    with pytest.raises(BundleError, match="altered"):
        Bundle.open(copied)


def test_missing_truncated_and_extra_files_are_refused(copied: Path) -> None:
    golden = copied / "golden.safetensors"
    whole = golden.read_bytes()
    golden.unlink()
    with pytest.raises(BundleError, match=r"golden\.safetensors is missing"):
        Bundle.open(copied)
    golden.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match=r"the size of golden\.safetensors differs"):
        Bundle.open(copied)
    golden.write_bytes(whole)
    (copied / "notes.txt").write_text("hello")
    with pytest.raises(BundleError, match=r"notes\.txt is not listed"):
        Bundle.open(copied)


@pytest.mark.parametrize("name", ["alpha_bar", "alpha_bar_16", "alpha_bar_8"])
@pytest.mark.parametrize(
    "place_and_value", [(0, 0.999), (1, 1.0), (500, 0.0), (500, np.nan), (-1, 0.0), (-1, -1e-9)]
)
def test_noise_that_does_not_rise_with_the_index_is_refused(
    name: str, place_and_value: tuple[int, float], copied: Path
) -> None:
    place, value = place_and_value
    bundle = Bundle.open(copied)
    tables = {k: np.array(v) for k, v in bundle.tables().items()}
    tables[name][place] = value
    write_tensors(copied / bundle.manifest.tables, tables)
    (copied / MANIFEST).unlink()
    finish_bundle(copied, bundle.manifest)
    with pytest.raises(BundleError, match=f"the table '{name}' does not fall from 1"):
        Bundle.open(copied)


def test_files_are_synced_when_they_are_made_and_not_when_they_are_read(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync = os.fsync

    def counted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    manifest = Bundle.open(copied).manifest
    assert synced == []
    (copied / MANIFEST).unlink()
    finish_bundle(copied, manifest)
    made = [copied, *copied.rglob("*")]
    assert {path.stat().st_ino for path in made} == set(synced)


def test_links_are_refused(copied: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    shutil.move(copied / "golden.safetensors", outside)
    (copied / "golden.safetensors").symlink_to(outside)
    with pytest.raises(BundleError, match="is a link"):
        Bundle.open(copied)


@pytest.mark.parametrize(
    "name", ["../config.json", "/etc/hosts", "a/../../b", "a\\b", "./x", "C:x"]
)
def test_paths_that_lead_out_are_refused(copied: Path, name: str) -> None:
    (copied.parent / "config.json").write_text("{}")

    def escape(manifest: Manifest) -> Manifest:
        return dataclasses.replace(manifest, files=(*manifest.files, FileInfo(name, 2, "0" * 64)))

    rewrite(copied, escape)
    with pytest.raises(BundleError, match="leads out"):
        Bundle.open(copied)


def test_named_files_must_be_listed(copied: Path) -> None:
    rewrite(copied, lambda m: dataclasses.replace(m, tables="other.safetensors"))
    with pytest.raises(BundleError, match=r"other\.safetensors, which it does not list"):
        Bundle.open(copied)


def test_unknown_schema_version_is_refused(copied: Path) -> None:
    manifest = copied / MANIFEST
    manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 3'))
    with pytest.raises(BundleError, match="schema 3, but this version reads 1 and 2"):
        Bundle.open(copied)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1}', '{"schema": true}', "null"])
def test_manifest_that_is_none_is_refused(copied: Path, text: str) -> None:
    (copied / MANIFEST).write_text(text)
    with pytest.raises(BundleError):
        Bundle.open(copied)


def test_input_that_nothing_provides_is_refused(copied: Path) -> None:
    rewrite(copied, lambda m: dataclasses.replace(m, packages=m.packages[:1] + m.packages[2:]))
    with pytest.raises(BundleError, match="but no earlier package has it"):
        Bundle.open(copied)


def test_the_padding_that_is_seen_is_no_input_where_all_of_it_is(copied: Path) -> None:
    def taking_it(manifest: Manifest) -> Manifest:
        first, *rest = manifest.packages
        seen = dataclasses.replace(first.inputs[0], name="text_seen")
        first = dataclasses.replace(first, inputs=(*first.inputs, seen))
        return dataclasses.replace(manifest, packages=(first, *rest))

    rewrite(copied, taking_it)
    with pytest.raises(BundleError, match="takes 'text_seen', but no earlier package has it"):
        Bundle.open(copied)


def test_opening_a_package_by_coremltools_leaves_the_bundle_intact(copied: Path) -> None:
    with quiet_coremltools() as coremltools:
        coremltools.models.MLModel(str(copied / "conditioning.mlpackage"), skip_model_load=True)
    Bundle.open(copied)


@pytest.mark.guards("an error while replacing a model deletes the others")
def test_failure_leaves_what_was_there(copied: Path) -> None:
    before = sorted(copied.parent.rglob("*"))

    def fail_halfway() -> None:
        with bundle_folder(copied, overwrite=True) as folder:
            (folder / "half").write_text("written")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert sorted(copied.parent.rglob("*")) == before
    Bundle.open(copied)


def test_only_bundles_are_overwritten_and_only_when_told(
    copied: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="--overwrite"), bundle_folder(copied):
        pass
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "one.jpg").write_text("precious")
    with pytest.raises(BundleError, match="not a bundle"), bundle_folder(photos, overwrite=True):
        pass
    with bundle_folder(copied, overwrite=True) as folder:
        for entry in tiny_bundle.path.iterdir():
            copy = shutil.copytree if entry.is_dir() else shutil.copyfile
            copy(entry, folder / entry.name)
        finish_bundle(folder, dataclasses.replace(tiny_bundle.manifest, variant="renamed"))
    assert Bundle.open(copied).manifest.variant == "renamed"
    assert {p.name for p in tmp_path.iterdir()} == {"copy.bundle", "photos"}


def test_readme_says_in_plain_words_what_the_folder_is(
    tiny_bundle: Bundle, tiny_palettized: tuple[Bundle, PalettizeReport]
) -> None:
    plain, small = ((b.path / README).read_text() for b in (tiny_bundle, tiny_palettized[0]))
    assert "pictures of 16 x 16 pixels, and the same picture at 8 x 8 on the way" in plain
    assert "Variant `fp16`" in plain
    assert "Variant `palettized-4`" in small
    assert "from 4 bits" in small
    for package in tiny_bundle.manifest.packages:
        assert f"| `{package.path}` | {package.bytes / 1e6:.1f} | 16 bits |" in plain
    told = [line.strip() for line in plain.splitlines() if line.startswith("    mdm ")]
    assert [line.split()[1] for line in told] == ["sample", "verify"]
    assert "pip install 'mdm-apple[convert]'" in plain
    assert "On a Mac add `--backend coreml`" in plain
    for line in told:  # commands that exist, with options that they have
        name, *options = shlex.split(line)[1:]
        command = group.get_command(click.Context(group), name)
        assert command is not None
        command.make_context(name, options)


def test_readme_of_other_bundles_says_what_these_need(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    assert manifest.text is not None
    licensed = dataclasses.replace(manifest.provenance, license="CC-BY-4.0")
    student = StudentInfo((1000,), (1000, 0), ())
    text = dataclasses.replace(manifest.text, encoder=None)
    other = dataclasses.replace(manifest, text=text, student=student, provenance=licensed)
    assert "`mdm embed`" in readme(other)
    assert "--features FILE --sampler student --steps 1 --out" in readme(other)
    assert "Licence of the weights: CC-BY-4.0" in readme(other)
    assert "It takes no prompts." in readme(dataclasses.replace(manifest, text=None))
    core_ai = readme(dataclasses.replace(manifest, format="coreai"))
    assert "pip install 'mdm-apple[coreai]'" in core_ai
    assert "On a Mac add `--backend coreai`" in core_ai


@pytest.mark.parametrize(
    "name",
    [
        *(".DS_Store", "._manifest.json", "Thumbs.db", "desktop.ini", "__MACOSX/._manifest.json"),
        *("ehthumbs.db", "$RECYCLE.BIN/x", "System Volume Information/x", ".AppleDouble/x"),
        ".apdisk",
    ],
)
def test_files_of_operating_systems_are_no_part_of_a_bundle(
    tiny_bundle: Bundle, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "copy.bundle"
    shutil.copytree(tiny_bundle.path, folder)
    package = next(p.path for p in tiny_bundle.manifest.packages)
    for place in (folder / name, folder / package / name):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"\0")
    opened = Bundle.open(folder)
    assert opened.manifest == tiny_bundle.manifest
    copy_package(folder / package, tmp_path / "package")
    assert not (tmp_path / "package" / name).exists()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"mine\.txt is not listed"):
        Bundle.open(folder)
