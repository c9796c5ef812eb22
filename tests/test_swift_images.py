"""Pictures in, in Swift: every state, estimate and finished picture is Python's, to the bit."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import around, plain
from swift_tools import Dump

from mdm_apple.config.model import DiffusionConfig, Distilled, ModelConfig, ScheduleConfig
from mdm_apple.config.network import Student, UNetConfig
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.diffusion.schedule import build_schedule
from mdm_apple.sampling import walk
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.given_picture import GivenPicture
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.storage.tensorfile import read_tensors, write_tensors

SIDES, STARTS = [32, 16, 8], (200, 150, 90, 40)


def taught(level: UNetConfig) -> UNetConfig:
    inner = None if level.inner is None else taught(level.inner)
    return dataclasses.replace(level, student=Student(guidance=False), inner=inner)


class Quarter:
    """A runtime whose network predicts a quarter of each state, which rounds alike everywhere."""

    def __init__(self, shift_power: float | None, student: bool) -> None:
        schedule = ScheduleConfig(num_steps=200, shift_power=shift_power)
        nest = around(around(plain(text_dim=None)))
        self.config = ModelConfig(
            taught(nest) if student else nest,
            SIDES[0],
            DiffusionConfig(schedule=schedule, prediction="v", threshold="clip"),
            distilled=Distilled(STARTS) if student else None,
        )
        self.ops, self.schedule = NumpyOps(), build_schedule(schedule, (4, 2, 1))

    def denoiser(self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int) -> Any:
        return lambda x_t, time: [x * np.float32(0.25) for x in x_t]

    def jumper(self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int) -> Any:
        return lambda x_t, time, target: [x * np.float32(0.25) for x in x_t]

    def image(self, x: np.ndarray) -> np.ndarray:
        return x

    def numpy(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x, np.float32)


def noise(side: int) -> np.ndarray:
    pixels = np.random.RandomState(None).randint(0, 256, (side, side, 3), dtype=np.uint8)
    pixels[: side // 4, : side // 2] = 255
    pixels[: side // 4, side // 2 :] = 0
    return pixels


def brush() -> np.ndarray:
    free = np.zeros((32, 32), bool)
    free[5:19, 3:] = True
    free[27, 30] = True
    return free


GIVEN = {
    "strength": lambda: GivenPicture(noise(32), strength=0.7),
    "mask": lambda: GivenPicture(noise(32), brush()),
    "mask and strength": lambda: GivenPicture(noise(32), brush(), 0.5),
    "from 16 px": lambda: GivenPicture(noise(16)),
    "from 8 px": lambda: GivenPicture(noise(8)),
}
SAMPLERS: dict[str, tuple[dict[str, Any], float | None]] = {
    "ddim": ({"kind": "ddim", "steps": 6, "eta": 0.0}, 2.0),
    "ddim with noise": ({"kind": "ddim", "steps": 6, "eta": 0.7}, 2.0),
    "ddpm": ({"kind": "ddpm", "steps": 5, "eta": 0.0}, 2.0),
    "dpmpp": ({"kind": "dpmpp", "steps": 6, "eta": 0.0}, 2.0),
    "in units of the scale": ({"kind": "ddim", "steps": 6, "eta": 0.0}, None),
    "student": ({"kind": "student", "steps": 4, "eta": 0.0}, 2.0),
}


def both(
    dump: Dump,
    folder: Path,
    given: GivenPicture,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    moved: GivenPicture | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """States, estimates and pictures, of Python and of Swift. moved: Python is given this."""
    settings, power = SAMPLERS[how]
    student = settings["kind"] == "student"
    if student and 0 < given.strength < 1:
        given = dataclasses.replace(given, strength=0.45)
    runtime, seed = Quarter(power, student), random.SystemRandom().randrange(2**32)
    case: dict[str, Any] = {
        "seed": seed,
        "sides": SIDES,
        "settings": {"guidanceScale": 1.0, "grid": "even", **settings},
        "prediction": "v",
        "threshold": "clip",
        "signals": [1.0] * 3 if power is not None else [4.0, 2.0, 1.0],
        "starts": list(STARTS) if student else [],
        "mean": 0,
        "spread": 0,
        "isPlain": True,
        "image": given.pixels.ravel().tolist(),
    }
    if given.side < SIDES[0]:
        case["level"] = given.side
    else:
        case["strength"] = given.strength
    if given.free is not None:
        white = np.repeat(given.free[:, :, None] * 255, 3, axis=2)
        case["mask"] = white.ravel().tolist()
    tables = {f"level_{i}": table for i, table in enumerate(runtime.schedule.tables)}
    write_tensors(folder / "tables", {"base": runtime.schedule.base, **tables})
    (folder / "case.json").write_text(json.dumps(case), encoding="utf-8")
    dump("walk", folder / "case.json", folder / "tables", folder / "out")
    seen = list[walk.Step]()
    for name in ("sample", "sample_student"):
        recorded(name, seen, monkeypatch)
    config = SamplerConfig(settings["kind"], settings["steps"], settings["eta"])
    prompts = [Prompt("", seed)]
    final = finish(generate(runtime, prompts, config, None, moved or given))
    ours = {f"picture_{level}": picture for level, picture in enumerate(final)}
    for step in seen:
        for level in range(3):
            ours[f"x0_{step.index}_{level}"] = step.x0[level]
            ours[f"x_{step.index}_{level}"] = step.x_next[level]
    return ours, read_tensors(folder / "out")


def recorded(name: str, seen: list[walk.Step], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = getattr(walk, name)

    def record(*arguments: Any) -> Any:
        for step in steps(*arguments):
            seen.append(step)
            yield step

    monkeypatch.setattr(f"mdm_apple.sampling.generate.{name}", record)


@pytest.mark.parametrize("how", SAMPLERS)
@pytest.mark.parametrize("kind", GIVEN)
def test_what_is_given_is_kept_as_in_python(
    kind: str, how: str, dump: Dump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = both(dump, tmp_path, GIVEN[kind](), how, monkeypatch)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_one_other_pixel_is_noticed(
    dump: Dump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: Python keeps a picture of which one pixel differs."""
    given = GIVEN["mask"]()
    pixels = given.pixels.copy()
    pixels[31, 0] ^= 1
    moved = dataclasses.replace(given, pixels=pixels)
    ours, theirs = both(dump, tmp_path, given, "ddim", monkeypatch, moved)
    assert (ours["picture_0"] != theirs["picture_0"]).any()


