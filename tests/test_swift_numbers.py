"""Noise, schedules, samplers and pictures in Swift against Python, on new numbers at each run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from swift_tools import Dump

from mdm_apple.config.model import DiffusionConfig, ScheduleConfig
from mdm_apple.diffusion.noise import NoiseStream
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.diffusion.schedule import Schedule, build_schedule
from mdm_apple.sampling.walk import SamplerConfig, sample, sample_student
from mdm_apple.storage.tensorfile import read_tensors, write_tensors

TOLERANCE = 1e-5  # of a step's largest value


def test_normals_are_those_of_numpy(dump: Dump, tmp_path: Path) -> None:
    seed, level, count = random.SystemRandom().randrange(2**32), random.randrange(4), 100_001
    dump("normals", seed, level, count, tmp_path / "out")
    raw = (tmp_path / "out").read_bytes()
    ours = np.frombuffer(raw[: 8 * count], "<f8")
    rounded = np.frombuffer(raw[8 * count :], "<f4")
    expected = np.random.RandomState([seed, level]).standard_normal(count)
    assert np.abs(ours - expected).max() <= 1e-12
    assert np.array_equal(rounded.view(np.uint32), expected.astype(np.float32).view(np.uint32))
    other = np.random.RandomState([seed, level + 1]).standard_normal(count)
    assert np.abs(ours - other).max() > 1  # another level is another stream


def walk_case(**changes: Any) -> dict[str, Any]:
    chosen = random.SystemRandom()
    sampler = {"kind": "ddim", "steps": 6, "eta": 0.0, "guidanceScale": 1.0, "grid": "even"}
    case: dict[str, Any] = {
        "seed": chosen.randrange(2**32),
        "sides": [16, 8, 4],
        "settings": sampler | changes.pop("settings", {}),
        "prediction": "v",
        "threshold": "clip",
        "signals": [1.0, 1.0, 1.0],
        "starts": [],
        "mean": chosen.uniform(0.3, 0.8),
        "spread": chosen.uniform(0.1, 0.4),
    }
    return case | changes


def python_walk(case: dict[str, Any], schedule: Schedule) -> dict[str, np.ndarray]:
    power = 2.0 if case["signals"] == [1.0, 1.0, 1.0] else None
    config = DiffusionConfig(
        schedule=ScheduleConfig(shift_power=power),
        prediction=case["prediction"],
        threshold=case["threshold"],
    )
    stream = NoiseStream(case["seed"], case["sides"])

    def draw() -> list[np.ndarray]:
        return [level[None] for level in stream.draw()]

    def denoise(x_t: list[np.ndarray], time: int, _: int = 0) -> list[np.ndarray]:
        answer = []
        for x, table in zip(x_t, schedule.tables, strict=True):
            alpha_bar = float(table[time + 1])
            alpha, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
            variance = alpha_bar * case["spread"] ** 2 + sigma**2
            seen = x.astype(np.float64)
            mean = case["mean"] * np.tanh(alpha * case["mean"] * seen / variance)
            clean = mean + alpha * case["spread"] ** 2 / variance * (seen - alpha * mean)
            state = seen if case["prediction"] == "eps" else alpha * seen
            other = alpha * clean if case["prediction"] == "eps" else clean
            answer.append(((state - other) / sigma).astype(np.float32))
        return answer

    settings = case["settings"]
    if settings["kind"] == "student":
        starts = case["starts"]
        grid = [*starts[:: len(starts) // settings["steps"]], 0]
        steps = sample_student(denoise, draw(), schedule, config, grid, NumpyOps())
    else:
        sampler = SamplerConfig(
            kind=settings["kind"],
            num_steps=settings["steps"],
            eta=settings["eta"],
            threshold=case["threshold"],
            spacing=settings["grid"],
        )
        steps = sample(denoise, draw(), draw, schedule, config, sampler, (4, 2, 1), NumpyOps())
    out = {}
    for step in steps:
        for level in range(3):
            out[f"x0_{step.index}_{level}"] = step.x0[level]
            out[f"x_{step.index}_{level}"] = step.x_next[level]
    return out


def swift_walk(
    dump: Dump, folder: Path, case: dict[str, Any], schedule: Schedule
) -> dict[str, np.ndarray]:
    tables = {f"level_{i}": table for i, table in enumerate(schedule.tables)}
    write_tensors(folder / "tables", {"base": schedule.base, **tables})
    (folder / "case.json").write_text(json.dumps(case), encoding="utf-8")
    dump("walk", folder / "case.json", folder / "tables", folder / "out")
    return read_tensors(folder / "out")


def difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[k] - theirs[k]).max() / np.abs(theirs[k]).max()) for k in theirs)


CASES: dict[str, dict[str, Any]] = {
    "ddim": {},
    "ddim with noise": {"settings": {"eta": 0.7}},
    "ddim, eps": {"prediction": "eps"},
    "ddim, even in log-SNR": {"settings": {"grid": "log_snr"}},
    "ddpm": {"settings": {"kind": "ddpm", "steps": 9}},
    "dpmpp": {"settings": {"kind": "dpmpp", "steps": 9}},
    "dpmpp, no threshold": {"settings": {"kind": "dpmpp"}, "threshold": "none"},
    "dynamic": {"threshold": "dynamic"},
    "dynamic_if": {"threshold": "dynamic_if", "mean": 1.7},
    "pictures in units of the scale": {"signals": [4.0, 2.0, 1.0]},
    "dynamic, in units of the scale": {"signals": [4.0, 2.0, 1.0], "threshold": "dynamic"},
    "student, one step": {"settings": {"kind": "student", "steps": 1}, "starts": [200]},
    "student, four": {"settings": {"kind": "student", "steps": 4}, "starts": [200, 150, 90, 40]},
    "student, two of four": {
        "settings": {"kind": "student", "steps": 2},
        "starts": [200, 150, 90, 40],
    },
}


@pytest.mark.parametrize("name", CASES)
def test_every_step_of_every_sampler_is_that_of_python(
    dump: Dump, tmp_path: Path, name: str
) -> None:
    case = walk_case(**CASES[name])
    schedule = build_schedule(ScheduleConfig(num_steps=200, shift_power=2.0), (4, 2, 1))
    ours, theirs = swift_walk(dump, tmp_path, case, schedule), python_walk(case, schedule)
    assert difference(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 199, 200, None])
def test_few_and_many_steps(dump: Dump, tmp_path: Path, steps: int | None) -> None:
    case = walk_case(settings={"steps": steps})
    schedule = build_schedule(ScheduleConfig(num_steps=200, shift_power=2.0), (4, 2, 1))
    ours, theirs = swift_walk(dump, tmp_path, case, schedule), python_walk(case, schedule)
    assert difference(ours, theirs) < TOLERANCE


def test_a_changed_table_is_noticed(dump: Dump, tmp_path: Path) -> None:
    case = walk_case()
    schedule = build_schedule(ScheduleConfig(num_steps=200, shift_power=2.0), (4, 2, 1))
    moved = Schedule(schedule.base, (schedule.tables[0] ** 1.001, *schedule.tables[1:]))
    ours, theirs = swift_walk(dump, tmp_path, case, moved), python_walk(case, schedule)
    assert difference(ours, theirs) > TOLERANCE


@pytest.mark.parametrize("width", [1, 7, 64, 301])
def test_pngs_are_decoded_by_pillow(dump: Dump, tmp_path: Path, width: int) -> None:
    pixels = np.random.RandomState(None).randint(0, 256, (width, width, 3), np.uint8)
    (tmp_path / "raw").write_bytes(pixels.tobytes())
    dump("write-png", tmp_path / "raw", width, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        image.load()
        assert image.mode == "RGB"
        assert image.info["mdm"] == "{}"
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_pngs_of_pillow_are_read(dump: Dump, tmp_path: Path, mode: str) -> None:
    random_state = np.random.RandomState(None)
    smooth = np.cumsum(random_state.randint(-3, 4, (40, 53, 4)), axis=0).astype(np.uint8)
    image = Image.fromarray(smooth, "RGBA").convert("RGB" if mode == "P" else mode)
    image = image.quantize(17) if mode == "P" else image
    image.save(tmp_path / "in.png", optimize=True)
    dump("read-png", tmp_path / "in.png", tmp_path / "raw")
    with Image.open(tmp_path / "in.png") as read:
        if mode in ("RGBA", "LA"):  # without the transparency
            expected = np.asarray(read)[:, :, : len(mode) - 1]
            expected = np.broadcast_to(expected, (40, 53, 3))
        else:
            expected = np.asarray(read.convert("RGB"))
    found = np.frombuffer((tmp_path / "raw").read_bytes(), np.uint8).reshape(40, 53, 3)
    assert np.array_equal(found, expected)
