"""Core AI bundles: written by Apple's compiler, run by Apple's runtime, compared with torch."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_cache import converted, palettized
from click.testing import CliRunner
from coreai_wheels import needs_coreai
from hidden_packages import run_without

from mdm_apple.cli import group
from mdm_apple.config.convert_options import ConvertOptions
from mdm_apple.config.types import ComputeUnits
from mdm_apple.conversion.bundle.folder import MANIFEST, Bundle, finish_bundle
from mdm_apple.conversion.bundle.manifest import Manifest
from mdm_apple.conversion.compress.settings import Setting
from mdm_apple.conversion.convert import convert
from mdm_apple.conversion.coreai import runtime as runtime_module
from mdm_apple.conversion.coreai.runtime import AppleRuntime
from mdm_apple.conversion.errors import BundleError, ConversionError
from mdm_apple.conversion.execute import ExecutionError
from mdm_apple.conversion.run.packages import Runnable, executor
from mdm_apple.conversion.source.model import ModelSource, random_source
from mdm_apple.conversion.source.trajectory import PROMPTS, record_trajectory, text_inputs
from mdm_apple.conversion.verify.formats import check_other_format, rows_of_formats
from mdm_apple.conversion.verify.fp32 import Fp32Packages
from mdm_apple.conversion.verify.ladder import Rung
from mdm_apple.conversion.verify.parts import rows_against_torch, same_parts
from mdm_apple.conversion.verify.verify import VerifyOptions, VerifyReport, verify, verify_source
from mdm_apple.errors import ConfigError

pytest_plugins = ["bundles"]
pytestmark = needs_coreai

MakeBundle = Callable[..., Bundle]


@pytest.fixture(scope="session")
def make(tiny_source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """A Core AI bundle of the small model with these options."""

    def make(layout: str = "nested", compute: str | None = None) -> Bundle:
        options = ConvertOptions(layout, None, compute, format="coreai")  # type: ignore[arg-type]
        return converted(tiny_source, tmp_path_factory.mktemp("coreai") / "tiny.bundle", options)

    return make


@pytest.fixture(scope="session")
def bundle(make: MakeBundle) -> Bundle:
    return make()


def rung(report: VerifyReport, candidate: str) -> Rung:
    return next(rung for rung in report.rungs if rung.candidate == candidate)


def changed(source: ModelSource) -> ModelSource:
    """The model with one weight moved."""
    other = dataclasses.replace(source, net=copy.deepcopy(source.net))
    with torch.no_grad():
        other.net.inner_unet.conv_in.weight[0, 0, 1, 1] += 0.5  # type: ignore[union-attr]
    return other


def test_every_package_computes_what_torch_does(bundle: Bundle, tiny_source: ModelSource) -> None:
    report = verify_source(bundle, tiny_source, VerifyOptions(prompts=2, ladder=True))
    assert report.runtime == "coreai"
    assert report.passed, report.as_json()
    parts = rung(report, "packages").parts
    assert [row.package for row in parts] == [p.name for p in bundle.manifest.packages]
    assert min(row.psnr for row in parts if row.package != "text_encoder") >= 58
    assert min(rung(report, "guided pictures").picture_psnr.values()) >= 40


def test_another_weight_is_told_apart(bundle: Bundle, tiny_source: ModelSource) -> None:
    report = verify_source(bundle, changed(tiny_source), VerifyOptions(prompts=1))
    assert not report.passed
    failed = [row.package for row in rung(report, "packages").parts if not row.passed]
    assert failed == ["core_8"]


@pytest.mark.slow
def test_another_weight_makes_other_guided_pictures(
    bundle: Bundle, tiny_source: ModelSource
) -> None:
    """The rung fails by itself; it has pictures only."""
    options = VerifyOptions(prompts=1, ladder=True)
    guided = rung(verify_source(bundle, changed(tiny_source), options), "guided pictures")
    assert not guided.passed
    assert (guided.rows, guided.parts) == ((), ())
    assert min(guided.picture_psnr.values()) < 35


@pytest.mark.slow
def test_in_fp32_another_weight_parts_the_two_runtimes(
    bundle: Bundle, nested: Bundle, tiny_source: ModelSource, tmp_path: Path
) -> None:
    """Apple's runtime gets packages of the changed model; only the one with the weight fails."""
    parts = same_parts(bundle, changed(tiny_source))
    other = Fp32Packages(parts, tmp_path, AppleRuntime())
    text = text_inputs(tiny_source, PROMPTS[:1])
    record = record_trajectory(tiny_source, text, 1)
    pair = (nested, executor("fp32")), (bundle, other)
    rows = rows_of_formats(*pair, text, record, "fp32")
    assert [row.package for row in rows if not row.passed] == ["core_8"]
    assert len(rows) == len(bundle.manifest.packages)


