"""Everything that can be measured: rows by suite, what each needs and about how long it takes.

Minutes are those of two idle cores at 5 repetitions, for planning. A row's id is SUITE/NAME.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import converting, execute, few_steps, mlx_networks, networks, swift_core
from benchmarks import device as device_suite
from benchmarks.harness import Row
from benchmarks.palettes import palettes
from benchmarks.training import NESTED, SINGLE, training_step
from mdm_apple.config.strict_json import unknown_name
from mdm_apple.errors import MdmError

SUITES = ("sampling", "training", "convert", "palettize", "execute", "swift", "device")

# from repetitions and a folder that the rows of one run share
Measure = Callable[[int, Path], Row]


@dataclass(frozen=True)
class Entry:
    """One row to measure. short: belongs to `make bench`. needs: a module or program besides torch.

    what: a phrase for the tables, also where nothing was measured.
    """

    suite: str
    name: str
    what: str
    measure: Measure
    minutes: float
    short: bool = False
    needs: str | None = None

    @property
    def id(self) -> str:
        return f"{self.suite}/{self.name}"

    @property
    def command(self) -> str:
        """What reproduces the row."""
        return f"mdm bench run {self.id}"

    def missing(self) -> str | None:
        """Why it cannot be measured here; None where it can."""
        if self.needs is None:
            return None
        if self.needs == "swift":
            return None if shutil.which("swift") else "swift is not on the PATH"
        found = importlib.util.find_spec(self.needs)
        return None if found else f"{self.needs} is not installed"


def _alone(measure: Callable[[int], Row]) -> Measure:
    """A measurement that leaves nothing for others."""
    return lambda repetitions, _: measure(repetitions)


def _forward(preset: str, precision: networks.Precision) -> Measure:
    return lambda n, _: networks.forward_pass(preset, precision, n)


def _student(steps: int) -> Measure:
    return lambda n, _: few_steps.student_beside_teacher(steps, n)


def _sampling() -> list[Entry]:
    minutes = {"mdm64": 1.5, "mdm256": 2.5, "mdm1024": 6.0}
    rows = [
        Entry(
            "sampling",
            f"forward-{preset.removeprefix('mdm')}-{precision}",
            f"forward, {preset}, {precision}",
            _forward(preset, precision),
            minutes[preset],
            short=(preset, precision) == ("mdm64", "fp32"),
        )
        for precision in ("fp32", "bf16")
        for preset in minutes
    ]
    return [
        *rows,
        Entry(
            "sampling",
            "guided-64-fp32",
            "guided step, mdm64, fp32",
            _alone(lambda n: networks.guided_step("fp32", n)),
            2,
            short=True,
        ),
        Entry(
            "sampling",
            "guided-64-bf16",
            "guided step, mdm64, bf16",
            _alone(lambda n: networks.guided_step("bf16", n)),
            2,
        ),
        *(
            Entry(
                "sampling",
                f"student-{steps}",
                f"a picture in {steps} of the student's steps",
                _student(steps),
                0.5,
                short=steps == 1,
            )
            for steps in (1, 4)
        ),
        Entry(
            "sampling",
            "memory-1024",
            "peak memory of a forward, mdm1024, fp32",
            _alone(lambda n: networks.forward_memory("mdm1024", n)),
            5,
        ),
        Entry(
            "sampling",
            "eager-64",
            "plain eager forward, mdm64",
            _alone(networks.eager_forward),
            1.5,
        ),
        Entry(
            "sampling",
            "mlx-forward",
            "MLX forward, CPU seconds",
            _alone(mlx_networks.mlx_forward),
            0.5,
            needs="mlx",
        ),
        Entry(
            "sampling",
            "mlx-narrow",
            "MLX forward, narrow network, CPU seconds",
            _alone(mlx_networks.mlx_narrow),
            0.5,
            needs="mlx",
        ),
    ]


def _training() -> list[Entry]:
    return [
        Entry(
            "training",
            "single-64",
            "training step, 64 px, batch 4, fp32",
            _alone(lambda n: training_step(SINGLE, "64 px", n)),
            1.5,
            short=True,
        ),
        Entry(
            "training",
            "nested-64-16",
            "training step, 64+16 px, batch 4, fp32",
            _alone(lambda n: training_step(NESTED, "64+16 px", n)),
            0.3,
            short=True,
        ),
        Entry(
            "training",
            "mlx",
            "MLX training step, CPU seconds",
            _alone(mlx_networks.mlx_training),
            1,
            needs="mlx",
        ),
    ]


def _convert() -> list[Entry]:
    layouts: tuple[converting.Layout, ...] = ("nested", "monolith")
    rows = [
        Entry(
            "convert",
            f"emoji-{layout}",
            f"convert the emoji model, {layout}",
            lambda n, work, kind=layout: converting.convert_emoji(kind, n, work),
            8,
            needs="coremltools",
        )
        for layout in layouts
    ]
    return [
        *rows,
        Entry(
            "convert",
            "emoji-open",
            "open and check the emoji bundle",
            converting.open_emoji,
            1.5,
            short=True,
            needs="coremltools",
        ),
    ]


def _palettize() -> list[Entry]:
    return [
        Entry(
            "palettize",
            f"{bits}-{kind}",
            f"palettes, {bits} bits, {kind}",
            _alone(palettes(bits, kind)),
            {4: 1.0, 6: 1.5, 8: 4.0}[bits],
            short=(bits, kind) == (4, "trained"),
            needs="coremltools",
        )
        for kind in ("gauss", "student-t", "trained")
        for bits in (4, 6, 8)
    ]


def _execute() -> list[Entry]:
    return [
        Entry(
            "execute",
            "emoji-fp16",
            "executor, emoji core, fp16",
            execute.execute_emoji,
            1,
            short=True,
            needs="coremltools",
        ),
        Entry(
            "execute",
            "core-fp32",
            "executor, 64 px core, fp32",
            execute.execute("fp32"),
            5,
            needs="coremltools",
        ),
        Entry(
            "execute",
            "core-fp16",
            "executor, 64 px core, fp16",
            execute.execute("fp16"),
            5,
            needs="coremltools",
        ),
        Entry(
            "execute",
            "core-open",
            "open the core, 4 bits",
            execute.opening,
            6,
            needs="coremltools",
        ),
    ]


def _swift() -> list[Entry]:
    return [
        Entry("swift", name, what, _alone(measure), 1, needs="swift")
        for name, what, measure in (
            ("steps", "steps 1024x1024x3, Swift", swift_core.swift_steps),
            ("normals", "normals, Swift", swift_core.swift_normals),
            ("tokens", "10,000 captions, Swift", swift_core.swift_tokens),
        )
    ]


def _device() -> list[Entry]:
    return [
        Entry(
            "device",
            "overhead",
            "a step through the device harness, executor",
            device_suite.overhead,
            1,
            short=True,
            needs="coremltools",
        )
    ]


ENTRIES: tuple[Entry, ...] = tuple(
    entry
    for part in (_sampling, _training, _convert, _palettize, _execute, _swift, _device)
    for entry in part()
)


def entries_of(names: Iterable[str], short: bool = False) -> list[Entry]:
    """Rows by suite or by id, in the order of the tables; all, or the short set, without names.

    Raises MdmError for an unknown name.
    """
    asked = set(names)
    known = {*SUITES, *(entry.id for entry in ENTRIES)}
    for name in sorted(asked - known):
        raise MdmError(f"suite: {name!r} is not known. {unknown_name(name, sorted(known))}")
    chosen = [e for e in ENTRIES if not asked or {e.suite, e.id} & asked]
    return [e for e in chosen if e.short] if short else chosen
