"""Compressed weights in Core AI packages compute what their dense weights do in Apple's runtime."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_cache import converted, palettized
from coreai_wheels import needs_coreai
from numpy.typing import NDArray

from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.bundle.manifest import PackageInfo
from mdm_apple.conversion.compress.choose_bits import variant_recipe
from mdm_apple.conversion.compress.compressed_network import CompressedNetwork
from mdm_apple.conversion.compress.palettize import (
    PalettizeReport,
    palettize,
    palettize_by_recipe,
    planned_palettes,
)
from mdm_apple.conversion.compress.plan import uniform_plan
from mdm_apple.conversion.compress.recipe import recipe_plan
from mdm_apple.conversion.compress.scaled_integers import scaled_integers
from mdm_apple.conversion.compress.sensitivity import measure_sensitivity
from mdm_apple.conversion.compress.settings import PlannedWeight, Setting
from mdm_apple.conversion.compress.weighted_package import open_weights
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.coreai import program as program_module
from mdm_apple.conversion.coreai.program import (
    Constant,
    constants,
    editing,
    open_program,
    read_program,
)
from mdm_apple.conversion.coreai.runtime import AppleRuntime
from mdm_apple.conversion.coreai.seal import has_own_hash, save_sealed
from mdm_apple.conversion.coreai.weight_names import names_by_digest
from mdm_apple.conversion.coreai.weights import weights_of
from mdm_apple.conversion.errors import ConversionError
from mdm_apple.conversion.execute import ExecutionError
from mdm_apple.conversion.psnr import closeness
from mdm_apple.conversion.source.model import ModelSource
from mdm_apple.errors import MissingPackageError

pytest_plugins = ["bundles"]
pytestmark = [needs_coreai, pytest.mark.bundle]

Weights = dict[str, NDArray[np.float16]]
BAR = 70  # dB; rounding to fp16 in another order gives about 82
PART = "core_8"


@pytest.fixture(scope="module")
def small(tiny_source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Layers for the Neural Engine, a package per way through a level."""
    out = tmp_path_factory.mktemp("bundles") / "nested.bundle"
    return converted(tiny_source, out, ConvertOptions(format="coreai"))


