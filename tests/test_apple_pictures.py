"""Pictures of Apple's checkpoints are those of Apple's own program, from prompts to pixels.

golden/apple_pictures holds a small model that Apple's trainer trained, and the pictures that its
sampler made; `apple_program.py` made it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_cache import converted
from click.testing import CliRunner
from numpy.typing import NDArray

from mdm_apple.cli import group
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.psnr import picture_psnr
from mdm_apple.conversion.run.runtime import open_bundle_runtime
from mdm_apple.conversion.source.model import load_source
from mdm_apple.sampling.generate import Prompt, Runtime
from mdm_apple.sampling.remarks import remarks
from mdm_apple.sampling.walk import SamplerConfig, sample
from mdm_apple.storage.model_folder import load_model_config, save_config
from mdm_apple.storage.tensorfile import read_tensors
from mdm_apple.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden" / "apple_pictures"
SETTINGS = json.loads((GOLDEN / "pictures.json").read_text())
PICTURES: list[dict[str, Any]] = SETTINGS["pictures"]
ENCODER = GOLDEN / "encoder"
Recorded = dict[str, NDArray[Any]]


@pytest.fixture(scope="session")
def recorded() -> Recorded:
    return tensors(GOLDEN / "pictures.safetensors")


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_from(GOLDEN, tmp_path_factory.mktemp("apple"))


def tensors(path: Path) -> Recorded:
    return {name: np.array(value) for name, value in read_tensors(path).items()}


def import_from(made: Path, folder: Path) -> Path:
    """The checkpoint among the files of `apple_program.py`, imported by the command."""
    weights = tensors(made / "weights.safetensors")
    state = {k: torch.from_numpy(v.astype(np.float32)) for k, v in weights.items()}
    torch.save({"state_dict": state}, folder / "model.pth")
    arguments = ["import", str(folder / "model.pth"), "--yaml", str(made / "model.yaml")]
    arguments += ["--text-encoder", str(made / "encoder"), "--out", str(folder / "model")]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    return folder / "model"


@pytest.fixture
def padded_to_the_end(imported: Path, tmp_path: Path) -> Path:
    """The same model as it was imported before: all padding is seen, and no prompt is the end."""
    return with_text(imported, tmp_path / "before", padding="max_tokens", null_prompt="end")


def with_text(model: Path, out: Path, **changes: Any) -> Path:
    shutil.copytree(model, out)
    config = load_model_config(out)
    assert config.text
    save_config(out, dataclasses.replace(config, text=dataclasses.replace(config.text, **changes)))
    return out


def decibels(runtime: Runtime, recorded: Recorded, which: range) -> list[float]:
    """How near our pictures are to the recorded ones, from the same noise."""
    found = list[float]()
    for k in which:
        asked = PICTURES[k]
        prompt = Prompt(asked["prompt"], 0, asked["negative"])
        noise = [recorded[f"{k}.noise.{level}"] for level in range(2)]
        steps = sample(
            runtime.denoiser([prompt], asked["guidance"], 0),
            [runtime.image(level) for level in noise],
            list,
            runtime.schedule,
            runtime.config.diffusion,
            SamplerConfig("ddim", SETTINGS["steps"], guidance_scale=asked["guidance"]),
            runtime.config.model.scales,
            runtime.ops,
        )
        *_, last = steps
        picture = np.clip(runtime.numpy(last.x_next[0]), -1, 1)
        found.append(picture_psnr(recorded[f"{k}.picture"], picture))
    return found


def torch_runtime(folder: Path, encoder: Path = ENCODER) -> Runtime:
    from mdm_apple.torch.load import open_runtime

    return open_runtime(folder, encoder_folder=encoder)


def mlx_runtime(folder: Path) -> Runtime:
    from mdm_apple.mlx.load import open_runtime

    return open_runtime(folder, encoder_folder=ENCODER)


@pytest.mark.parametrize(
    ("open_runtime", "least"),
    [pytest.param(torch_runtime, 80, id="torch"), pytest.param(mlx_runtime, 60, id="mlx")],
)
def test_pictures_are_those_of_apples_program(
    open_runtime: Callable[[Path], Runtime],
    least: float,
    imported: Path,
    recorded: Recorded,
) -> None:
    found = decibels(open_runtime(imported), recorded, range(len(PICTURES)))
    assert min(found) >= least, found


@pytest.mark.parametrize("open_runtime", [torch_runtime, mlx_runtime])
def test_without_its_padding_or_null_prompt_they_are_others(
    open_runtime: Callable[[Path], Runtime],
    imported: Path,
    tmp_path: Path,
    recorded: Recorded,
) -> None:
    others = {"padding": "max_tokens"}, {"null_prompt": "end"}
    for k, change in enumerate(others):
        folder = with_text(imported, tmp_path / str(k), **change)
        found = decibels(open_runtime(folder), recorded, range(len(PICTURES)))
        assert min(found) < 60, (change, found)


def test_tokens_and_features_are_those_of_apples_program(
    imported: Path, recorded: Recorded
) -> None:
    from mdm_apple.torch.text import open_text

    config = load_model_config(imported)
    assert config.text
    spiece = (ENCODER / "spiece.model").read_bytes()
    tokenizer = Tokenizer(spiece, null_prompt=config.text.null_prompt)
    encode = open_text(imported, config, torch.device("cpu"), encoder_folder=ENCODER)
    assert encode is not None
    for k, asked in enumerate(PICTURES):
        captions = [asked["prompt"]]
        if asked["guidance"] != 1:
            captions.insert(0, asked["negative"])
        batch = tokenizer.encode(captions, config.text.max_tokens)
        np.testing.assert_array_equal(batch.ids, recorded[f"{k}.tokens"])
        values, mask, seen = encode(captions, captions[::-1])
        wanted = recorded[f"{k}.features"]
        length = wanted.shape[1]
        assert seen is not None
        assert seen.sum(dim=1).tolist() == [length] * len(captions)
        assert mask.sum(dim=1).tolist() == recorded[f"{k}.mask"].sum(axis=1).tolist()
        np.testing.assert_allclose(values[:, :length].detach(), wanted, atol=2e-5)


def test_a_picture_does_not_depend_on_its_neighbours(imported: Path) -> None:
    runtime = torch_runtime(imported)
    short, long = Prompt("green", 0, ""), Prompt("two blue squares on a red hill", 0, "")
    x = [
        runtime.image(np.random.RandomState(1).standard_normal((2, 3, side, side)).astype("f4"))
        for side in (32, 16)
    ]
    together = runtime.denoiser([short, long], 4.0, 0)(x, 500)
    alone = runtime.denoiser([short], 4.0, 0)([level[:1] for level in x], 500)
    for both, one in zip(together, alone, strict=True):
        np.testing.assert_allclose(both[:1], one, atol=2e-5)


@pytest.mark.parametrize(
    ("layout", "compute"),
    [
        ("multifunction", "gpu"),
        pytest.param("nested", "ane", marks=pytest.mark.slow),
        pytest.param("nested", "gpu", marks=pytest.mark.slow),
        pytest.param("monolith", "ane", marks=pytest.mark.slow),
    ],
)
def test_packages_of_any_layout_make_them(
    layout: Any, compute: Any, imported: Path, recorded: Recorded, tmp_path: Path
) -> None:
    model = shutil.copytree(imported, tmp_path / "model")
    shutil.copytree(ENCODER, model / "encoder")
    source = load_source(model)
    bundle = converted(source, tmp_path / "bundle", ConvertOptions(layout=layout, compute=compute))
    runtime, _ = open_bundle_runtime(bundle.path, "fp16")
    found = decibels(runtime, recorded, range(1, 4))
    assert min(found) >= 40, found


@pytest.mark.skipif("MDM_REFERENCE" not in os.environ, reason="needs a checkout of apple/ml-mdm")
def test_so_are_those_of_a_model_that_its_trainer_trains_now(tmp_path: Path) -> None:
    pytest.importorskip("mlx.data", reason="needs mlx-data")
    from apple_program import write

    made = tmp_path / "made"
    write(Path(os.environ["MDM_REFERENCE"]), made)
    runtime = torch_runtime(import_from(made, tmp_path), made / "encoder")
    found = decibels(runtime, tensors(made / "pictures.safetensors"), range(len(PICTURES)))
    assert min(found) >= 80, found


def test_an_older_import_is_remarked_once(padded_to_the_end: Path, imported: Path) -> None:
    asked = SamplerConfig(), [Prompt("green", 0)], None
    before = remarks(padded_to_the_end, load_model_config(padded_to_the_end), *asked)
    assert [r for r in before if "import the checkpoint again" in r] == before[:1] != []
    now = remarks(imported, load_model_config(imported), *asked)
    assert not [r for r in now if "import" in r]
