"""Measures one cell in this process: loads, latencies, pictures, memory, placement, quality."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mdm_apple.config.types import ComputeUnits

from ..bundle.folder import Bundle
from ..bundle.golden import read_golden
from ..execute import Watch
from ..run.packages import Denoiser, Jump, Load, Runnable, Values
from ..source.trajectory import Predict, TextInputs, Trajectory
from ..verify.ladder import bundle_predict, guided_pictures, pictures, text_of
from ..verify.verify import VerifyOptions, verify
from .cells import Cell, flops_of
from .conditions import conditions
from .engines import Engine

WARM_UP = 2
COLD = 1.5  # a first load counts as cold if it takes this many times the second
FLOOR = 1.2  # a compute unit must be this much faster than the CPU alone
FLOOR_CALLS = 5


@dataclass
class _Timed:
    """A loaded package that records the time of its calls and its last inputs."""

    inner: Runnable
    units: ComputeUnits
    load_seconds: float
    seconds: list[float] = field(default_factory=list)
    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __call__(self, inputs: Mapping[str, NDArray[Any]], watch: Watch | None = None) -> Values:
        start = time.perf_counter()
        out = self.inner(inputs, watch)
        self.seconds.append(time.perf_counter() - start)
        self.inputs = dict(inputs)
        return out


@dataclass
class _Loader:
    """Loads packages and records the time; keeps them by path and function."""

    load: Load
    programs: dict[tuple[Path, str | None], _Timed] = field(default_factory=dict)

    def __call__(self, path: Path, function: str | None, units: ComputeUnits) -> _Timed:
        start = time.perf_counter()
        loaded = self.load(path, function, units)
        seconds = time.perf_counter() - start
        self.programs[path, function] = _Timed(loaded, units, seconds)
        return self.programs[path, function]


def measure(cell: Cell, bundle: Bundle, engine: Engine) -> dict[str, Any]:
    """The measurements of a cell as plain values. Raises MdmError if a package is refused."""
    config, golden = bundle.config(), bundle.manifest.golden
    text, record = read_golden(bundle.file(golden.path), golden, config.sides)
    if cell.kind == "packages":
        return _packages(cell, bundle, engine, text, record)
    loader = _Loader(engine.load)
    denoiser = Denoiser(bundle, cell.precision, loader)

    def predict(prompt: int) -> Predict:
        return bundle_predict(denoiser, denoiser.condition(text_of(bundle, text, prompt)))

    def picture(steps: int) -> float:
        start = time.perf_counter()
        given = predict(0)
        if cell.evaluations == 2:
            guided_pictures(config, given, predict(_null(text)), steps)
        else:
            pictures(config, given, steps)
        return time.perf_counter() - start

    for steps in cell.steps:
        picture(steps)  # loads the packages and warms them up
    if cell.kind == "sustained":
        return {"sustained": [_sustained(picture, cell.steps[0]) for _ in range(cell.repetitions)]}
    seconds: dict[int, list[float]] = {steps: [] for steps in cell.steps}
    for _ in range(cell.repetitions):
        for steps in cell.steps:
            seconds[steps].append(picture(steps))
    peak = engine.memory()
    return {
        "pictures": [
            {"steps": n, "evaluations": cell.evaluations, "seconds": s} for n, s in seconds.items()
        ],
        "peak_bytes": peak,
        "quality": _quality(cell, bundle, engine) if cell.round == 1 else None,
    }


def _null(text: TextInputs | None) -> int:
    """Index of the record's empty prompt, or of its only prompt."""
    return 0 if text is None else min(1, len(text.mask) - 1)


def _sustained(picture: Callable[[int], float], steps: int) -> dict[str, Any]:
    seconds = picture(steps)
    return {"seconds": seconds, "thermal": conditions().thermal}


def _quality(cell: Cell, bundle: Bundle, engine: Engine) -> dict[str, Any]:
    """Quality against the golden record: the worst prediction, and pictures per side, in dB."""
    found = verify(
        bundle, None, VerifyOptions(cell.precision, load=engine.load, compute_units=cell.units)
    )
    data = found.as_json()
    return {"prediction_psnr": data["worst_psnr"], "picture_psnr": data["picture_psnr"]}


