"""Everything that can be measured: rows by suite, with needs and approximate duration.

Minutes are planning figures for two idle cores at 5 repetitions. A row's id is SUITE/NAME. The code
that measures a row is imported when it runs, so that listing rows loads no framework.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from mdm_apple.config.strict_json import unknown_name
from mdm_apple.config.types import ExecutorPrecision, Layout
from mdm_apple.errors import MdmError

if TYPE_CHECKING:
    from benchmarks.harness import Row
    from benchmarks.networks import Precision

SUITES = ("sampling", "training", "convert", "palettize", "execute", "swift", "device")

# takes repetitions and a folder shared by the rows of one run
Measure: TypeAlias = "Callable[[int, Path], Row]"


@dataclass(frozen=True)
class Entry:
    """One row to measure. short: part of `make bench`. needs: a module or program besides torch.

    what: a phrase for the tables, used even if nothing was measured.
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
        """The command that reproduces the row."""
        return f"mdm bench run {self.id}"

    def missing(self) -> str | None:
        """Why the row cannot be measured here; None if it can."""
        if self.needs is None:
            return None
        if self.needs == "swift":
            return None if shutil.which("swift") else "swift is not on the PATH"
        found = importlib.util.find_spec(self.needs)
        return None if found else f"{self.needs} is not installed"


def _forward(preset: str, precision: Precision) -> Measure:
    def measure(repetitions: int, _: Path) -> Row:
        from benchmarks.networks import forward_pass

        return forward_pass(preset, precision, repetitions)

    return measure


def _guided(precision: Precision) -> Measure:
    def measure(repetitions: int, _: Path) -> Row:
        from benchmarks.networks import guided_step

        return guided_step(precision, repetitions)

    return measure


def _memory(repetitions: int, _: Path) -> Row:
    from benchmarks.networks import forward_memory

    return forward_memory("mdm1024", repetitions)


def _eager(repetitions: int, _: Path) -> Row:
    from benchmarks.networks import eager_forward

    return eager_forward(repetitions)


def _student(steps: int) -> Measure:
    def measure(repetitions: int, _: Path) -> Row:
        from benchmarks.few_steps import student_beside_teacher

        return student_beside_teacher(steps, repetitions)

    return measure


def _mlx(what: Literal["mlx_forward", "mlx_narrow", "mlx_training"]) -> Measure:
    def measure(repetitions: int, _: Path) -> Row:
        from benchmarks import mlx_networks

        return getattr(mlx_networks, what)(repetitions)

    return measure


def _training_step(nested: bool) -> Measure:
    def measure(repetitions: int, _: Path) -> Row:
        from benchmarks.training import NESTED, SINGLE, training_step

        unet, name = (NESTED, "64+16 px") if nested else (SINGLE, "64 px")
        return training_step(unet, name, repetitions)

    return measure


def _convert_emoji(layout: Layout) -> Measure:
    def measure(repetitions: int, work: Path) -> Row:
        from benchmarks.converting import convert_emoji

        return convert_emoji(layout, repetitions, work)

    return measure


def _convert_emoji_to_coreai(repetitions: int, work: Path) -> Row:
    from benchmarks.converting import convert_emoji_to_coreai

    return convert_emoji_to_coreai(repetitions, work)


def _open_emoji(repetitions: int, work: Path) -> Row:
    from benchmarks.converting import open_emoji

    return open_emoji(repetitions, work)


def _palettes(bits: int, kind: str) -> Measure:
    def measure(repetitions: int, _: Path) -> Row:
        from benchmarks.palettes import palettes

        return palettes(bits, kind)(repetitions)

    return measure


def _execute_core(precision: ExecutorPrecision) -> Measure:
    def measure(repetitions: int, work: Path) -> Row:
        from benchmarks.execute import execute

        return execute(precision)(repetitions, work)

    return measure


def _execute_emoji(repetitions: int, work: Path) -> Row:
    from benchmarks.execute import execute_emoji

    return execute_emoji(repetitions, work)


def _open_core(repetitions: int, work: Path) -> Row:
    from benchmarks.execute import opening

    return opening(repetitions, work)


def _in_swift(what: Literal["swift_steps", "swift_normals", "swift_tokens"]) -> Measure:
    def measure(repetitions: int, _: Path) -> Row:
        from benchmarks import swift_core

        return getattr(swift_core, what)(repetitions)

    return measure


