"""Two halves of a package, run one after the other, are the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_cache import converted
from mil_programs import half, package

from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.compress.palettize import PalettizeReport, palettize
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.coreml import quiet_coremltools
from mdm_apple.conversion.errors import ConversionError
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.execute.graph import Function
from mdm_apple.conversion.package_file.split import best_cut, split_package
from mdm_apple.conversion.source.model import ModelSource
from mdm_apple.conversion.verify.verify import VerifyOptions, verify

pytest_plugins = ["bundles"]


def random_inputs(function: Function) -> dict[str, np.ndarray]:
    random = np.random.RandomState(0)
    return {n: random.standard_normal(k.shape) for n, k in function.inputs.items()}


@pytest.mark.parametrize("name", ["denoiser", "conditioning"])
def test_halves_in_turn_give_what_the_whole_gives(
    tiny_bundle: Bundle, tmp_path: Path, name: str
) -> None:
    source = tiny_bundle.file(f"{name}.mlpackage")
    whole = Package.open(source)
    inputs = random_inputs(whole.function())
    wanted = whole.load(precision="fp16")(inputs)
    after = best_cut(whole)
    split_package(source, tmp_path / "1.mlpackage", tmp_path / "2.mlpackage", after, f"cut_{name}")
    known = dict(inputs)
    for part in (Package.open(tmp_path / "1.mlpackage"), Package.open(tmp_path / "2.mlpackage")):
        function = part.function()
        known |= part.load(precision="fp16")({n: known[n] for n in function.inputs})
        with quiet_coremltools() as coremltools:
            model = coremltools.models.MLModel(str(part.path), skip_model_load=True)
        described = {f.name for f in model.get_spec().description.output}
        assert described == set(function.outputs)
    for output, reference in wanted.items():
        assert np.array_equal(known[output], reference), output


def test_halves_share_the_weights_between_them(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source = tiny_bundle.file("denoiser.mlpackage")
    halves = tmp_path / "1.mlpackage", tmp_path / "2.mlpackage"
    split_package(source, *halves, best_cut(Package.open(source)), "cut")
    size, *parts = (next(path.rglob("weight.bin")).stat().st_size for path in (source, *halves))
    assert sum(parts) < 1.1 * size
    assert max(parts) < 0.75 * size


def test_any_place_will_do(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Skips, text and embeddings then cross the cut as well."""
    source = tiny_bundle.file("conditioning.mlpackage")
    whole = Package.open(source)
    inputs = random_inputs(whole.function())
    wanted = whole.load()(inputs)
    places = [i for i, o in enumerate(whole.function().operations) if not o.is_constant]
    for k, after in enumerate(places[:: max(1, len(places) // 6)][:6]):
        first, second = tmp_path / f"{k}a.mlpackage", tmp_path / f"{k}b.mlpackage"
        split_package(source, first, second, after, "cut")
        known = dict(inputs)
        for part in (Package.open(first), Package.open(second)):
            known |= part.load()({n: known[n] for n in part.function().inputs})
        for output, reference in wanted.items():
            assert np.array_equal(known[output], reference), (after, output)


def test_one_weight_alone_cannot_be_split(tmp_path: Path) -> None:
    made = package(tmp_path, lambda b, x: b.conv(x=x, weight=half(48, 64, 3, 3), pad_type="same"))
    with pytest.raises(ConversionError, match="one weight is most of it"):
        best_cut(made)


def test_a_value_that_only_partly_crosses_is_cut_right(tmp_path: Path) -> None:
    """One piece of a split is used up before the cut, the other after it."""

    def body(b: Any, x: Any) -> Any:
        left, right = b.split(x=x, num_splits=2, axis=1)
        h = b.conv(x=left, weight=half(64, 32, 3, 3), pad_type="same")
        return b.conv(x=b.concat(values=[h, right], axis=1), weight=half(64, 96, 1, 1))

    whole = package(tmp_path, body)
    inputs = random_inputs(whole.function())
    (wanted,) = whole.load()(inputs).values()
    places = [i for i, o in enumerate(whole.function().operations) if not o.is_constant]
    for k, after in enumerate(places[:-1]):
        first, second = tmp_path / f"{k}a.mlpackage", tmp_path / f"{k}b.mlpackage"
        split_package(whole.path, first, second, after, "cut")
        known = Package.open(first).load()(inputs) | inputs
        half_two = Package.open(second)
        (got,) = half_two.load()({n: known[n] for n in half_two.function().inputs}).values()
        assert np.array_equal(got, wanted)


@pytest.mark.guards("pieces of a split model are left out of compression")
def test_bundle_of_small_packages_proves_itself(
    tiny_bundle: Bundle, tiny_source: ModelSource, tmp_path: Path
) -> None:
    largest = max(p.bytes for p in tiny_bundle.manifest.packages)
    limit = 0.7 * largest / 1e6
    bundle = converted(
        tiny_source, tmp_path / "small", ConvertOptions("monolith", max_package_mb=limit)
    )
    names = [p.name for p in bundle.manifest.packages]
    assert names[-2:] == ["denoiser_1", "denoiser_2"]
    assert max(p.bytes for p in bundle.manifest.packages) <= 0.7 * largest
    assert verify(bundle).passed
    # elsewhere, pieces of a split model are left out of compression without a word
    compressed, report = palettize(bundle, tmp_path / "small-6", 6)
    assert {w.package for w in report.weights if w.bits == 6} >= {"denoiser_1", "denoiser_2"}
    assert 15 < verify(compressed, options=VerifyOptions(precision="fp32")).worst < 60


def test_what_is_too_large_even_compressed_is_split_then(
    tiny_bundle: Bundle, tiny_palettized: tuple[Bundle, PalettizeReport], tmp_path: Path
) -> None:
    whole, _ = tiny_palettized
    limit = 0.7 * max(p.bytes for p in whole.manifest.packages)
    pieces, report = palettize(tiny_bundle, tmp_path / "b", 4, max_package_mb=limit / 1e6)
    names = [p.name for p in pieces.manifest.packages]
    assert {"denoiser_1", "denoiser_2"} <= {*names}
    assert "denoiser" not in names
    assert max(p.bytes for p in pieces.manifest.packages) <= limit
    assert {p.weight_bits for p in pieces.manifest.packages if p.phase == "step"} == {4}
    assert {w.package for w in report.weights} == {p.name for p in tiny_bundle.manifest.packages}
    ours, theirs = verify(pieces), verify(whole)
    assert [row.psnr for row in ours.rows] == [row.psnr for row in theirs.rows]