@pytest.fixture(scope="module")
def plain(tiny_source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Layers of training, some of whose weights are stored transposed."""
    out = tmp_path_factory.mktemp("bundles") / "plain.bundle"
    return converted(tiny_source, out, ConvertOptions("monolith", format="coreai"))


@pytest.fixture(scope="module")
def shared(tiny_source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two functions that share their weights."""
    out = tmp_path_factory.mktemp("bundles") / "shared.bundle"
    return converted(tiny_source, out, ConvertOptions("multifunction", format="coreai"))


@pytest.fixture(scope="module")
def runtime() -> Iterator[AppleRuntime]:
    apple = AppleRuntime()
    yield apple
    apple.close()


# --- in Apple's runtime ---------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [Setting(8), Setting(6), Setting(4), Setting(2)])
def test_palettes_compute_what_their_dense_weights_do(
    small: Bundle, runtime: AppleRuntime, setting: Setting, tmp_path: Path
) -> None:
    made, _ = palettized(small, tmp_path / "made.bundle", setting)
    for info in small.manifest.packages:
        dense = dense_palettes(small, info, setting)
        assert len(dense) > 3
        assert agreement(runtime, small, made, info, dense, tmp_path) >= BAR


@pytest.mark.parametrize(
    ("setting", "name"), [(Setting(3, group=16), "plain"), (Setting(4, group=8), "shared")]
)
def test_palettes_of_groups_follow_the_output_channels(
    request: pytest.FixtureRequest,
    runtime: AppleRuntime,
    setting: Setting,
    name: str,
    tmp_path: Path,
) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    made, _ = palettized(bundle, tmp_path / "made.bundle", setting)
    first = next(p for p in bundle.manifest.packages if p.path == "denoiser.aimodel")
    weights = {w.name: w for w in open_weights(bundle, first).weights}
    dense = dense_palettes(bundle, first, setting)
    assert any(weights[n].out_axis != 0 for n in dense), "some are stored transposed"
    for info in (p for p in bundle.manifest.packages if p.path == first.path):
        assert agreement(runtime, bundle, made, info, dense, tmp_path) >= BAR


@pytest.mark.parametrize("setting", [Setting(8, "linear"), Setting(4, "linear")])
@pytest.mark.parametrize("name", ["small", "plain"])
def test_integers_and_scales_compute_what_their_dense_weights_do(
    request: pytest.FixtureRequest,
    runtime: AppleRuntime,
    setting: Setting,
    name: str,
    tmp_path: Path,
) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    made, _ = palettized(bundle, tmp_path / "made.bundle", setting)
    for info in bundle.manifest.packages:
        package = open_weights(bundle, info)
        dense: Weights = {}
        for p in planned(bundle, info, setting):
            out_axis, in_axis = p.weight.out_axis, p.weight.in_axis
            assert out_axis is not None
            assert in_axis is not None
            numbers = package.numbers(p.weight.name)
            dense[p.weight.name] = scaled_integers(numbers, out_axis, in_axis, setting.bits).dense()
            assert np.abs(dense[p.weight.name] - numbers).max() < np.abs(numbers).max() / (
                200 if setting.bits == 8 else 12
            )
        assert agreement(runtime, bundle, made, info, dense, tmp_path) >= BAR


def test_one_wrong_index_would_be_seen(
    small: Bundle, runtime: AppleRuntime, tmp_path: Path
) -> None:
    made, _ = palettized(small, tmp_path / "made.bundle", Setting(4))
    info, wrong = small.package(PART), tmp_path / f"{PART}.aimodel"
    program = read_program(made.file(info.path))
    with editing(program):
        constant = next(c for c in constants(program) if c.dtype == "ui4")
        data = constant.read()
        data[0] ^= 0xF  # the first index; the palette ascends, so it moves far
        replace(constant, data)
    save_sealed(program, wrong, None)
    dense = dense_palettes(small, info, Setting(4))
    right = with_weights(small.file(info.path), tmp_path / "dense.aimodel", dense)
    inputs = inputs_of(info)
    assert near(runtime.run(right, "main", inputs), runtime.run(wrong, "main", inputs)) < BAR


# --- beside Core ML -------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [Setting(4), Setting(3, group=16), Setting(8, "linear")])
@pytest.mark.parametrize(("ours", "theirs"), [("small", "nested"), ("plain", "tiny_bundle")])
def test_the_same_weights_get_the_same_as_in_core_ml(
    request: pytest.FixtureRequest, ours: str, theirs: str, setting: Setting, tmp_path: Path
) -> None:
    bundles: list[Bundle] = [request.getfixturevalue(name) for name in (ours, theirs)]
    (made, report), (other, wanted) = (
        palettized(bundle, tmp_path / f"{k}.bundle", setting) for k, bundle in enumerate(bundles)
    )
    assert outcome(report) == outcome(wanted)
    assert report.snr == pytest.approx(wanted.snr, abs=1e-6)
    assert made.manifest.variant == other.manifest.variant
    names = {p.path for p in made.manifest.packages}
    assert report.bytes_after <= 1.03 * wanted.bytes_after + 20_000 * len(names)
    assert {p.weight_bits for p in made.manifest.packages} == {setting.bits}
    assert all(has_own_hash(made.file(name)) for name in names)


def test_one_recipe_fits_the_bundles_of_both_formats(
    plain: Bundle, tiny_bundle: Bundle, tiny_source: ModelSource, tmp_path: Path
) -> None:
    measured = [measure_sensitivity(b, tiny_source, prompts=1) for b in (plain, tiny_bundle)]
    for one, other in zip(*(m.weights for m in measured), strict=True):
        assert (one.package, one.weight) == (other.package, other.weight)
        assert [o.error for o in one.options] == pytest.approx(
            [o.error for o in other.options], rel=1e-4
        )
    chosen = [variant_recipe(m, "balanced") for m in measured]
    for source, target in ((0, tiny_bundle), (1, plain)):
        bits = {p.setting.bits for p in recipe_plan(target, chosen[source].recipe) if p.setting}
        assert len(bits) > 2
    made, report = palettize_by_recipe(plain, tmp_path / "made.bundle", chosen[0].recipe)
    assert made.manifest.variant == "balanced"
    assert 0.8 * chosen[0].bytes < report.bytes_after <= chosen[0].bytes


def test_transposed_weights_are_exchanged_in_the_network(
    plain: Bundle, tiny_source: ModelSource
) -> None:
    plan = [p for p in uniform_plan(plain, Setting(4)) if p.setting]
    turned = next(p for p in plan if p.weight.out_axis == 2)
    key = turned.package, turned.weight.name
    net = CompressedNetwork(plain, tiny_source, plan)
    before = net.exchange({key: np.zeros(turned.weight.shape, np.float16)})
    stored = open_weights(plain, plain.package("denoiser")).numbers(turned.weight.name)
    assert np.array_equal(before[key].reshape(stored.shape), stored.astype(np.float32))
    assert not net.exchange(before)[key].any()


def test_functions_that_use_one_name_for_two_weights_say_which() -> None:
    first, second = torch.ones(2, 3), torch.zeros(2, 3)
    names = names_by_digest(
        {
            "stop_8": {"select_9_to_fp16": second, "p_in_weight_to_fp16": first},
            "stop_16": {"select_9_to_fp16": first},
        }
    )
    digests = [hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in (first, second)]
    assert [names[d] for d in digests] == ["select_9_to_fp16", "stop_8/select_9_to_fp16"]
    turned = hashlib.sha256(torch.arange(6.0).reshape(2, 3).t().contiguous().numpy().tobytes())
    assert (
        names_by_digest({"main": {"p": torch.arange(6.0).reshape(2, 3)}})[turned.hexdigest()] == "p"
    )


# --- bytes, functions, refusals -------------------------------------------------------------------


def test_functions_store_what_they_share_once(shared: Bundle, tmp_path: Path) -> None:
    made, report = palettized(shared, tmp_path / "made.bundle", Setting(4))
    program = read_program(made.file("denoiser.aimodel"))
    stored = [c.name for c in constants(program) if c.dtype == "ui4"]
    assert len(set(stored)) == len(
        {w.name for w in report.weights if w.bits == 4 and w.package == "stop_8"}
    )
    assert len(stored) > 1.4 * len(set(stored))
    whole = sum(w.elements for w in report.weights) * 2
    assert report.bytes_before - report.bytes_after > 0.6 * whole


def test_two_processes_write_the_same_bytes(small: Bundle, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mdm_apple.cli import group; "
        "group(['palettize', sys.argv[1], '--bits', sys.argv[3], '--out', sys.argv[2], "
        "'--quiet'], standalone_mode=False); print('coreai_torch' in sys.modules)"
    )
    for bits in ("3", "int4"):
        here, _ = palettize(small, tmp_path / f"{bits}.bundle", Setting.parse(bits))
        out = tmp_path / f"{bits}-other.bundle"
        done = subprocess.run(
            [sys.executable, "-c", script, str(small.path), str(out), bits],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": "1"},
        )
        assert done.stdout.split()[-1] == "False", "writing needs no torch converter"
        assert Bundle.open(out).manifest.digest == here.manifest.digest


def test_a_package_that_stays_too_large_is_refused(small: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"aimodel: is larger than 0.01 MB, and Core AI"):
        palettize(small, tmp_path / "made.bundle", Setting(4), max_package_mb=0.01)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_before_anything_is_written(
    small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdm_apple.errors.has_coreai", lambda: False)
    with pytest.raises(MissingPackageError, match=r"pip install 'mdm-apple\[coreai\]'"):
        palettize(small, tmp_path / "made.bundle", Setting(4))
    assert not list(tmp_path.iterdir())


def test_a_package_is_tried_once_for_each_content(
    small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(small.file("down_16.aimodel"), tmp_path / "one.aimodel")
    assert weights_of(open_program(path))
    with monkeypatch.context() as changed:
        changed.setattr(program_module, "Child", None)
        open_program(path)
    (path / "main.mlirb").write_bytes(b"1")
    (path / "main.hash").write_bytes(bytes(32))
    with pytest.raises(ExecutionError, match=r"^one\.aimodel: [^\n]*\.$"):
        open_program(path)


def test_zeros_and_the_least_numbers_have_scales() -> None:
    weight = np.zeros((3, 32), np.float16)
    weight[1] = 2.0**-24
    weight[2, :2] = 65504, -65504
    for bits in (8, 4):
        dense = scaled_integers(weight, 0, 1, bits).dense()
        assert np.array_equal(dense[:2], weight[:2])
        assert np.isfinite(dense).all()
        assert dense[2, 0] == -dense[2, 1] > 65000


# --- pieces ---------------------------------------------------------------------------------------


def planned(bundle: Bundle, info: PackageInfo, setting: Setting) -> list[PlannedWeight]:
    return [p for p in uniform_plan(bundle, setting) if p.package == info.name and p.setting]


def dense_palettes(bundle: Bundle, info: PackageInfo, setting: Setting) -> Weights:
    """The weights that the palettes of a package encode."""
    plan = planned(bundle, info, setting)
    found = planned_palettes(bundle, plan, lambda _: None, 1)
    return {p.weight.name: found[p.package, p.weight.name].dense(p.weight.shape) for p in plan}


def with_weights(source: Path, target: Path, weights: Weights) -> Path:
    """A copy of a package with other fp16 numbers."""
    program = read_program(source)
    with editing(program):
        for weight in weights_of(program):
            for constant in weight.constants if weight.name in weights else ():
                replace(constant, weights[weight.name])
    save_sealed(program, target, None)
    return target


def replace(constant: Constant, data: NDArray[np.generic]) -> None:
    from coreai._compiler.ir import DenseResourceElementsAttr

    kind = constant.operation.results[0].type
    constant.operation.attributes["value"] = DenseResourceElementsAttr.get_from_buffer(
        np.ascontiguousarray(data).data, f"{constant.name}_other", kind
    )


def inputs_of(info: PackageInfo) -> dict[str, NDArray[np.generic]]:
    random = np.random.RandomState(0)
    return {
        f.name: random.randint(1, 200, f.shape).astype(np.int32)
        if f.dtype == "int32"
        else np.ones(f.shape, np.float16)
        if "mask" in f.name
        else random.randn(*f.shape).astype(np.float16)
        for f in info.inputs
    }


def agreement(
    runtime: AppleRuntime,
    source: Bundle,
    made: Bundle,
    info: PackageInfo,
    dense: Weights,
    folder: Path,
) -> float:
    """How near the compressed package is to the one with the same numbers in fp16, in dB."""
    right = with_weights(source.file(info.path), folder / f"{info.name}-dense.aimodel", dense)
    function, inputs = source.function(info) or "main", inputs_of(info)
    wanted = runtime.run(right, function, inputs)
    plainly = runtime.run(source.file(info.path), function, inputs)
    assert near(wanted, plainly) < BAR, "compression must matter"
    return near(wanted, runtime.run(made.file(info.path), function, inputs))


def near(wanted: dict[str, NDArray[np.generic]], found: dict[str, NDArray[np.generic]]) -> float:
    """The least PSNR of all outputs."""
    least = min(closeness(value, found[name]).psnr for name, value in wanted.items())
    print(f"{least:.1f} dB")
    return least


def outcome(report: PalettizeReport) -> dict[tuple[str, str], tuple[int, str | None]]:
    return {(w.package, w.name): (w.bits, w.reason) for w in report.weights}