def case_of(**changes: Any) -> dict[str, Any]:
    return {
        "seed": 1,
        "sides": SIDES,
        "settings": {"kind": "ddim", "steps": 2, "eta": 0, "guidanceScale": 1, "grid": "even"},
        "prediction": "v",
        "threshold": "clip",
        "signals": [1.0] * 3,
        "starts": [],
        "mean": 0,
        "spread": 0,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"strength": 0.5}, "strength: belongs to a picture"),
        ({"image": [0] * 3 * 32 * 32, "strength": 0.0}, "strength: expected above 0"),
        ({"image": [0] * 3 * 32 * 32, "mask": [0] * 3 * 32 * 32}, "has no white in it"),
        ({"image": [0] * 3 * 12 * 12, "level": 12}, "a level of"),
        ({"image": [0] * 3 * 16 * 16, "level": 16, "strength": 0.5}, "neither a mask nor"),
        (
            {"image": [0] * 3 * 32 * 32, "strength": 0.6, "starts": list(STARTS)},
            "this student begins at",
        ),
    ],
)
def test_what_swift_cannot_use_is_refused(
    changes: dict[str, Any], says: str, dump: Dump, tmp_path: Path
) -> None:
    schedule = build_schedule(ScheduleConfig(num_steps=200, shift_power=2.0), (4, 2, 1))
    tables = {f"level_{i}": table for i, table in enumerate(schedule.tables)}
    write_tensors(tmp_path / "tables", {"base": schedule.base, **tables})
    (tmp_path / "case.json").write_text(json.dumps(case_of(**changes)), encoding="utf-8")
    done = dump.run("walk", tmp_path / "case.json", tmp_path / "tables", tmp_path / "out")
    assert done.returncode == 1
    assert says in done.stderr.decode()
