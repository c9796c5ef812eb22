"""Verification passes what is right, fails what is not, and says how near it was."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mdm_apple.cli.inspect_command import command as inspect_command
from mdm_apple.cli.verify_command import command as verify_command
from mdm_apple.config.shapes import parameter_count
from mdm_apple.config.types import ComputeUnits, ExecutorPrecision
from mdm_apple.conversion.bundle.folder import MANIFEST, Bundle, finish_bundle
from mdm_apple.conversion.compress.palettize import PalettizeReport
from mdm_apple.conversion.errors import BundleError
from mdm_apple.conversion.execute import Executable, Package, Range, TensorType, Watch
from mdm_apple.conversion.psnr import closeness, picture_psnr
from mdm_apple.conversion.run.coreml import received, typed
from mdm_apple.conversion.source.model import ModelSource
from mdm_apple.conversion.source.trajectory import PROMPTS, record_trajectory, text_inputs
from mdm_apple.conversion.verify.ladder import FLOOR_FP16, FLOOR_REWRITE, FLOORS, rewritten_rung
from mdm_apple.conversion.verify.verify import RangeRow, VerifyOptions, verify, verify_source
from mdm_apple.errors import MdmError
from mdm_apple.storage.tensorfile import read_tensors, write_tensors

pytest_plugins = ["bundles"]


@pytest.mark.guards("PSNR of bytes wraps around at 256, so that a floor of 20 dB cannot fail")
def test_closeness_is_in_float64_against_the_largest_value() -> None:
    reference = np.array([[3.0, -4.0]], np.float32)
    found = closeness(reference, reference + np.float32(0.5))
    assert found.psnr == pytest.approx(20 * math.log10(4 / 0.5))
    assert found.snr == pytest.approx(20 * math.log10(math.sqrt(12.5) / 0.5))
    assert closeness(reference, reference).psnr == math.inf
    assert closeness(reference, np.array([[3.0, np.nan]])).psnr == -math.inf
    pictures = np.array([0, 200], np.uint8), np.array([16, 216], np.uint8)
    assert picture_psnr(*pictures) == pytest.approx(20 * math.log10(2 / 16))  # no wrapping


def test_bundle_proves_itself_by_its_golden_record(tiny_bundle: Bundle) -> None:
    report = verify(tiny_bundle)
    assert report.reference == "golden"
    assert report.passed
    assert report.floor == FLOOR_FP16
    assert {(row.side, row.t) for row in report.rows} == {
        (side, t) for side in (16, 8) for t in (834, 500, 167)
    }
    assert min(report.picture_psnr.values()) >= 50
    assert {r.package for r in report.ranges} == {"text_encoder", "conditioning", "denoiser"}
    assert all(0 < r.largest < 65504 for r in report.ranges)


def test_golden_record_is_what_the_model_says(
    tiny_bundle: Bundle, tiny_source: ModelSource
) -> None:
    golden = verify(tiny_bundle)
    model = verify_source(tiny_bundle, tiny_source, VerifyOptions(prompts=golden.prompts))
    for one, other in zip(golden.rows, model.rows, strict=True):
        assert one.psnr == pytest.approx(other.psnr, abs=0.1)


def test_compressed_bundle_has_the_floor_of_its_bits_and_fails_a_higher_one(
    tiny_palettized: tuple[Bundle, PalettizeReport],
) -> None:
    bundle, _ = tiny_palettized
    report = verify(bundle, options=VerifyOptions(precision="fp32"))
    assert report.floor == FLOORS[4]
    assert report.passed
    assert 10 < report.worst < 40
    assert not verify(bundle, options=VerifyOptions(floor=FLOOR_FP16)).passed


def test_non_finite_value_fails_whatever_the_floor(tiny_bundle: Bundle) -> None:
    report = dataclasses.replace(verify(tiny_bundle), floor=None)
    assert report.passed
    overflow = RangeRow("denoiser", 65504.0, "square_1", "square_1")
    assert not dataclasses.replace(report, ranges=(overflow,)).passed


def rewritten(
    bundle: Bundle, at: Path, name: str, change: Callable[[dict[str, Any]], None]
) -> Bundle:
    """A copy of the bundle with other tensors in one of its files, and hashes that are right."""
    folder = Path(shutil.copytree(bundle.path, at / "altered.bundle"))
    tensors = {k: np.array(v) for k, v in read_tensors(folder / name).items()}
    change(tensors)
    write_tensors(folder / name, tensors)
    (folder / MANIFEST).unlink()
    finish_bundle(folder, bundle.manifest)
    return Bundle.open(folder)


def test_non_finite_prediction_for_any_prompt_fails_without_a_floor(
    tiny_palettized: tuple[Bundle, PalettizeReport], tmp_path: Path
) -> None:
    def overflow(tensors: dict[str, Any]) -> None:
        tensors["x_t_16"][2, 1] = 1e9  # the second prompt, at the last noise level

    report = verify(rewritten(tiny_palettized[0], tmp_path, "golden.safetensors", overflow))
    report = dataclasses.replace(report, floor=None)
    assert report.worst == -math.inf
    assert not report.passed
    assert not dataclasses.replace(report, ranges=()).passed  # by the rows alone
    named = {r.package: r.first_nonfinite for r in report.ranges}
    assert named["denoiser"] is not None
    assert named["text_encoder"] is None


def test_a_floor_of_zero_is_a_floor(tiny_bundle: Bundle) -> None:
    report = dataclasses.replace(verify(tiny_bundle), floor=0.0)
    assert report.passed
    below = (dataclasses.replace(report.rows[0], psnr=-3.0), *report.rows[1:])
    assert not dataclasses.replace(report, rows=below).passed


@pytest.mark.parametrize("name", ["alpha_bar", "alpha_bar_16", "alpha_bar_8"])
def test_tables_of_another_schedule_are_refused(
    name: str, tiny_bundle: Bundle, tiny_source: ModelSource, tmp_path: Path
) -> None:
    def shift(tensors: dict[str, Any]) -> None:
        tensors[name][500] *= 1 - 1e-6

    bundle = rewritten(tiny_bundle, tmp_path, "tables.safetensors", shift)
    with pytest.raises(BundleError, match=f"its table '{name}' does not match the model's"):
        verify_source(bundle, tiny_source, VerifyOptions(prompts=1))
    with pytest.raises(BundleError, match=f"its table '{name}' does not match the model's"):
        verify(bundle)


def test_model_of_another_configuration_is_refused(
    tiny_bundle: Bundle, tiny_source: ModelSource
) -> None:
    config = dataclasses.replace(tiny_source.config, mixed_training=True)
    other = dataclasses.replace(tiny_source, config=config)
    with pytest.raises(BundleError, match="another configuration"):
        verify_source(tiny_bundle, other, VerifyOptions())


def test_ladder_climbs_from_the_network_to_a_compressed_bundle(
    tiny_bundle: Bundle,
    tiny_palettized: tuple[Bundle, PalettizeReport],
    model_folder: Path,
) -> None:
    options = VerifyOptions("fp32", 1, ladder=True, fp16=tiny_bundle)
    report = verify(tiny_palettized[0], model_folder, options)
    pictures, compressed = report.rungs  # its layers are those of training: none is rewritten
    assert (pictures.candidate, pictures.reference) == ("guided pictures", "network")
    assert pictures.picture_floor is None
    assert (compressed.candidate, compressed.reference) == ("palettized-4", "fp16 packages")
    assert compressed.floor == FLOORS[4]
    # the fp16 packages are nearly the network, so both see the same error
    for row, other in zip(report.rows, compressed.rows, strict=True):
        assert row.psnr == pytest.approx(other.psnr, abs=0.3)
    assert report.passed
    worse = dataclasses.replace(compressed, floor=60.0)
    assert not dataclasses.replace(report, rungs=(pictures, worse)).passed


def test_fp16_bundle_of_the_ladder_has_a_floor_for_pictures(
    tiny_bundle: Bundle, model_folder: Path
) -> None:
    report = verify(tiny_bundle, model_folder, VerifyOptions(prompts=1, ladder=True))
    (pictures,) = report.rungs
    assert pictures.passed
    assert min(pictures.picture_psnr.values()) >= (pictures.picture_floor or 0) >= 40
    bad = dataclasses.replace(pictures, picture_psnr={16: 39.0})
    assert not bad.passed
    assert not dataclasses.replace(pictures, picture_psnr={16: math.nan}, picture_floor=None).passed


def test_rewritten_network_has_a_rung_and_one_of_other_weights_fails_it(
    tiny_source: ModelSource,
) -> None:
    text = text_inputs(tiny_source, PROMPTS[:2])
    record = record_trajectory(tiny_source, text, 2)
    rung = rewritten_rung(tiny_source, text, record)
    assert rung.floor == FLOOR_REWRITE
    assert len(rung.rows) == 6
    assert rung.passed
    other = dataclasses.replace(tiny_source, net=copy.deepcopy(tiny_source.net))
    with torch.no_grad():
        other.net.conv_in.weight[0, 0, 1, 1] += 0.5
    assert not rewritten_rung(other, text, record).passed


def test_a_bundle_of_other_weights_is_no_fp16_reference(
    tiny_palettized: tuple[Bundle, PalettizeReport],
) -> None:
    bundle = tiny_palettized[0]
    with pytest.raises(BundleError, match="is not the fp16 bundle of the same model"):
        verify(bundle, None, VerifyOptions("fp32", fp16=bundle))


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_packages_can_be_run_by_something_else(
    tiny_bundle: Bundle, precision: ExecutorPrecision
) -> None:
    """The seam of Core ML: here with the executor behind it."""
    opened: list[str] = []

    def load(path: Path, function: str | None, units: ComputeUnits) -> Executable:
        assert units == "cpuAndGPU"  # what the manifest proposes for layers of training
        opened.append(path.name)
        return Package.open(path).load(function, precision="fp16")

    options = VerifyOptions(precision, load=load, compute_units="cpuOnly")
    report = verify(tiny_bundle, None, options)
    assert (report.runtime, report.compute_units) == ("coreml", "cpuOnly")
    assert sorted(opened) == sorted(p.path for p in tiny_bundle.manifest.packages)
    assert [r.psnr for r in report.rows] == [r.psnr for r in verify(tiny_bundle).rows]


def test_arrays_go_to_core_ml_and_come_back_in_declared_types() -> None:
    half, whole = TensorType("fp16", (2,)), TensorType("int32", (2,))
    assert typed(np.array([1.0, 2.0]), half).dtype == np.float16
    assert typed(np.array([1, 2]), whole).dtype == np.int32
    watch = Watch()
    found = {"a": np.array([1, -3], np.float16), "b": np.array([7, 8], np.int32)}
    out = received(found, {"a": half, "b": whole}, watch)
    assert out["a"].dtype == np.float32
    assert out["b"].dtype == np.int32
    assert [(r.name, r.largest) for r in watch.ranges] == [("a", 3.0)]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has Core ML")
def test_core_ml_is_refused_elsewhere_in_one_sentence(tiny_bundle: Bundle) -> None:
    done = CliRunner().invoke(verify_command, [str(tiny_bundle.path), "--runtime", "coreml"])
    assert done.exit_code != 0
    assert isinstance(done.exception, MdmError)
    assert str(done.exception).startswith("coreml: runs on macOS only")
    units = ["--compute-units", "cpuOnly"]
    done = CliRunner().invoke(verify_command, [str(tiny_bundle.path), *units])
    assert "add --runtime coreml" in str(done.exception)


@pytest.mark.guards("a failed parity check still exits with 0")
def test_command_exits_with_one_below_the_floor(
    tiny_bundle: Bundle, model_folder: Path, tiny_palettized: tuple[Bundle, PalettizeReport]
) -> None:
    arguments = ["--model", str(model_folder), "--prompts", "1", "--json", "--quiet"]
    good = CliRunner().invoke(verify_command, [str(tiny_bundle.path), *arguments])
    assert good.exit_code == 0
    assert json.loads(good.stdout)["passed"] is True
    bad = CliRunner().invoke(verify_command, [str(tiny_palettized[0].path), "--floor", "60"])
    assert bad.exit_code == 1
    assert "FAILED" in bad.stdout


def test_ranges_of_every_value_are_kept_over_all_calls() -> None:
    watch = Watch()
    for a, b in ((1.0, -5.0), (-3.0, math.inf), (2.0, math.nan)):
        watch.see("add", "a", torch.tensor([0.5, a]))
        watch.see("mul", "b", torch.tensor([b, 1.5]))
    assert watch.by_value() == [Range("add", "a", 3.0, 0), Range("mul", "b", 5.0, 2)]


def test_command_writes_the_ranges_of_every_value(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    words = [str(tiny_bundle.path), "--ranges", str(path), "--json", "--quiet"]
    done = CliRunner().invoke(verify_command, words)
    assert done.exit_code == 0
    written, told = json.loads(path.read_text())["fp16"], json.loads(done.stdout)
    assert "values" not in told
    for row in told["ranges"]:
        values = written[row["package"]]
        function = Package.open(tiny_bundle.file(f"{row['package']}.mlpackage")).function()
        computed = [
            name
            for o in function.operations
            if not o.is_constant
            for name, kind in o.outputs
            if kind.is_float
        ]
        assert [v["name"] for v in values] == computed
        assert max(v["largest"] for v in values) == row["largest"]
    done = CliRunner().invoke(verify_command, words)
    assert "exists" in str(done.exception)


def test_inspect_counts_parameters_operations_and_files(
    tiny_bundle: Bundle, tiny_source: ModelSource
) -> None:
    done = CliRunner().invoke(inspect_command, [str(tiny_bundle.path), "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert sum(level["parameters"] for level in found["levels"]) == found["parameters"]
    assert found["parameters"] == parameter_count(tiny_source.config.model)
    census = {package["name"]: package["operations"] for package in found["packages"]}
    assert census["denoiser"]["scaled_dot_product_attention"] == 8
    assert census["denoiser"]["conv"] == 46
    assert found["files"] == {file.path: file.size for file in tiny_bundle.manifest.files}


def test_inspect_of_a_preset_needs_no_weights() -> None:
    done = CliRunner().invoke(inspect_command, ["--preset", "mdm1024", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["parameters"] == 480_970_057
