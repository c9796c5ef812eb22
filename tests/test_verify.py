"""Verification passes what is right, fails what is not, and says how near it was."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from conversion.bundle import MANIFEST, Bundle, finish_bundle
from conversion.errors import BundleError
from conversion.palettize import PalettizeReport
from conversion.quality import closeness, picture_psnr
from conversion.source import ModelSource
from conversion.verify import FLOOR_FP16, RangeRow, verify, verify_source
from mdm_apple.cli.inspect_command import command as inspect_command
from mdm_apple.cli.verify_command import command as verify_command
from mdm_apple.shapes import parameter_count
from mdm_apple.tensorfile import read_tensors, write_tensors

pytest_plugins = ["bundles"]


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
    model = verify_source(tiny_bundle, tiny_source, prompts=golden.prompts)
    for one, other in zip(golden.rows, model.rows, strict=True):
        assert one.psnr == pytest.approx(other.psnr, abs=0.1)


def test_compressed_bundle_is_reported_without_a_floor_and_fails_one(
    tiny_palettized: tuple[Bundle, PalettizeReport],
) -> None:
    bundle, _ = tiny_palettized
    report = verify(bundle, precision="fp32")
    assert report.floor is None
    assert report.passed
    assert 10 < report.worst < 40
    assert not verify(bundle, floor=FLOOR_FP16).passed


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
    assert report.floor is None
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
    with pytest.raises(BundleError, match=f"its table '{name}' is not that of the model's"):
        verify_source(bundle, tiny_source, prompts=1)
    with pytest.raises(BundleError, match=f"its table '{name}' is not that of the model's"):
        verify(bundle)


def test_model_of_another_configuration_is_refused(
    tiny_bundle: Bundle, tiny_source: ModelSource
) -> None:
    config = dataclasses.replace(tiny_source.config, mixed_training=True)
    with pytest.raises(BundleError, match="another configuration"):
        verify_source(tiny_bundle, dataclasses.replace(tiny_source, config=config))


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
