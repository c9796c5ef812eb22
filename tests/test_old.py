"""What was made before opens, resumes and repeats (tests/old/README.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from mdm_apple.bundled_models import EMOJI, EMOJI_STUDENT
from mdm_apple.cli import group
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.verify.verify import VerifyOptions, verify
from mdm_apple.sampling.pictures import read_recipe
from mdm_apple.storage.atomic_folder import verify_files
from mdm_apple.storage.model_folder import load_model_config, load_training, load_weights

OLD = Path(__file__).parent / "old"
PICTURES = sorted((OLD / "pictures").glob("*.png"))
MODELS = {
    "run": OLD / "run",
    "model": OLD / "model",
    "emoji": EMOJI,
    "student": EMOJI_STUDENT,
}
# Of sums over a tensor; rounding differs between processors, a changed step does not hide in it.
RESUMED = 1e-4


def mdm(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(group, [str(a) for a in arguments])
    assert result.exit_code == 0, result.exception or result.output
    return result


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old run, resumed to its twelfth step."""
    out = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(OLD / "run", out)
    settings = "--steps 12 --batch-size 4 --seed 3 --save-every 4 --log-every 2 --workers 0"
    arguments = [*settings.split(), "--lr", "0.002", "--data", OLD / "data", "--quiet"]
    mdm("train", "--config", OLD / "config.json", *arguments, "--out", out, "--resume")
    return out


def relative_error(got: object, wanted: object) -> float:
    a, b = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(a - b).max() / np.abs(b).max())


def wanted() -> dict[str, dict[str, list[float]]]:
    """Sum and sum of squares of each tensor, by file."""
    return json.loads((OLD / "resumed.json").read_text())["sums"]


def sums_error(tensor: np.ndarray, sums: list[float]) -> float:
    """The larger error of both sums, each relative to what its tensor's squares allow at most."""
    values, (plain, squares) = tensor.astype(np.float64), sums
    of_plain = abs(values.sum() - plain) / np.sqrt(values.size * squares)
    return max(of_plain, abs(np.square(values).sum() / squares - 1))


def compared(kind: str, tensors: dict[str, np.ndarray]) -> dict[str, float]:
    """Errors by name. Left out are the biases of `conv2`: a norm behind them takes out most of what
    they add, so their gradients can be rounding noise, which Adam turns into whole steps. With
    other kernels of PyTorch such a bias differs by a tenth, and nothing else by 1e-5."""
    sums = wanted()[kind]
    assert sorted(tensors) == sorted(sums)
    names = [name for name in tensors if not name.endswith("conv2.bias")]
    return {name: sums_error(tensors[name], sums[name]) for name in names}


def test_a_run_resumes_where_it_stood(resumed: Path) -> None:
    metrics = json.loads((OLD / "resumed.json").read_text())["metrics"]
    lines = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [line["step"] for line in metrics]
    for line, before in zip(lines, metrics, strict=True):
        for name in ("loss", "level_losses", "grad_norm", "lr"):
            assert relative_error(line[name], before[name]) < RESUMED, name
    for kind in wanted():
        errors = compared(kind, load_file(resumed / f"{kind}.safetensors"))
        assert max(errors.values()) < RESUMED
    assert load_training(resumed).meta["step"] == 12


@pytest.mark.parametrize("kind", ["model", "ema", "text_encoder"])
def test_no_tensor_of_the_resumed_run_passes_with_its_sign_flipped(
    resumed: Path, kind: str
) -> None:
    tensors = load_file(resumed / f"{kind}.safetensors")
    errors = compared(kind, {name: -tensor for name, tensor in tensors.items()})
    assert min(errors.values()) > RESUMED


def test_the_run_before_it_was_resumed_does_not_pass_for_the_resumed_one() -> None:
    errors = compared("model", dict(load_weights(OLD / "run")))
    assert max(errors.values()) > 10 * RESUMED


def test_folders_are_as_they_were_written() -> None:
    for folder in (OLD / "run", OLD / "model"):
        verify_files(folder)
    assert load_model_config(OLD / "model").model == load_model_config(OLD / "run").model


def test_a_bundle_opens_and_is_what_its_model_computes() -> None:
    bundle = Bundle.open(OLD / "model.bundle")
    assert verify(bundle, OLD / "run", VerifyOptions(prompts=2)).passed
    assert verify(bundle).passed  # by its own golden record


@pytest.mark.bundle
def test_a_model_is_converted_to_the_same_packages(tmp_path: Path) -> None:
    """All but the golden record, which holds what this processor computes."""
    out = tmp_path / "model.bundle"
    mdm("convert", OLD / "run", "--layout", "nested", "--out", out, "--quiet")
    before, after = (
        {p.relative_to(root): p for p in sorted(root.rglob("*")) if p.is_file()}
        for root in (OLD / "model.bundle", out)
    )
    assert list(before) == list(after)
    packages = [path for path in before if path.parts[0].endswith(".mlpackage")]
    assert len(packages) > 10
    for path in packages:
        assert before[path].read_bytes() == after[path].read_bytes(), path
    for name in ("tables.safetensors", "golden.safetensors"):
        old, new = load_file(OLD / "model.bundle" / name), load_file(out / name)
        assert sorted(old) == sorted(new)
        for key, value in old.items():
            np.testing.assert_allclose(new[key], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: p.stem)
def test_a_picture_is_made_again_byte_for_byte(picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.png"
    model = MODELS[picture.stem.split("_")[0]]
    mdm("sample", "--like", picture, "--model", model, "--backend", "torch", "--out", out)
    assert out.read_bytes() == picture.read_bytes()


def test_a_picture_of_another_seed_is_another(tmp_path: Path) -> None:
    picture = OLD / "pictures" / "run_0.png"
    recipe = read_recipe(picture)
    out = tmp_path / "other.png"
    made = ("--prompt", recipe.prompt, "--steps", recipe.steps or 1, "--seed", recipe.seed + 1)
    mdm("sample", "--model", OLD / "run", *map(str, made), "--backend", "torch", "--out", out)
    assert out.read_bytes() != picture.read_bytes()