def test_in_fp32_both_runtimes_compute_what_torch_does(
    bundle: Bundle, nested: Bundle, tiny_source: ModelSource, tmp_path: Path
) -> None:
    """The executor on the Core ML packages and Apple's runtime on the same parts in fp32."""
    parts = same_parts(bundle, tiny_source)
    exact = Fp32Packages(parts, tmp_path, AppleRuntime())
    rows = rows_against_torch(bundle, tiny_source, exact, "fp32")
    assert min(row.psnr for row in rows) >= 100
    twin = rows_against_torch(bundle, changed(tiny_source), exact, "fp32")
    assert [row.package for row in twin if not row.passed] == ["core_8"]

    text = text_inputs(tiny_source, PROMPTS[:1])
    record = record_trajectory(tiny_source, text, 1)
    pair = (nested, executor("fp32")), (bundle, exact)
    by_name = {row.package: row.psnr for row in rows_of_formats(*pair, text, record, "fp32")}
    assert list(by_name) == [p.name for p in nested.manifest.packages]
    # coremltools writes the exact GELU where the encoder asks for its tanh form
    assert 85 <= by_name.pop("text_encoder") < 100
    assert min(by_name.values()) >= 120


@pytest.mark.parametrize(
    ("layout", "compute"),
    [
        pytest.param("multifunction", "gpu", marks=pytest.mark.slow),
        pytest.param("nested", "gpu", marks=pytest.mark.slow),
        pytest.param("monolith", "ane", marks=pytest.mark.slow),
        pytest.param("multifunction", "ane", marks=pytest.mark.slow),
    ],
)
def test_other_layouts_and_layers(
    make: MakeBundle, tiny_source: ModelSource, layout: str, compute: str
) -> None:
    made = make(layout, compute)
    report = verify_source(made, tiny_source, VerifyOptions(prompts=1))
    assert report.passed, report.as_json()
    assert not verify_source(made, changed(tiny_source), VerifyOptions(prompts=1)).passed


def test_both_formats_confirm_each_other(bundle: Bundle, nested: Bundle) -> None:
    report = verify(nested, options=VerifyOptions(against=bundle))
    assert report.passed, report.as_json()
    rows = rung(report, "Apple's runtime").parts
    assert [row.package for row in rows] == [p.name for p in nested.manifest.packages]
    assert min(row.psnr for row in rows) >= 58


def test_a_loader_is_for_its_own_bundle_alone(bundle: Bundle, nested: Bundle) -> None:
    opened: set[str] = set()

    def load(path: Path, function: str | None, units: ComputeUnits) -> Runnable:
        opened.add(path.suffix)
        return executor("fp16")(path, function, units)

    report = verify(nested, options=VerifyOptions(against=bundle, load=load))
    assert opened == {".mlpackage"}
    assert rung(report, "Apple's runtime").passed


@pytest.mark.slow
def test_formats_of_different_models_are_told_apart(
    bundle: Bundle, tiny_source: ModelSource, tmp_path: Path
) -> None:
    other = converted(changed(tiny_source), tmp_path / "other.bundle", ConvertOptions())
    rows = rung(verify(other, options=VerifyOptions(against=bundle)), "Apple's runtime").parts
    assert [row.package for row in rows if not row.passed] == ["core_8"]


def test_two_bundles_of_one_format_cannot_confirm_each_other(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="give one of each format"):
        verify(bundle, options=VerifyOptions(against=bundle))


def layers(manifest: Manifest, compute: ComputeUnits) -> Manifest:
    packages = tuple(dataclasses.replace(p, compute=compute) for p in manifest.packages)
    return dataclasses.replace(manifest, packages=packages)


FORMS: dict[str, tuple[Callable[[Manifest], Manifest], str]] = {
    "layout": (
        lambda m: dataclasses.replace(m, layout="monolith"),
        "its layout is monolith, but in .* nested;",
    ),
    "layers": (
        lambda m: layers(m, "cpuAndGPU"),
        "its layers are those for gpu, but in .* ane;",
    ),
    "precision": (
        lambda m: dataclasses.replace(
            m,
            packages=(*m.packages[:-1], dataclasses.replace(m.packages[-1], precision="fp32")),  # type: ignore[arg-type]
        ),
        "its precision is fp16, fp32, but in .* fp16;",
    ),
    "bits": (
        lambda m: dataclasses.replace(
            m,
            variant="palettized-4",
            packages=tuple(dataclasses.replace(p, weight_bits=4) for p in m.packages),
        ),
        r"its weights have 4 bits \(palettized-4\), but in .* 16 bits \(fp16\);",
    ),
    "way to compress": (
        lambda m: dataclasses.replace(m, variant="palettized-8"),
        r"its weights have 16 bits \(palettized-8\), but in .* 16 bits \(fp16\);",
    ),
    "packages": (
        lambda m: dataclasses.replace(m, packages=m.packages[1:]),
        "its packages are conditioning, .*, but in .* text_encoder, conditioning",
    ),
}