def _packages(
    cell: Cell, bundle: Bundle, engine: Engine, text: TextInputs | None, record: Trajectory
) -> dict[str, Any]:
    """Run every package in turn on the record's noisy images, for the cell's repetitions."""
    names = _names(bundle)
    # before any load is timed, because reading a package imports the reader
    flops = {place: flops_of(bundle, bundle.package(name)) for place, name in names.items()}
    loader = _Loader(engine.load)
    engine.forget()
    prompt, step = _steps(cell, Denoiser(bundle, cell.precision, loader), bundle, text, record)
    peak = engine.memory()
    latencies: list[dict[str, Any]] = [
        {"what": "prompt", "seconds": prompt, "flops": None},
        {"what": "step", "seconds": step, "flops": None},
        *(
            {
                "what": f"package {names[place]}",
                "seconds": program.seconds[WARM_UP:],
                "flops": flops[place],
            }
            for place, program in loader.programs.items()
        ),
    ]
    placement = None
    if engine.placement is not None:
        placement = [
            {"package": names[place], **asdict(engine.placement(*place))}
            for place in loader.programs
        ]
    return {
        "latencies": latencies,
        "peak_bytes": peak,
        "placement": placement,
        "floor": _floor(loader, engine, names),
        "loads": _loads(loader, engine, names),  # last, because it releases the packages
    }


def _steps(
    cell: Cell, denoiser: Denoiser, bundle: Bundle, text: TextInputs | None, record: Trajectory
) -> tuple[list[float], list[float]]:
    """Seconds per prompt and per step."""
    prompt: list[float] = []
    step: list[float] = []
    for k in range(WARM_UP + cell.repetitions):
        probe = record.probes[k % len(record.probes)]
        jump = None if probe.target is None else Jump(probe.target)
        start = time.perf_counter()
        given = denoiser.condition(text_of(bundle, text, 0))
        middle = time.perf_counter()
        denoiser.predict([x[:1] for x in probe.x_t], probe.t - 1, given, jump=jump)
        end = time.perf_counter()
        if k >= WARM_UP:
            prompt.append(middle - start)
            step.append(end - middle)
    return prompt, step


def _names(bundle: Bundle) -> dict[tuple[Path, str | None], str]:
    """Names of packages, by the arguments of a loader."""
    paths = [package.path for package in bundle.manifest.packages]
    return {
        (bundle.file(p.path), p.name if paths.count(p.path) > 1 else None): p.name
        for p in bundle.manifest.packages
    }


def _loads(
    loader: _Loader, engine: Engine, names: dict[tuple[Path, str | None], str]
) -> list[dict[str, Any]]:
    """First loads, from before anything ran, beside a second load of each package, made now."""
    first: dict[tuple[Path, str | None], tuple[ComputeUnits, float]] = {
        place: (program.units, program.load_seconds) for place, program in loader.programs.items()
    }
    loader.programs.clear()  # nothing else holds them, so they are freed before the next load
    engine.forget()
    out: list[dict[str, Any]] = []
    for place, (units, seconds) in first.items():
        loader(*place, units)
        second = loader.programs[place].load_seconds
        cold = seconds > COLD * second
        out.append({"package": names[place], "first_s": seconds, "second_s": second, "cold": cold})
    return out


def _floor(
    loader: _Loader, engine: Engine, names: dict[tuple[Path, str | None], str]
) -> list[dict[str, Any]] | None:
    """Each package on the CPU alone with the same inputs; a unit no faster fell back or is idle."""
    if engine.cpu is None:
        return None
    out: list[dict[str, Any]] = []
    for place, program in loader.programs.items():
        path, function = place
        alone = _Loader(engine.cpu)(path, function, "cpuOnly")
        for _ in range(1 + FLOOR_CALLS):
            alone(program.inputs)
        cpu = statistics.median(alone.seconds[1:])
        own = statistics.median(program.seconds[WARM_UP:])
        out.append(
            {
                "package": names[place],
                "seconds": own,
                "cpu_seconds": cpu,
                "factor": FLOOR,
                "cpu_fallback": own * FLOOR > cpu,
            }
        )
    return out
