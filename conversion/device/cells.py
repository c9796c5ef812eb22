"""The cells of a plan: what is measured on which unit, in running order.

A cell is one bundle on one compute unit, in its own process. Rounds repeat the whole plan, so that
units and bundles alternate and a machine that warms up affects all of them alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mdm_apple.config.types import ComputeUnits, ExecutorPrecision
from mdm_apple.errors import MdmError

from ..bundle.folder import Bundle
from ..bundle.make_manifest import function_of
from ..bundle.manifest import PackageInfo
from ..execute import Package
from ..package_file.cost import cost_of

# without an Apple system, the executor stands in for Core ML, the interpreter of Apple's wheels for
# Core AI
Units = ComputeUnits | Literal["executor", "interpreter"]
Kind = Literal["packages", "pictures", "sustained"]

ROUNDS = 2
PACKAGE_REPETITIONS, PICTURE_REPETITIONS, SUSTAINED_PICTURES = 30, 10, 10

# operations per second for a plan's minutes: a cautious guess, not a claim about any device
_PACE: dict[Units, float] = {"executor": 10e9, "cpuOnly": 50e9}
_PACE_ELSEWHERE = 200e9
_LOAD_MINUTES: dict[Units, float] = {
    "executor": 0.05,
    "cpuOnly": 0.1,
    "cpuAndGPU": 0.3,
}
_LOAD_MINUTES_ELSEWHERE = 2.0  # the first load for the Neural Engine compiles for minutes


@dataclass(frozen=True)
class Cell:
    """bundle: folder name, for people; digest: identifies it. steps: of each kind of picture.

    evaluations: network calls per step, 2 with guidance. round: counted from 1.
    """

    bundle: str
    digest: str
    units: Units
    kind: Kind
    steps: tuple[int, ...]
    evaluations: int
    repetitions: int
    round: int
    precision: ExecutorPrecision

    @property
    def id(self) -> str:
        """Identical for the same measurement, wherever the bundle is stored."""
        steps = "-".join(map(str, self.steps)) or "none"
        return (
            f"{self.digest[:12]}.{self.units}.{self.kind}.steps-{steps}.x{self.evaluations}."
            f"n{self.repetitions}.round-{self.round}.{self.precision}"
        )


@dataclass(frozen=True)
class Demand:
    """The contents requested for a plan. steps: empty for the bundle's own default."""

    units: tuple[Units, ...]
    steps: tuple[int, ...] = ()
    guided: bool = False
    package_repetitions: int = PACKAGE_REPETITIONS
    picture_repetitions: int = PICTURE_REPETITIONS
    sustained: int = SUSTAINED_PICTURES
    precision: ExecutorPrecision = "fp16"


def plan(bundles: Sequence[Bundle], demand: Demand) -> list[Cell]:
    """Cells in running order. Raises MdmError for steps that a bundle does not allow."""
    cells: list[Cell] = []
    for number in range(1, ROUNDS + 1):
        for kind in ("packages", "pictures"):
            for bundle in bundles:
                cells += [_cell(bundle, u, kind, demand, number) for u in demand.units]
    if demand.sustained:
        for bundle in bundles:
            cells += [_cell(bundle, u, "sustained", demand, 1) for u in demand.units]
    return cells


def _cell(bundle: Bundle, units: Units, kind: Kind, demand: Demand, number: int) -> Cell:
    steps: tuple[int, ...] = ()
    if kind != "packages":
        steps = demand.steps or (bundle.manifest.sampler.steps,)
        steps = steps[:1] if kind == "sustained" else steps
        _check_steps(bundle, steps)
    whole = {
        "packages": demand.package_repetitions,
        "pictures": demand.picture_repetitions,
        "sustained": demand.sustained,
    }[kind]
    repetitions = whole if kind == "sustained" else -(-whole // ROUNDS)
    guided = demand.guided and bundle.manifest.guidance == "cfg"
    stands_in = units == "executor" and bundle.manifest.format == "coreai"
    return Cell(
        bundle.path.name,
        bundle.manifest.digest,
        "interpreter" if stands_in else units,
        kind,
        steps,
        2 if guided else 1,
        repetitions,
        number,
        demand.precision,
    )


def _check_steps(bundle: Bundle, steps: Iterable[int]) -> None:
    student, sampler = bundle.manifest.student, bundle.manifest.sampler
    for count in steps:
        fits = sampler.minimum_steps <= count <= sampler.maximum_steps
        if student is not None:
            fits = 1 <= count <= len(student.starts) and len(student.starts) % count == 0
        if not fits:
            raise MdmError(
                f"steps: {bundle.path} takes {sampler.minimum_steps} to {sampler.maximum_steps}"
                f"{'' if student is None else ', and only divisors of the last'}, got {count}."
            )


def minutes(cell: Cell, bundle: Bundle) -> float | None:
    """Planning estimate: counted operations at a cautious pace, plus loading.

    None for Core AI, whose operations are not counted.
    """
    flops = {"text": 0, "prompt": 0, "step": 0}
    packages = [p for p in bundle.manifest.packages if _in_full_nest(bundle, p.side)]
    for info in packages:
        counted = flops_of(bundle, info)
        if counted is None:
            return None
        flops[info.phase] += counted
    prompt = flops["text"] + flops["prompt"]
    evaluations = 1 if cell.kind == "packages" else sum(cell.steps) * cell.evaluations
    pictures = 1 if cell.kind == "packages" else len(cell.steps)
    one = pictures * prompt + evaluations * flops["step"]
    calls = cell.repetitions + (3 if cell.kind == "pictures" else 1)  # warm-up; golden record
    loads = len(packages) * _LOAD_MINUTES.get(cell.units, _LOAD_MINUTES_ELSEWHERE)
    first = loads if cell.round == 1 and cell.kind == "packages" else loads / 10
    return first + one * calls / _PACE.get(cell.units, _PACE_ELSEWHERE) / 60


def flops_of(bundle: Bundle, info: PackageInfo) -> int | None:
    """Operations of one call, counted from a Core ML program; None for Core AI."""
    if bundle.manifest.format == "coreai":
        return None
    return cost_of(function_of(Package.open(bundle.file(info.path)), info.name)).flops


def _in_full_nest(bundle: Bundle, side: int | None) -> bool:
    if bundle.manifest.layout != "multifunction":
        return True
    return side is None or side == bundle.sides[0]
