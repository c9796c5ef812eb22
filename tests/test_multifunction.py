"""One package with a function per side to stop at, its weights stored once."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_cache import converted
from click.testing import CliRunner
from mil_programs import package
from small import save_random_model, trainable_model

from mdm_apple.cli import group
from mdm_apple.conversion.bundle.folder import Bundle, finish_bundle
from mdm_apple.conversion.bundle.manifest import package_bytes
from mdm_apple.conversion.compress.compressed_network import CompressedNetwork
from mdm_apple.conversion.compress.palettize import palettize
from mdm_apple.conversion.compress.plan import uniform_plan
from mdm_apple.conversion.compress.settings import Setting
from mdm_apple.conversion.convert import ConvertOptions, convert_part, merged
from mdm_apple.conversion.coreml import quiet_coremltools
from mdm_apple.conversion.errors import BundleError, ConversionError
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.inspect.inspect import inspect_bundle
from mdm_apple.conversion.inspect.lint import count_by_rule, lint
from mdm_apple.conversion.layouts.parts import Part
from mdm_apple.conversion.layouts.whole import denoiser_part
from mdm_apple.conversion.package_file.merge import merge_packages
from mdm_apple.conversion.psnr import picture_psnr
from mdm_apple.conversion.run.runtime import open_bundle_runtime
from mdm_apple.conversion.run.serve import BundleServer
from mdm_apple.conversion.run.serve_frames import Reader, pack_tensor, pack_text
from mdm_apple.conversion.source.model import ModelSource, load_source
from mdm_apple.conversion.verify.verify import VerifyOptions, verify_source
from mdm_apple.errors import ConfigError
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.torch.load import open_runtime

SAMPLER = SamplerConfig("ddim", 2, guidance_scale=2.0)
PROMPTS = [Prompt("red heart", 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = trainable_model()
    licensed = dataclasses.replace(
        config, provenance=dataclasses.replace(config.provenance, license="CC-BY-4.0")
    )
    return save_random_model(tmp_path_factory.mktemp("model") / "small", licensed)


@pytest.fixture(scope="module")
def source(folder: Path) -> ModelSource:
    return load_source(folder)


@pytest.fixture(scope="module")
def bundle(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "functions.bundle"
    return converted(source, out, ConvertOptions("multifunction"))


def denoiser(bundle: Bundle) -> Package:
    return Package.open(bundle.file("denoiser.mlpackage"))


def weight_file(bundle: Bundle) -> Path:
    return next(bundle.file("denoiser.mlpackage").rglob("weight.bin"))


def test_each_side_has_its_function(bundle: Bundle) -> None:
    steps = [p for p in bundle.manifest.packages if p.phase == "step"]
    assert [(p.name, p.path, p.side) for p in steps] == [
        ("stop_4", "denoiser.mlpackage", 4),
        ("stop_8", "denoiser.mlpackage", 8),
    ]
    assert denoiser(bundle).functions == ("stop_4", "stop_8")
    assert denoiser(bundle).default_function == "stop_8"
    assert [f.name for f in steps[0].outputs] == ["prediction_4"]
    assert {f.name for f in steps[1].outputs} == {"prediction_4", "prediction_8"}


def test_each_function_has_findings_of_its_own(bundle: Bundle) -> None:
    counts = {p.name: p.findings["linear"] for p in inspect_bundle(bundle).packages}
    assert 0 < counts["stop_4"] < counts["stop_8"]
    assert counts["stop_4"] + counts["stop_8"] == count_by_rule(lint(denoiser(bundle)))["linear"]


def test_weights_are_stored_once(bundle: Bundle, source: ModelSource, tmp_path: Path) -> None:
    alone = tmp_path / "denoiser.mlpackage"
    convert_part(denoiser_part(source, "gpu"), alone, "iOS18", source)
    single = next(alone.rglob("weight.bin")).stat().st_size
    assert 0.95 * single < weight_file(bundle).stat().st_size <= single
    sizes = [p.bytes for p in bundle.manifest.packages]
    assert package_bytes(bundle.manifest.packages) == sum(sizes) - sizes[-1]  # counted once
    offsets = [
        {
            o.outputs[0][0]: o.inputs["val"][0].value.offset  # type: ignore[union-attr]
            for o in denoiser(bundle).function(name).operations
            if o.kind == "const"
            and "weight" in o.outputs[0][0]
            and hasattr(getattr(o.inputs["val"][0], "value", None), "offset")
        }
        for name in ("stop_4", "stop_8")
    ]
    assert len(offsets[0]) > 5
    assert offsets[0].items() <= offsets[1].items()


def test_merging_without_sharing_would_be_seen(tmp_path: Path) -> None:
    """The twin of the test above: programs of different weights do not share."""
    paths = {
        name: convolution(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    }
    sizes = {}
    for names in ("a", "ab", "ac"):
        merged = tmp_path / f"merged-{names}.mlpackage"
        merge_packages({n: paths[n] for n in names}, merged, names[0])
        sizes[names] = next(merged.rglob("weight.bin")).stat().st_size
    assert sizes["ab"] == sizes["a"]
    assert sizes["ac"] > sizes["a"] + 16 * 16 * 9 * 2


def convolution(folder: Path, seed: int) -> Path:
    weight = np.random.RandomState(seed).standard_normal((16, 16, 3, 3)).astype(np.float16)
    folder.mkdir(parents=True)
    return package(folder, lambda builder, x: builder.conv(x=x, weight=weight), (1, 16, 8, 8)).path


@pytest.mark.parametrize("stop_at", [None, 4])
def test_pictures_are_those_of_the_model(bundle: Bundle, folder: Path, stop_at: int | None) -> None:
    runtime, _ = open_bundle_runtime(bundle.path, "fp32")
    made = finish(generate(runtime, PROMPTS, SAMPLER, stop_at))
    wanted = finish(generate(open_runtime(folder), PROMPTS, SAMPLER, stop_at))
    assert [level.shape for level in made] == [level.shape for level in wanted]
    assert made[0].shape[-1] == (stop_at or 8)
    for ours, theirs in zip(made, wanted, strict=True):
        assert picture_psnr(theirs, ours) > 50


def test_one_weight_off_is_seen_when_stopping(bundle: Bundle, folder: Path) -> None:
    runtime, _ = open_bundle_runtime(bundle.path, "fp32")
    made = finish(generate(runtime, PROMPTS, SAMPLER, 4))
    changed = open_runtime(folder)
    with torch.no_grad():
        changed.net.level_modules()[-1].conv_in.weight[0, 0, 1, 1] += 0.3
    wanted = finish(generate(changed, PROMPTS, SAMPLER, 4))
    assert picture_psnr(wanted[0], made[0]) < 50


def test_proof_against_the_network(bundle: Bundle, source: ModelSource) -> None:
    report = verify_source(bundle, source, VerifyOptions(prompts=1))
    assert report.passed
    assert {r.package for r in report.ranges} == {"text_encoder", "conditioning", "stop_8"}


def test_metadata_survive(bundle: Bundle) -> None:
    assert denoiser(bundle).metadata["mdm.package"] == "denoiser"
    with quiet_coremltools() as coremltools:
        path = str(bundle.file("denoiser.mlpackage"))
        spec = coremltools.models.MLModel(path, skip_model_load=True).get_spec()
    assert spec.description.metadata.license == "CC-BY-4.0"
    assert spec.description.metadata.userDefined["mdm.package"] == "denoiser"
    assert spec.description.defaultFunctionName == "stop_8"
    described = {f.name: [i.name for i in f.input] for f in spec.description.functions}
    assert "x_8" not in described["stop_4"]
    assert "x_8" in described["stop_8"]


def test_coremltools_reads_every_function(bundle: Bundle) -> None:
    path = str(bundle.file("denoiser.mlpackage"))
    with quiet_coremltools() as coremltools:
        model = coremltools.models.MLModel(path, skip_model_load=True)
        loader = importlib.import_module("coremltools.converters.mil.frontend.milproto.load")
        spec = model.get_spec()
        program = loader.load(spec, spec.specificationVersion, model.weights_dir)
    assert set(program.functions) == {"stop_4", "stop_8"}
    for name, function in program.functions.items():
        assert set(function.inputs) == set(denoiser(bundle).function(name).inputs)


def test_palettes_are_shared_as_well(bundle: Bundle, source: ModelSource, tmp_path: Path) -> None:
    small, report = palettize(bundle, tmp_path / "small.bundle", Setting(4))
    assert report.bytes_after < 0.6 * report.bytes_before
    assert {p.weight_bits for p in small.manifest.packages if p.phase == "step"} == {4}
    names = [(w.package, w.name) for w in report.weights]
    assert len(set(names)) == len(names)
    assert weight_file(small).stat().st_size < 0.5 * weight_file(bundle).stat().st_size
    runtime, _ = open_bundle_runtime(small.path, "fp32")
    made = finish(generate(runtime, PROMPTS, SAMPLER, 4))
    assert np.isfinite(made[0]).all()
    plan = [p for p in uniform_plan(bundle, Setting(4)) if p.setting]
    assert CompressedNetwork(bundle, source, plan)  # every weight is found in the model by its name


def test_whole_numbers_are_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"denoiser\.mlpackage: linear weights need"):
        palettize(bundle, tmp_path / "int8.bundle", Setting(8, "linear"))
    assert not (tmp_path / "int8.bundle").exists()


@pytest.mark.parametrize("name", ["stop_4", "stop_8"])
def test_the_server_runs_functions_by_name(bundle: Bundle, name: str) -> None:
    info, random = bundle.package(name), np.random.RandomState(0)
    given = {f.name: random.standard_normal(f.shape).astype(np.float32) for f in info.inputs}
    server = BundleServer(bundle, "fp16")
    values = b"".join(pack_tensor(n, v) for n, v in given.items())
    request = pack_text(name) + struct.pack("<H", len(given)) + values
    server.answer(b"L", pack_text(name))
    server.answer(b"R", struct.pack("<I", 0) + request)
    expected = denoiser(bundle).load(name, precision="fp16")(given)
    for feature in info.outputs:
        kind, payload = server.answer(b"G", struct.pack("<I", 0) + pack_text(feature.name))
        assert kind == b"T"
        assert np.array_equal(Reader(payload).tensor()[1], expected[feature.name])


def test_what_cannot_be_merged_is_refused(
    bundle: Bundle, source: ModelSource, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="needs iOS 18"):
        ConvertOptions("multifunction", target="iOS17")
    with pytest.raises(ConversionError, match="already has several functions"):
        merge_packages({"a": bundle.file("denoiser.mlpackage")}, tmp_path / "m", "a")
    names = ("a", "b")
    for name in names:
        convolution(tmp_path / "made" / name, 0).rename(tmp_path / f"{name}.mlpackage")
    parts = [Part(n, "step", torch.nn.Identity(), {}, (), package="c") for n in names]
    with pytest.raises(ConversionError, match="share their weights; raise --max-package-mb"):
        merged(parts, tmp_path, 0.001, source)


def test_a_function_missing_from_the_manifest_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy.bundle"
    shutil.copytree(bundle.path, copy)
    kept = tuple(p for p in bundle.manifest.packages if p.name != "stop_4")
    finish_bundle(copy, dataclasses.replace(bundle.manifest, packages=kept))
    with pytest.raises(BundleError, match=r"expected a function per side \[8, 4\], got \[8\]"):
        Bundle.open(copy)


def test_command_stops_at_a_side(bundle: Bundle, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        group,
        [
            "sample",
            "--model",
            str(bundle.path),
            "--prompt",
            "red heart",
            "--seed",
            "1",
            "--steps",
            "2",
            "--stop-at",
            "4",
            "--out",
            str(tmp_path / "a.png"),
            "--quiet",
        ],
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a.png").is_file()
