"""Models of clips: MLX learns and samples as torch does, and memory is counted for their frames."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import Backend, MlxBackend, TorchBackend, predict
from paired import batch_of
from small import around, normal, plain, random_state, save_random_model
from tolerances import MLX_PICTURE, TRAIN_WEIGHTS

from mdm_apple.api import distill
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.diffusion.pyramid import build_pyramid
from mdm_apple.diffusion.schedule import build_schedule
from mdm_apple.open_model import TrainingBackend
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.inner_model import inner_model
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.storage.model_folder import load_weights
from mdm_apple.training.boot import BootConfig, BootLoss
from mdm_apple.training.memory_estimate import estimate
from mdm_apple.training.settings import TrainConfig

torch = pytest.importorskip("torch")
pytest.importorskip("mlx.core")

STEPS, ROWS, LOSSES = 4, 4, 1e-5
STUDENT_LOSSES = 1e-4  # relative; three networks follow one another
WEIGHT = "down_blocks.0.t_attn.0.attn.qkv.weight"


def clips() -> ModelConfig:
    """The small preset of clips, with as many numbers per group as parity needs."""
    config = preset("tiny_video")
    core = dataclasses.replace(config.model.innermost, channels=(64, 64))
    model = dataclasses.replace(config.model, channels=(64, 64, 64), inner=core)
    text = dataclasses.replace(config.text, trainable=False, encoder=None)  # type: ignore[type-var]
    return dataclasses.replace(config, model=model, text=text)


def losses(backend: Backend, state: dict[str, np.ndarray]) -> tuple[list[float], Any]:
    config = clips()
    train = TrainConfig(steps=STEPS, batch_size=ROWS, lr=1e-4, warmup_steps=0)

    def text() -> tuple[np.ndarray, np.ndarray]:
        width = config.model.innermost.text_dim or 0
        return normal(1, ROWS, 5, width), np.ones((ROWS, 5), np.float32)

    learner = backend.learner(config, train, state, text)
    found = [learner.step(batch_of(config, ROWS, k), k).loss for k in range(STEPS)]
    return found, learner.snapshot().weights


def test_steps_on_clips_give_the_losses_and_weights_of_torch_and_one_weight_shows() -> None:
    state = random_state(clips().model)
    their_losses, theirs = losses(TorchBackend(), state)
    our_losses, ours = losses(MlxBackend(), state)
    np.testing.assert_allclose(our_losses, their_losses, rtol=LOSSES)
    assert max(float(np.abs(ours[k] - v).max()) for k, v in theirs.items()) <= TRAIN_WEIGHTS
    moved = {name: value.copy() for name, value in state.items()}
    moved[WEIGHT][0] += 0.5
    others, _ = losses(MlxBackend(), moved)
    assert max(abs(a - b) / b for a, b in zip(others, their_losses, strict=True)) > LOSSES


def canvases(backend: Backend, folder: Path) -> np.ndarray:
    prompts = [Prompt("rocket moving up", 3), Prompt("cat growing", 4)]
    sampler = SamplerConfig("dpmpp", 6, guidance_scale=2.0)
    return finish(generate(backend.runtime(folder), prompts, sampler))[0]


def test_a_seed_gives_the_clip_of_torch_and_one_weight_shows(tmp_path: Path) -> None:
    config = preset("tiny_video")
    folder = save_random_model(tmp_path / "clips", config)
    by_torch = canvases(TorchBackend(), folder)
    assert psnr(by_torch, canvases(MlxBackend(), folder)) >= MLX_PICTURE
    weights = load_weights(folder)
    weights[WEIGHT][0] += 0.5
    other = save_random_model(tmp_path / "other", config, weights)
    assert psnr(by_torch, canvases(MlxBackend(), other)) < MLX_PICTURE


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """In dB, peak 2."""
    return -10 * float(np.log10(np.mean((one.astype(np.float64) - other) ** 2) / 4))


def kept_for_backward(config: ModelConfig, rows: int) -> int:
    """Bytes of the tensors that torch keeps for the backward pass, each once."""
    net = TorchBackend().network(config.model, random_state(config.model)).train()
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = [torch.zeros(rows, 3, side, side) for side in config.sides]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(images, torch.zeros(rows, dtype=torch.long))
    return sum(kept.values())


def test_the_estimate_counts_stages_of_half_the_frames() -> None:
    """At 16 frames of 32 px; a level of time has more pixels inside than one of pictures."""
    config = preset("motion")
    level = config.model.inner
    assert level is not None
    core = UNetConfig(
        channels=(32,),
        num_resnets=(1,),
        num_attention_layers=(0,),
        mid_blocks=False,
        temb_dim=128,
        num_groups=16,
    )
    alone = ModelConfig(dataclasses.replace(level, inner=core), 64)
    predicted = estimate(alone, TrainConfig(steps=1, batch_size=2)).activations_per_picture
    measured = kept_for_backward(alone, 2) / 2
    assert 0.55 <= measured / predicted <= 1


@pytest.mark.parametrize("name", ["tiny_video", "motion"])
@pytest.mark.parametrize("backend", [TorchBackend(), MlxBackend()], ids=lambda b: b.name)
def test_pictures_stay_as_they_are_where_clips_grow_around_them(
    backend: Backend, name: str
) -> None:
    config = preset(name)
    pictures = inner_model(config, config.sides[-1])
    assert (pictures.video, pictures.frames) == (None, 1)
    trained = random_state(pictures.model)
    depth = "inner_unet." * (len(config.sides) - 1)
    grown = backend.initial_state(config.model, 0)
    grown |= {depth + weight: value for weight, value in trained.items()}
    width = config.model.innermost.text_dim or 0
    text, mask = normal(1, 2, 5, width), np.ones((2, 5), np.float32)
    images = [normal(k, 2, 3, side, side) for k, side in enumerate(config.sides)]

    def picture(model: UNetConfig, weights: dict[str, np.ndarray], given: int) -> np.ndarray:
        net = backend.network(model, weights)
        inside = [backend.image(x) for x in images[-given:]]
        out = predict(backend, net, inside, np.array([10, 900]), text, mask, {})
        return backend.numpy(out[-1])

    alone = picture(pictures.model, trained, 1)
    np.testing.assert_allclose(
        picture(config.model, grown, len(images)), alone, atol=1e-6 * np.abs(alone).max()
    )
    adapter = next(key for key in grown if "adapter" in key and key.endswith("weight"))
    moved = grown | {adapter: grown[adapter] + 0.1}
    assert np.abs(picture(config.model, moved, len(images)) - alone).max() > 1e-3


def student_losses(teacher: Path, out: Path, backend: TrainingBackend) -> list[float]:
    settings = TrainConfig(steps=2, batch_size=2, warmup_steps=0)
    distill(teacher, out, settings=settings, backend=backend)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_student_of_clips_learns_as_in_torch_and_one_weight_shows(tmp_path: Path) -> None:
    config = preset("tiny_video")
    teacher = save_random_model(tmp_path / "teacher", config)
    weights = load_weights(teacher)
    weights[WEIGHT][0] += 0.5
    other = save_random_model(tmp_path / "other", config, weights)
    for folder in (teacher, other):
        (folder / "captions.txt").write_text("cat growing\nrocket moving up\n")
    theirs = student_losses(teacher, tmp_path / "torch", "torch")
    ours = student_losses(teacher, tmp_path / "mlx", "mlx")
    moved = student_losses(other, tmp_path / "moved", "mlx")
    np.testing.assert_allclose(ours, theirs, rtol=STUDENT_LOSSES)
    assert max(abs(a - b) / b for a, b in zip(moved, theirs, strict=True)) > STUDENT_LOSSES


def test_a_student_of_clips_is_not_pulled_to_sheets_of_small_frames() -> None:
    """Levels that agree as training derives them have no gap; only frame 0 is the key frame."""
    config, ops = preset("tiny_video"), NumpyOps()
    schedule = build_schedule(config.diffusion.schedule, config.model.scales)
    loss = BootLoss(
        schedule,
        config.diffusion,
        config.model,
        BootConfig(),
        ops,
        lambda x: x,
    )
    canvas = normal(0, 2, 3, config.side, config.side)
    signal = [1.0, 1.0]
    levels = build_pyramid(canvas, config.model, ops)
    assert float(loss._level_gap(levels, signal)[0].max()) == 0
    canvas[:, :, -1, -1] += 1  # of the last frame
    assert float(loss._level_gap([canvas, levels[1]], signal)[0].max()) == 0
    canvas[:, :, 0, 0] += 1
    assert float(loss._level_gap([canvas, levels[1]], signal)[0].min()) > 0
    pooled = dataclasses.replace(loss, network=around(plain()))
    assert float(pooled._level_gap(levels, signal)[0].min()) > 0