@pytest.mark.parametrize("kind", FORMS)
def test_bundles_of_another_form_cannot_confirm_each_other(
    bundle: Bundle, nested: Bundle, kind: str
) -> None:
    """The manifest alone says so; no package is run."""
    change, sentence = FORMS[kind]
    check_other_format(nested, bundle)
    other = Bundle(bundle.path, change(bundle.manifest))
    with pytest.raises(BundleError, match=f"^{other.path}: {sentence}.*convert one model twice"):
        check_other_format(nested, other)


def test_a_compressed_bundle_is_not_held_to_one_in_16_bits(
    bundle: Bundle, nested: Bundle, tmp_path: Path
) -> None:
    small, _ = palettized(nested, tmp_path / "small.bundle", Setting(4))
    words = ["verify", str(small.path), "--against", str(bundle.path), "--quiet"]
    done = CliRunner().invoke(group, words)
    assert isinstance(done.exception, BundleError), done.exception
    assert "its weights have 16 bits (fp16), but in " in str(done.exception)


def test_no_number_leaves_fp16(bundle: Bundle) -> None:
    features = [f for p in bundle.manifest.packages for f in (*p.inputs, *p.outputs)]
    assert {f.dtype for f in features} == {"fp16", "int32"}


def test_the_manifest_says_the_format(bundle: Bundle, nested: Bundle) -> None:
    assert (bundle.manifest.schema, bundle.manifest.format) == (2, "coreai")
    assert bundle.manifest.target == "iOS27"
    assert all(p.path.endswith(".aimodel") for p in bundle.manifest.packages)
    assert (nested.manifest.schema, nested.manifest.format) == (1, "coreml")


@pytest.mark.slow
def test_functions_share_their_weights(make: MakeBundle) -> None:
    shared = make("multifunction", "gpu")
    whole = make("monolith", "gpu")
    together = shared.file("denoiser.aimodel/main.mlirb").stat().st_size
    alone = whole.file("denoiser.aimodel/main.mlirb").stat().st_size
    weights = 2 * sum(p.numel() for p in _network(shared).values())
    assert together < alone + weights // 4  # two functions, one set of weights


def _network(bundle: Bundle) -> dict[str, torch.Tensor]:
    return dict(random_source(bundle.config(), 0).net.named_parameters())


def test_sampling_is_that_of_the_model(bundle: Bundle, model_folder: Path, tmp_path: Path) -> None:
    def pixels(model: Path) -> np.ndarray:
        from PIL import Image

        out = tmp_path / f"{model.name}.png"
        arguments = ["--prompt", "red heart", "--steps", "3", "--seed", "5", "--out", str(out)]
        done = CliRunner().invoke(group, ["sample", "--model", str(model), *arguments, "--quiet"])
        assert done.exit_code == 0, done.output
        return np.asarray(Image.open(out).convert("RGB"), np.float64)

    error = pixels(bundle.path) - pixels(model_folder)
    assert np.sqrt(np.square(error).mean()) < 255 / 100  # 40 dB


def test_converting_twice_gives_the_same_bytes_without_a_path(
    tiny_source: ModelSource, model_folder: Path, make: MakeBundle, tmp_path: Path
) -> None:
    out = tmp_path / "again.bundle"
    arguments = ["--format", "coreai", "--layout", "monolith", "--quiet", "--out", str(out)]
    subprocess.run(
        [sys.executable, "-m", "mdm_apple", "convert", str(model_folder), *arguments],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "3"},
    )
    assert Bundle.open(out).manifest.digest == make("monolith").manifest.digest
    here = str(Path(__file__).parents[1]).encode()
    for file in out.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert here not in data
            assert str(tmp_path).encode() not in data
            assert sys.prefix.encode() not in data


