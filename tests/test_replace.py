"""Packages with palettes in the place of weights are what coremltools itself would have written."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_cache import converted

from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.compress.kmeans import palettes_of
from mdm_apple.conversion.compress.palettize import palettize
from mdm_apple.conversion.compress.plan import uniform_plan
from mdm_apple.conversion.compress.settings import Setting
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.coreml import quiet_coremltools
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.execute.constants import load_constants
from mdm_apple.conversion.execute.graph import BlobReference, Literal
from mdm_apple.conversion.source.model import ModelSource

pytest_plugins = ["bundles"]


def by_coremltools(source: Path, target: Path, names: set[str], setting: Setting) -> Package:
    """The same palettes, put in by coremltools."""

    def palette(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (found,) = palettes_of([weight.astype(np.float16)], setting.bits)
        return found.values.astype(weight.dtype), found.indices

    grouped = {"granularity": "per_grouped_channel", "group_size": setting.group}
    with quiet_coremltools() as coremltools:
        optimize = importlib.import_module("coremltools.optimize.coreml")
        each = optimize.OpPalettizerConfig(
            mode="custom",
            lut_function=palette,
            weight_threshold=0,
            **(grouped if setting.group else {}),
        )
        config = optimize.OptimizationConfig(
            global_config=None, op_name_configs=dict.fromkeys(sorted(names), each)
        )
        model = coremltools.models.MLModel(str(source), skip_model_load=True)
        optimize.palettize_weights(model, config).save(str(target))
    return Package.open(target)


def lookups(package: Package) -> dict[str, dict[str, Any]]:
    """The parameters of every palette lookup by its output: types, places, and the numbers."""
    found: dict[str, dict[str, Any]] = {}
    for operation in package.function().operations:
        if operation.kind == "constexpr_lut_to_dense":
            (name, kind) = operation.outputs[0]
            parameters: dict[str, Any] = {"type": kind}
            for key, (value,) in operation.inputs.items():
                assert isinstance(value, Literal)
                in_file = isinstance(value.value, BlobReference)
                numbers = (
                    package.weight_file(value.value.file).read(
                        value.value.offset, value.type.dtype, value.type.count
                    )
                    if isinstance(value.value, BlobReference)
                    else np.asarray(value.value)
                )
                parameters[key] = (value.type, in_file, numbers.reshape(-1).tolist())
            found[name.removesuffix("_palettized")] = parameters
    return found


@pytest.fixture(scope="module")
def older_bundle(tiny_source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("older") / "tiny-17.bundle"
    return converted(tiny_source, out, ConvertOptions("monolith", target="iOS17"))


@pytest.mark.parametrize("setting", [Setting(2), Setting(6), Setting(3, group=8)])
def test_lookups_are_those_of_coremltools(
    tiny_bundle: Bundle, tmp_path: Path, setting: Setting
) -> None:
    compare(tiny_bundle, tmp_path, setting, "conditioning")


@pytest.mark.slow
def test_lookups_of_convolutions_are_those_of_coremltools(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    compare(tiny_bundle, tmp_path, Setting(4, group=16), "denoiser")


@pytest.mark.parametrize("setting", [Setting(4), Setting(2)])
def test_lookups_of_older_systems_are_those_of_coremltools(
    older_bundle: Bundle, tmp_path: Path, setting: Setting
) -> None:
    compare(older_bundle, tmp_path, setting, "conditioning")


def compare(bundle: Bundle, folder: Path, setting: Setting, name: str) -> None:
    made, _ = palettize(bundle, folder / "made.bundle", setting)
    ours = Package.open(made.file(f"{name}.mlpackage"))
    names = {p.weight.name for p in uniform_plan(bundle, setting) if p.setting}
    source = folder / "source.mlpackage"
    source.mkdir()
    for file in bundle.file(f"{name}.mlpackage").rglob("*"):
        copy = source / file.relative_to(bundle.file(f"{name}.mlpackage"))
        if file.is_dir():
            copy.mkdir(exist_ok=True, parents=True)
        else:
            copy.parent.mkdir(exist_ok=True, parents=True)
            copy.write_bytes(file.read_bytes())
    theirs = by_coremltools(source, folder / "theirs.mlpackage", names, setting)
    assert ours.spec_version == theirs.spec_version
    assert len(lookups(ours)) >= 3
    assert lookups(ours) == lookups(theirs)
    mine, other = (
        sorted(f"{o.kind} {o.outputs}" for o in p.function().operations if not o.is_constant)
        for p in (ours, theirs)
    )
    assert mine == other  # but for the order of independent operations


def test_coremltools_opens_what_was_written(tiny_bundle: Bundle, tmp_path: Path) -> None:
    made, _ = palettize(tiny_bundle, tmp_path / "made.bundle", Setting(4, group=16))
    path = made.file("denoiser.mlpackage")
    package = Package.open(path)
    wanted = load_constants(package.function(), package.weight_file, fp16=False)
    with quiet_coremltools() as coremltools:
        model = coremltools.models.MLModel(str(path), skip_model_load=True)
        loader = importlib.import_module("coremltools.converters.mil.frontend.milproto.load")
        program = loader.load(
            model.get_spec(), model.get_spec().specificationVersion, model.weights_dir
        )
    checked = 0
    for operation in program.functions["main"].operations:
        if operation.op_type == "constexpr_lut_to_dense":
            name = operation.outputs[0].name
            got = np.asarray(operation.materialized_val_inference(), np.float32)
            assert np.array_equal(got, np.asarray(wanted[name])), name
            checked += 1
    assert checked > 10


def test_shapes_of_palettes_follow_the_groups(tiny_bundle: Bundle, tmp_path: Path) -> None:
    made, report = palettize(tiny_bundle, tmp_path / "made.bundle", Setting(4, group=16))
    package = Package.open(made.file("denoiser.mlpackage"))
    constants = load_constants(package.function(), package.weight_file, fp16=False)
    compressed = {w.name for w in report.weights if w.package == "denoiser" and w.bits == 4}
    for name in compressed:
        weight = np.asarray(constants[name])
        for start in range(0, len(weight), 16):
            assert len(np.unique(weight[start : start + 16])) <= 16
    assert any(len(np.unique(np.asarray(constants[name]))) > 16 for name in compressed)
