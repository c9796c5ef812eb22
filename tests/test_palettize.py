"""Palettized weights: few values, near the best ones, and every exception named."""

from __future__ import annotations

import filecmp
from pathlib import Path

import numpy as np
import pytest
from bundle_cache import converted

from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.compress import palette_jobs
from mdm_apple.conversion.compress.palettize import PalettizeReport, palettize
from mdm_apple.conversion.compress.settings import MINIMUM_ELEMENTS, Setting
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.errors import ConversionError
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.execute.constants import load_constants
from mdm_apple.conversion.package_file.weights import end_convolutions, weights_of
from mdm_apple.conversion.source.model import ModelSource
from mdm_apple.conversion.verify.verify import VerifyOptions, verify

pytest_plugins = ["bundles"]


def test_palettized_tensors_have_sixteen_values_from_tables_of_sixteen(
    tiny_palettized: tuple[Bundle, PalettizeReport],
) -> None:
    bundle, report = tiny_palettized
    compressed = {(w.package, w.name) for w in report.weights if w.bits == 4}
    assert len(compressed) > 40
    for info in bundle.manifest.packages:
        package = Package.open(bundle.file(info.path))
        function = package.function()
        constants = load_constants(function, package.weight_file, fp16=False)
        tables = [o for o in function.operations if o.kind == "constexpr_lut_to_dense"]
        assert len(tables) == sum(name == info.name for name, _ in compressed)
        for operation in tables:
            (lut,) = operation.inputs["lut"]
            assert not isinstance(lut, str)
            assert lut.type.count == 16
            values = np.unique(np.asarray(constants[operation.outputs[0][0]]))
            assert len(values) <= 16


def test_every_weight_is_compressed_or_named_with_a_reason(
    tiny_bundle: Bundle, tiny_palettized: tuple[Bundle, PalettizeReport]
) -> None:
    _, report = tiny_palettized
    reported = {(w.package, w.name): w for w in report.weights}
    for info in tiny_bundle.manifest.packages:
        for weight in weights_of(Package.open(tiny_bundle.file(info.path)).function()):
            entry = reported[info.name, weight.name]
            assert (entry.reason is None) == (entry.bits == 4)
            assert (weight.elements < MINIMUM_ELEMENTS) == (
                entry.reason == f"fewer than {MINIMUM_ELEMENTS} numbers"
            )


def test_ends_are_the_convolutions_next_to_the_images(tiny_bundle: Bundle) -> None:
    function = Package.open(tiny_bundle.file("denoiser.mlpackage")).function()
    assert end_convolutions(function) == {
        "p_net_conv_in_weight_to_fp16",
        "p_net_conv_out_weight_to_fp16",
        "p_net_inner_unet_conv_in_weight_to_fp16",
        "p_net_inner_unet_conv_out_weight_to_fp16",
    }


def test_manifest_tells_the_variant_and_the_rest_is_unchanged(
    tiny_bundle: Bundle, tiny_palettized: tuple[Bundle, PalettizeReport]
) -> None:
    bundle, report = tiny_palettized
    assert bundle.manifest.variant == "palettized-4"
    assert {p.weight_bits for p in bundle.manifest.packages} == {4}
    assert report.bytes_after == sum(p.bytes for p in bundle.manifest.packages)
    assert report.bytes_after < 0.55 * report.bytes_before
    rest = ["tables.safetensors", "golden.safetensors", "config.json", "tokenizer/tokenizer.model"]
    assert filecmp.cmpfiles(tiny_bundle.path, bundle.path, rest, shallow=False)[0] == rest
    assert Bundle.open(tiny_bundle.path).manifest == tiny_bundle.manifest


def test_compressing_gives_the_same_bytes_in_one_process_and_in_two(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    one, _ = palettize(tiny_bundle, tmp_path / "one", Setting(6, group=16))
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(palette_jobs, "BATCH_GROUPS", 8)
        two, _ = palettize(tiny_bundle, tmp_path / "two", Setting(6, group=16), processes=2)
    files = [file.path for file in one.manifest.files] + ["manifest.json"]
    same, _, _ = filecmp.cmpfiles(one.path, two.path, files, shallow=False)
    assert sorted(same) == sorted(files)


@pytest.mark.parametrize("setting", [Setting(8, "linear"), Setting(4, "linear")])
def test_linear_weights_are_whole_numbers_times_a_scale(
    tiny_bundle: Bundle, tmp_path: Path, setting: Setting
) -> None:
    bundle, report = palettize(tiny_bundle, tmp_path / "linear", setting)
    assert bundle.manifest.variant == setting.name
    package = Package.open(bundle.file("denoiser.mlpackage"))
    kinds = [o.kind for o in package.function().operations]
    done = [w for w in report.weights if w.package == "denoiser" and w.bits == setting.bits]
    assert kinds.count("constexpr_blockwise_shift_scale") == len(done) > 10
    assert report.bytes_after < report.bytes_before
    assert verify(bundle, options=VerifyOptions(precision="fp32")).worst > (
        35 if setting.bits == 8 else 12
    )


@pytest.mark.guards("layers whose channels do not divide are skipped in silence")
def test_layers_that_cannot_take_a_setting_are_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    _, report = palettize(tiny_bundle, tmp_path / "uneven", Setting(4, group=24))
    reasons = {w.name: w.reason for w in report.weights if w.package == "denoiser"}
    uneven = [r for r in reasons.values() if r and "do not divide into groups of 24" in r]
    assert len(uneven) > 10
    assert all(w.bits == 16 for w in report.weights if w.reason)


def test_a_setting_that_no_weight_can_have_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="do not divide into groups of 7") as caught:
        palettize(tiny_bundle, tmp_path / "seven", Setting(4, group=7))
    assert "none of its" in str(caught.value)
    assert not (tmp_path / "seven").exists()


def test_older_systems_refuse_what_they_cannot_load(
    tiny_source: ModelSource, tmp_path: Path
) -> None:
    bundle = converted(
        tiny_source, tmp_path / "old.bundle", ConvertOptions("monolith", target="iOS17")
    )
    for setting in (Setting(3), Setting(4, group=16), Setting(4, "linear")):
        with pytest.raises(ConversionError, match="need iOS 18"):
            palettize(bundle, tmp_path / "out", setting)
    made, _ = palettize(bundle, tmp_path / "int8", Setting(8, "linear"))
    assert verify(made, options=VerifyOptions(precision="fp32")).worst > 35


def test_compressing_twice_is_refused(
    tiny_palettized: tuple[Bundle, PalettizeReport], tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match="already compressed"):
        palettize(tiny_palettized[0], tmp_path / "again", 2)
    assert not list(tmp_path.iterdir())


def test_unknown_bits_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="expected one of 8, 6, 4, 3, 2, got 5"):
        palettize(tiny_bundle, tmp_path / "five", 5)