PROGRAMS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "zeroed": lambda data: bytes(len(data)),
    "noise in the head": lambda data: np.random.RandomState(0).bytes(256) + data[256:],
    "the first half twice": lambda data: data[: len(data) // 2] * 2,
}
PACKAGES: dict[str, Callable[[Path], object]] = {
    "one bit of a weight": lambda package: _edit(package / "main.mlirb", _last_bit),
    "no program": lambda package: (package / "main.mlirb").unlink(),
    "no hash": lambda package: (package / "main.hash").unlink(),
    "another hash": lambda package: (package / "main.hash").write_bytes(bytes(32)),
    "a short hash": lambda package: (package / "main.hash").write_bytes(b"1"),
    "no metadata": lambda package: (package / "metadata.json").unlink(),
    "metadata that is no JSON": lambda package: (package / "metadata.json").write_text("{"),
    "a file too many": lambda package: (package / "main.odix").write_bytes(b"1"),
    **{
        f"program: {kind}": lambda package, damage=damage: _edit(package / "main.mlirb", damage)
        for kind, damage in PROGRAMS.items()
    },
}


def _edit(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


def _last_bit(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_damaged_package_refuses_the_bundle_in_one_sentence(
    bundle: Bundle, tmp_path: Path, kind: str
) -> None:
    copied = tmp_path / "damaged.bundle"
    shutil.copytree(bundle.path, copied)
    PACKAGES[kind](copied / "down_16.aimodel")
    done = CliRunner().invoke(group, ["verify", str(copied), "--quiet"])
    assert done.exit_code == 1
    assert isinstance(done.exception, BundleError), done.exception
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_damaged_program_ends_the_child_and_nothing_else(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Where it gets that far: the bundle's hashes stop it before."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    package = tmp_path / "down_16.aimodel"
    shutil.copytree(bundle.file("down_16.aimodel"), package)
    _edit(package / "main.mlirb", PROGRAMS[kind])
    runtime = AppleRuntime()
    inputs = {f.name: np.zeros(f.shape, np.float32) for f in bundle.package("down_16").inputs}
    try:
        with pytest.raises(ExecutionError, match=r"^down_16\.aimodel: [^\n]*\.$"):
            runtime(package, None, "all")(inputs)
        if runtime.process is None:
            assert list(temporary.iterdir()) == []
    finally:
        runtime.close()
    assert list(temporary.iterdir()) == []


def test_a_killed_child_is_named_and_replaced(bundle: Bundle) -> None:
    runtime = AppleRuntime()
    run = runtime(bundle.file("down_16.aimodel"), None, "all")
    inputs = {f.name: np.ones(f.shape, np.float32) for f in bundle.package("down_16").inputs}
    before = run(inputs)
    assert runtime.process is not None
    os.kill(runtime.process, signal.SIGKILL)
    with pytest.raises(ExecutionError, match=r"was killed \(signal 9\)"):
        run(inputs)
    after = run(inputs)
    assert all((before[name] == after[name]).all() for name in before)
    runtime.close()


def test_the_child_is_renewed_before_its_outputs_fill_the_memory(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = len(bundle.package("down_16").outputs)
    monkeypatch.setattr(runtime_module, "MOST_OUTPUTS", 2 * outputs - 1)
    runtime = AppleRuntime()
    run = runtime(bundle.file("down_16.aimodel"), None, "all")
    inputs = {f.name: np.ones(f.shape, np.float32) for f in bundle.package("down_16").inputs}
    found = [run(inputs) for _ in range(4)]
    assert runtime.children == 2
    assert all((found[0][n] == later[n]).all() for later in found for n in found[0])
    runtime.close()


def test_inputs_of_the_wrong_shape_are_refused_in_one_sentence(bundle: Bundle) -> None:
    runtime = AppleRuntime()
    run = runtime(bundle.file("down_16.aimodel"), None, "all")
    with pytest.raises(ExecutionError, match=r"^down_16\.aimodel: Apple's runtime refused it"):
        run({f.name: np.ones((1, 1), np.float32) for f in bundle.package("down_16").inputs})
    runtime.close()


def test_a_package_that_is_too_large_is_refused_by_name(
    tiny_source: ModelSource, tmp_path: Path
) -> None:
    options = ConvertOptions("monolith", format="coreai", max_package_mb=0.001)
    said: list[str] = []
    with pytest.raises(ConversionError, match=r"^text_encoder\.aimodel: is .* are not split"):
        convert(tiny_source, tmp_path / "tiny.bundle", options, say=said.append)
    assert said == ["text_encoder: capturing and lowering"]  # the network has not run
    assert list(tmp_path.iterdir()) == []


@pytest.mark.bundle
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    out = tmp_path / "tiny.bundle"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 16}, {1 << 16}))"
    ignore = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    words = ["convert", "--preset", "tiny", "--layout", "monolith", "--format", "coreai"]
    command = f"{limit}; {ignore}; from mdm_apple.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, *words, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "disk is full or a file size limit is reached" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.bundle
def test_a_full_folder_for_temporary_files_is_named_as_such(bundle: Bundle, tmp_path: Path) -> None:
    """A package is read and saved in a child before it is palettized."""
    out = tmp_path / "smaller.bundle"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 12}, {1 << 12}))"
    words = ["palettize", str(bundle.path), "--bits", "6", "--out", str(out), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", f"{limit}; from mdm_apple.cli import main; main()", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "is tried out in the folder for temporary files" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.bundle
def test_packages_that_do_not_load_are_one_sentence(bundle: Bundle, tmp_path: Path) -> None:
    """A library that is not there, as after half an installation."""
    broken = tmp_path / "site" / "coreai"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libIR.so: cannot open the file')")
    for words in (
        ["verify", str(bundle.path)],
        ["convert", "--preset", "tiny", "--format", "coreai", "--out", str(tmp_path / "b")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "mdm_apple", *words, "--quiet"],
            env={**os.environ, "PYTHONPATH": str(broken.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "cannot be loaded (libIR.so: cannot open the file)" in done.stderr


@pytest.mark.bundle
def test_core_ai_needs_nothing_of_core_ml(tmp_path: Path) -> None:
    """The extra coreai alone converts, verifies and palettizes."""
    out = tmp_path / "tiny.bundle"
    for arguments in (
        ("convert", "--preset", "tiny", "--layout", "monolith", "--format", "coreai"),
        ("verify", str(out), "--prompts", "1"),
        ("palettize", str(out), "--bits", "6"),
    ):
        place = {"convert": out, "palettize": tmp_path / "six.bundle"}.get(arguments[0])
        added = () if place is None else ("--out", str(place))
        done = run_without("coremltools", *arguments, *added, "--quiet")
        assert done.returncode == 0, done.stderr
    assert run_without("coremltools", "inspect", str(out)).returncode == 0


@pytest.mark.parametrize(("form", "target"), [("coreai", "iOS26"), ("coreml", "iOS27")])
def test_a_target_of_the_other_format_is_refused(form: str, target: str) -> None:
    with pytest.raises(ConfigError, match=rf"^target: {target} does not go with --format {form}"):
        ConvertOptions(target=target, format=form)  # type: ignore[arg-type]


def test_a_wrong_hash_file_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """Apple's runtime does not compare it, so a bundle that was put together anew would load."""
    copied = tmp_path / "altered.bundle"
    shutil.copytree(bundle.path, copied)
    (copied / "down_16.aimodel" / "main.hash").write_bytes(bytes(32))
    (copied / MANIFEST).unlink()
    finish_bundle(copied, bundle.manifest)
    with pytest.raises(BundleError, match=r"main\.hash is not the SHA-256 of its main\.mlirb"):
        Bundle.open(copied)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--runtime", "reference"], "holds Core AI packages, which run on coreai, not reference"),
        (["--precision", "fp32"], "fp32 packages of Core AI are made from the model folder"),
        (["--compute-units", "all"], "Core AI chooses units on macOS 27 only"),
    ],
)
def test_verify_refuses_what_does_not_go_together(
    bundle: Bundle, arguments: list[str], sentence: str
) -> None:
    done = CliRunner().invoke(group, ["verify", str(bundle.path), *arguments])
    assert done.exit_code == 1
    assert sentence in str(done.exception)


def test_verify_refuses_other_bundles_before_it_opens_the_model(
    bundle: Bundle, nested: Bundle, make: MakeBundle, tmp_path: Path
) -> None:
    """The model folder does not exist, which nobody finds out."""
    absent, monolith = tmp_path / "no model", make("monolith", "gpu")
    for options, sentence in (
        (VerifyOptions(fp16=nested), "is a coreml bundle, unlike"),
        (VerifyOptions(against=monolith), "give one of each format"),
    ):
        with pytest.raises(BundleError, match=sentence):
            verify(bundle, absent, options)
    with pytest.raises(BundleError, match="fp32 packages of Core AI are made from the model"):
        verify(nested, options=VerifyOptions("fp32", against=bundle))


def test_the_report_as_json(bundle: Bundle) -> None:
    done = CliRunner().invoke(group, ["verify", str(bundle.path), "--json", "--quiet"])
    report = json.loads(done.stdout)
    assert (report["runtime"], report["passed"]) == ("coreai", True)