def _overhead(repetitions: int, work: Path) -> Row:
    from benchmarks.device import overhead

    return overhead(repetitions, work)


def _sampling() -> list[Entry]:
    minutes = {"mdm64": 1.5, "mdm256": 2.5, "mdm1024": 6.0}
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    rows = [
        Entry(
            "sampling",
            f"forward-{preset.removeprefix('mdm')}-{precision}",
            f"forward, {preset}, {precision}",
            _forward(preset, precision),
            minutes[preset],
            short=(preset, precision) == ("mdm64", "fp32"),
        )
        for precision in precisions
        for preset in minutes
    ]
    return [
        *rows,
        Entry(
            "sampling",
            "guided-64-fp32",
            "guided step, mdm64, fp32",
            _guided("fp32"),
            2,
            short=True,
        ),
        Entry(
            "sampling",
            "guided-64-bf16",
            "guided step, mdm64, bf16",
            _guided("bf16"),
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
            _memory,
            5,
        ),
        Entry(
            "sampling",
            "eager-64",
            "plain eager forward, mdm64",
            _eager,
            1.5,
        ),
        Entry(
            "sampling",
            "mlx-forward",
            "MLX forward, CPU seconds",
            _mlx("mlx_forward"),
            0.5,
            needs="mlx",
        ),
        Entry(
            "sampling",
            "mlx-narrow",
            "MLX forward, narrow network, CPU seconds",
            _mlx("mlx_narrow"),
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
            _training_step(nested=False),
            1.5,
            short=True,
        ),
        Entry(
            "training",
            "nested-64-16",
            "training step, 64+16 px, batch 4, fp32",
            _training_step(nested=True),
            0.3,
            short=True,
        ),
        Entry(
            "training",
            "mlx",
            "MLX training step, CPU seconds",
            _mlx("mlx_training"),
            1,
            needs="mlx",
        ),
    ]


def _convert() -> list[Entry]:
    layouts: tuple[Layout, ...] = ("nested", "monolith")
    rows = [
        Entry(
            "convert",
            f"emoji-{layout}",
            f"convert the emoji model, {layout}",
            _convert_emoji(layout),
            8,
            needs="coremltools",
        )
        for layout in layouts
    ]
    return [
        *rows,
        Entry(
            "convert",
            "coreai",
            "convert the emoji model to Core AI",
            _convert_emoji_to_coreai,
            14,
            needs="coreai_torch",
        ),
        Entry(
            "convert",
            "emoji-open",
            "open and check the emoji bundle",
            _open_emoji,
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
            _palettes(bits, kind),
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
            _execute_emoji,
            1,
            short=True,
            needs="coremltools",
        ),
        Entry(
            "execute",
            "core-fp32",
            "executor, 64 px core, fp32",
            _execute_core("fp32"),
            5,
            needs="coremltools",
        ),
        Entry(
            "execute",
            "core-fp16",
            "executor, 64 px core, fp16",
            _execute_core("fp16"),
            5,
            needs="coremltools",
        ),
        Entry(
            "execute",
            "core-open",
            "open the core, 4 bits",
            _open_core,
            6,
            needs="coremltools",
        ),
    ]


def _swift() -> list[Entry]:
    return [
        Entry("swift", name, what, measure, 1, needs="swift")
        for name, what, measure in (
            ("steps", "steps 1024x1024x3, Swift", _in_swift("swift_steps")),
            ("normals", "normals, Swift", _in_swift("swift_normals")),
            ("tokens", "10,000 captions, Swift", _in_swift("swift_tokens")),
        )
    ]


def _device() -> list[Entry]:
    return [
        Entry(
            "device",
            "overhead",
            "a step through the device harness, executor",
            _overhead,
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
    """Rows by suite or by id, in the order of the tables; without names, all or the short set.

    Raises MdmError for an unknown name.
    """
    asked = set(names)
    known = {*SUITES, *(entry.id for entry in ENTRIES)}
    for name in sorted(asked - known):
        raise MdmError(f"suite: {name!r} is not known. {unknown_name(name, sorted(known))}")
    chosen = [e for e in ENTRIES if not asked or {e.suite, e.id} & asked]
    return [e for e in chosen if e.short] if short else chosen
