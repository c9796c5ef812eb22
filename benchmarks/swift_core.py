"""The Swift package's arithmetic against NumPy and sentencepiece, in release mode, on one core.

Swift runs in its own process and times itself; its rounds alternate with ours.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Measured, Row
from mdm_apple.bundled_models import EMOJI
from mdm_apple.config.model import DiffusionConfig, ScheduleConfig
from mdm_apple.diffusion.arithmetic import guide
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.diffusion.schedule import build_schedule
from mdm_apple.errors import MdmError
from mdm_apple.sampling.walk import SamplerConfig, sample
from mdm_apple.storage.tensorfile import write_tensors

ROOT = Path(__file__).parents[1]
SIDE, STEPS = 1024, 8
NORMALS, CAPTIONS = 3 * 1024 * 1024, 10_000


def swift_steps(repetitions: int) -> Row:
    """Guidance, clean estimate, clipping and DDIM step at 1024 x 1024 x 3, eight times."""
    config = DiffusionConfig(schedule=ScheduleConfig(), prediction="v", threshold="clip")
    schedule = build_schedule(config.schedule, (1,))
    random = np.random.RandomState(0)
    shape = (1, 3, SIDE, SIDE)
    x, v, base = (random.standard_normal(shape).astype(np.float32) for _ in range(3))

    def work() -> None:
        sampler = SamplerConfig(num_steps=STEPS, threshold="clip")
        steps = sample(
            lambda _, __: [guide(v, base, 4.0)],
            [x],
            list,
            schedule,
            config,
            sampler,
            (1,),
            NumpyOps(),
        )
        for _ in steps:
            pass

    with tempfile.TemporaryDirectory() as folder:
        tables = Path(folder) / "tables"
        write_tensors(tables, {"base": schedule.base})
        words = ["steps", "1", SIDE, "ddim", "clip", tables]
        return _pair(f"steps {SIDE}x{SIDE}x3, Swift", "NumPy", words, work, repetitions)


def swift_normals(repetitions: int) -> Row:
    """The standard normals of one 1024 x 1024 x 3 draw, rounded to float32."""
    state = np.random.RandomState([7, 0])

    def work() -> None:
        state.standard_normal(NORMALS).astype(np.float32)

    words = ["normals", "1", NORMALS]
    return _pair("normals, Swift", "NumPy", words, work, repetitions)


def swift_tokens(repetitions: int) -> Row:
    """Ids of 10,000 captions, one call each."""
    import sentencepiece

    lines = (EMOJI / "captions.txt").read_text(encoding="utf-8").splitlines()
    captions = [f"{lines[i % len(lines)]} number {i}, é and ﬁ" for i in range(CAPTIONS)]
    model = EMOJI / "tokenizer.model"
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def work() -> None:
        for caption in captions:
            processor.encode(caption)

    words = ["tokens", "1", model]
    return _pair("10,000 captions, Swift", "sentencepiece", words, work, repetitions, captions)


def _pair(
    name: str,
    other: str,
    words: list[Any],
    work: Callable[[], None],
    repetitions: int,
    given: Any = None,
) -> Row:
    program = _program()
    ours: list[float] = []
    theirs: list[float] = []
    work()
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        theirs.append(time.perf_counter() - start)
        ours += _swift(program, words, given)
    note = "a Swift process per repetition; results compared by tests/test_swift_*.py"
    return Row(name, Measured(ours), other, Measured(theirs), note=note, in_process=False)


def _swift(program: Path, words: list[Any], given: Any) -> list[float]:
    done = subprocess.run(
        [str(program), "bench", *map(str, words)],
        input=json.dumps(given).encode(),
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


def _program() -> Path:
    swift = shutil.which("swift")
    if swift is None:
        raise MdmError("swift: not on the PATH; install Swift 6 or later.")
    command = [swift, "build", "-c", "release", "--package-path", str(ROOT)]
    subprocess.run([*command, "--product", "mdm-dump"], check=True, capture_output=True)
    return ROOT / ".build" / "release" / "mdm-dump"
