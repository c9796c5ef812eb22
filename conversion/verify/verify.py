"""Proves a bundle: executes its packages and compares them with the torch network they came from.

Input: a bundle, and the model folder or the golden record inside the bundle. Output: a report with
a row for the worst prompt at every level and noise level, and optionally the rungs of `ladder`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.strict_json import plain_values
from mdm_apple.config.types import ExecutorPrecision, Floats, VerifyRuntime
from mdm_apple.diffusion.schedule import build_schedule

from ..bundle.folder import Bundle
from ..bundle.golden import read_golden
from ..errors import BundleError
from ..execute import Range, Watch
from ..run.packages import Denoiser, Load, default_load, executor
from ..source.model import ModelSource, load_source
from ..source.trajectory import (
    PROMPTS,
    Predict,
    TextInputs,
    Trajectory,
    record_trajectory,
    text_inputs,
)
from .formats import check_other_format, rows_of_formats
from .fp32 import Fp32Packages
from .ladder import (
    FLOOR_PICTURES,
    Answers,
    Row,
    Rung,
    answers_of,
    bundle_predict,
    floor_of,
    guided_pictures,
    is_fp16,
    network_predict,
    picture_rows,
    pictures,
    recorded_answers,
    rewritten_rung,
    text_of,
    worst_rows,
)
from .parts import rows_against_torch, same_parts

GUIDED_STEPS = 15  # for a Core AI bundle, as an app would draw its pictures


@dataclass(frozen=True)
class RangeRow:
    """Largest magnitude in a package with its operation, and the first value that was not finite.

    Taken over all prompts and noise levels.
    """

    package: str
    largest: float
    operation: str
    first_nonfinite: str | None


@dataclass(frozen=True)
class VerifyReport:
    """floor: PSNR that every row must reach. compute_units: Apple's; None for the executor.

    picture_psnr: per level, at the end of a short trajectory run by the bundle alone. rungs:
    further comparisons, each with its own floors. values: the range of every computed value of a
    package; left out of the JSON, where `ranges` has the largest.
    """

    reference: Literal["model", "golden"]
    runtime: VerifyRuntime
    compute_units: str | None
    precision: ExecutorPrecision
    variant: str
    text: str | None
    prompts: int
    floor: float | None
    rows: tuple[Row, ...]
    picture_psnr: dict[int, float]
    ranges: tuple[RangeRow, ...]
    rungs: tuple[Rung, ...] = ()
    values: Mapping[str, Sequence[Range]] = field(default_factory=dict[str, Sequence[Range]])

    @property
    def worst(self) -> float:
        return min(row.psnr for row in self.rows)

    @property
    def passed(self) -> bool:
        finite = all(r.first_nonfinite is None for r in self.ranges)
        finite &= all(value > -math.inf for value in (self.worst, *self.picture_psnr.values()))
        reached = self.floor is None or self.worst >= self.floor
        return finite and reached and all(rung.passed for rung in self.rungs)

    def as_json(self) -> dict[str, Any]:
        """Plain values; infinities are text, because JSON has none."""
        data = asdict(replace(self, values={})) | {"passed": self.passed, "worst_psnr": self.worst}
        del data["values"]
        data["rungs"] = [rung.as_json() for rung in self.rungs]
        return plain_values(data)


@dataclass(frozen=True)
class VerifyOptions:
    """How thoroughly to verify a bundle, and with what.

    prompts: number of prompts, up to 8; a golden record has its own. floor: PSNR in dB that every
    row must reach; the default depends on the bits of the weights. ladder: whether to add the rungs
    to the comparison of packages with the network. fp16: the bundle this one was compressed from.
    against: the same model in the other format. load: runs packages with something other than
    `default_load`, on some of Apple's compute units.
    """

    precision: ExecutorPrecision = "fp16"
    prompts: int = len(PROMPTS)
    floor: float | None = None
    ladder: bool = False
    fp16: Bundle | None = None
    against: Bundle | None = None
    load: Load | None = None
    compute_units: str | None = None
    say: Callable[[str], None] = lambda _: None


def verify(
    bundle: Bundle, model: Path | None = None, options: VerifyOptions | None = None
) -> VerifyReport:
    """Compare a bundle with its model folder, or with its own golden record.

    Raises BundleError if the folder is not the bundle's model, or if the bundle's tables do not
    match its schedule.
    """
    options = options or VerifyOptions()
    _check_bundles(bundle, options, with_model=model is not None)
    if model is not None:
        return _against(bundle, load_source(model, _encoder_choice(bundle)), options)
    config, golden = bundle.config(), bundle.manifest.golden
    text, record = read_golden(bundle.file(golden.path), golden, config.sides)
    return _compare(bundle, _Reference(config, None, text, record), options)


def verify_source(bundle: Bundle, source: ModelSource, options: VerifyOptions) -> VerifyReport:
    """`verify` against a network in memory."""
    _check_bundles(bundle, options, with_model=True)
    return _against(bundle, source, options)


def _against(bundle: Bundle, source: ModelSource, options: VerifyOptions) -> VerifyReport:
    if source.config != bundle.config():
        raise BundleError(
            f"{bundle.path}: was made from a model with another configuration; give its own folder."
        )
    chosen = PROMPTS[: max(1, min(options.prompts, len(PROMPTS)))]
    options.say("running the torch network")
    text = text_inputs(source, chosen)
    record = record_trajectory(source, text, len(chosen))
    return _compare(bundle, _Reference(source.config, source, text, record), options)


def _check_bundles(bundle: Bundle, options: VerifyOptions, with_model: bool) -> None:
    """Refuse, before the network runs, bundles that cannot be compared as the options say."""
    _check_tables(bundle, bundle.config())
    plain = options.fp16
    if plain is not None:
        if plain.config() != bundle.config() or not is_fp16(plain):
            raise BundleError(f"{plain.path}: is not the fp16 bundle of the same model.")
        if plain.manifest.format != bundle.manifest.format:
            raise BundleError(
                f"{plain.path}: is a {plain.manifest.format} bundle, unlike {bundle.path}; give "
                "the one that it was compressed from."
            )
    if options.against is not None:
        check_other_format(bundle, options.against)
    made_again = options.precision == "fp32" and "coreai" in {
        one.manifest.format for one in (bundle, options.against) if one is not None
    }
    if made_again and not (with_model and is_fp16(bundle)):
        raise BundleError(
            f"{bundle.path}: fp32 packages of Core AI are made from the model folder of an fp16 "
            "bundle; give both, with --model, or leave out --precision."
        )


@dataclass(frozen=True)
class _Reference:
    """What a bundle is compared with; source is None for its own golden record."""

    config: ModelConfig
    source: ModelSource | None
    text: TextInputs | None
    record: Trajectory


def _compare(bundle: Bundle, reference: _Reference, options: VerifyOptions) -> VerifyReport:
    run = options.load or _run_as_stored(bundle, options.precision)
    with _loader(bundle, run, reference.source, options.precision) as load:
        return _compare_by(bundle, reference, options, run, load)


def _run_as_stored(bundle: Bundle, precision: ExecutorPrecision) -> Load:
    """What runs the files of a bundle, in the precision that they allow."""
    return default_load(bundle, precision if bundle.manifest.format == "coreml" else "fp16")


def _beside(bundle: Bundle, run: Load, precision: ExecutorPrecision) -> Load:
    """What runs a bundle beside its other format: of Core ML the executor, never Core ML itself."""
    return executor(precision) if bundle.manifest.format == "coreml" else run


@contextmanager
def _loader(
    bundle: Bundle,
    run: Load,
    source: ModelSource | None,
    precision: ExecutorPrecision,
    as_core_ml: bool = False,
) -> Generator[Load]:
    """What runs a bundle in a precision; Core AI's packages are made once more to compute in fp32.

    Args:
        run: runs the files as they are. as_core_ml: see `Fp32Packages`.
    """
    if bundle.manifest.format == "coreml" or precision == "fp16":
        yield run
        return
    assert source is not None, "checked before"
    with tempfile.TemporaryDirectory(prefix="mdm-fp32-") as folder:
        parts = same_parts(bundle, source)
        yield Fp32Packages(parts, Path(folder), run, as_core_ml)


def _compare_by(
    bundle: Bundle, reference: _Reference, options: VerifyOptions, run: Load, load: Load
) -> VerifyReport:
    """run: the files as they are; load: in the precision of the options."""
    config, source = reference.config, reference.source
    text, record = reference.text, reference.record
    floor = floor_of(bundle) if options.floor is None else options.floor
    denoiser = Denoiser(bundle, options.precision, load)
    watches: dict[str, Watch] = {}
    answers = _answers(denoiser, text, record, watches, options.say)
    rungs: list[Rung] = []
    if options.ladder and source is not None:
        if bundle.compute == "ane":
            options.say("the rewritten network")
            rungs.append(rewritten_rung(source, text, record))
        if config.distilled is None:  # a student is not guided; its jumps are compared below
            rungs.append(_guided_rung(denoiser, source, text, options))
    if bundle.manifest.format == "coreai" and source is not None and is_fp16(bundle):
        options.say("package by package")
        parts = rows_against_torch(bundle, source, load, options.precision)
        rungs.append(Rung("packages", "parts of the network", None, (), None, {}, parts))
    if options.against is not None:
        options.say("package by package, in both formats")
        precision, other = options.precision, options.against
        with (
            _loader(bundle, _beside(bundle, run, precision), source, precision, True) as own,
            _loader(other, _run_as_stored(other, precision), source, precision, True) as others,
        ):
            parts = rows_of_formats((bundle, own), (other, others), text, record, precision)
        constants = " with Core ML's constants" if precision == "fp32" else ""
        name = f"Apple's runtime{constants}"
        rungs.append(Rung(name, "executor", None, (), None, {}, parts))
    if options.fp16 is not None:
        rungs.append(_compressed_rung(denoiser, options.fp16, text, record, answers, options))
    options.say("a short trajectory")
    steps = bundle.manifest.golden.steps if source is None else None
    given = bundle_predict(denoiser, denoiser.condition(text_of(bundle, text, 0)))
    final = pictures(config, given, steps)
    return VerifyReport(
        reference="golden" if source is None else "model",
        runtime=_runtime(bundle, options),
        compute_units=options.compute_units,
        precision=options.precision,
        variant=bundle.manifest.variant,
        text=None if text is None else text.source,
        prompts=len(answers),
        floor=floor,
        rows=tuple(worst_rows(bundle.sides, record, recorded_answers(record), answers)),
        picture_psnr=picture_rows(bundle.sides, [p[:1] for p in record.pictures], final),
        ranges=tuple(_range_row(name, watch) for name, watch in watches.items()),
        rungs=tuple(rungs),
        values={name: watch.by_value() for name, watch in watches.items()},
    )


def _runtime(bundle: Bundle, options: VerifyOptions) -> VerifyRuntime:
    if bundle.manifest.format == "coreai":
        return "coreai"
    return "reference" if options.load is None else "coreml"


def _answers(
    denoiser: Denoiser,
    text: TextInputs | None,
    record: Trajectory,
    watches: dict[str, Watch],
    say: Callable[[str], None],
) -> Answers:
    """A bundle's predictions for the noisy images of a record."""
    out: Answers = []
    prompts = len(record.pictures[0])
    for p in range(prompts):
        say(f"prompt {p + 1} of {prompts}")
        conditioning = denoiser.condition(text_of(denoiser.bundle, text, p), watches)
        out.append(answers_of(bundle_predict(denoiser, conditioning, watches), record, p))
    return out


def _guided_rung(
    denoiser: Denoiser, source: ModelSource, text: TextInputs | None, options: VerifyOptions
) -> Rung:
    """Pictures with guidance: the first prompt, guided away from the empty second one."""
    options.say("a guided trajectory")
    both = None if text is None else text_inputs(source, PROMPTS[:2])
    given, null = (network_predict(source, source.net, both, p) for p in range(2))
    wanted = _guided_as_shown(denoiser.bundle, given, null)
    got = _guided(denoiser, both)
    floor = FLOOR_PICTURES if is_fp16(denoiser.bundle) else None
    by_side = picture_rows(source.config.sides, wanted, got)
    return Rung("guided pictures", "network", None, (), floor, by_side)


def _guided(denoiser: Denoiser, both: TextInputs | None) -> list[Floats]:
    """Guided pictures by the packages of a bundle."""
    given, null = (
        bundle_predict(denoiser, denoiser.condition(text_of(denoiser.bundle, both, p)))
        for p in range(2)
    )
    return _guided_as_shown(denoiser.bundle, given, null)


def _guided_as_shown(bundle: Bundle, given: Predict, null: Predict) -> list[Floats]:
    """Guided pictures by any predictions, so many steps and as much clipped as its format wants."""
    if bundle.manifest.format == "coreml":
        return guided_pictures(bundle.config(), given, null)
    made = guided_pictures(bundle.config(), given, null, GUIDED_STEPS)
    # as an app shows them: a few pixels leave the range and diverge there
    return [np.clip(x, -1, 1) for x in made]


def _compressed_rung(
    denoiser: Denoiser,
    fp16: Bundle,
    text: TextInputs | None,
    record: Trajectory,
    answers: Answers,
    options: VerifyOptions,
) -> Rung:
    """The compressed packages against the fp16 packages, and the guided pictures of both."""
    bundle = denoiser.bundle
    options.say("the fp16 packages")
    plain = Denoiser(fp16, options.precision, options.load)
    wanted = _answers(plain, text, record, {}, options.say)
    rows = worst_rows(bundle.sides, record, wanted, answers)
    by_side: dict[int, float] = {}
    if bundle.config().distilled is None and (text is None or len(text.mask) > 1):
        both = [_guided(d, text) for d in (plain, denoiser)]
        by_side = picture_rows(bundle.sides, *both)
    return Rung(
        bundle.manifest.variant, "fp16 packages", floor_of(bundle), tuple(rows), None, by_side
    )


def _check_tables(bundle: Bundle, config: ModelConfig) -> None:
    """Check the tables, which an app uses; the trajectory here takes its schedule from `config`."""
    schedule = build_schedule(config.diffusion.schedule, config.model.scales)
    tables, manifest = bundle.tables(), bundle.manifest
    wanted = {manifest.alpha_bar: schedule.base}
    wanted |= {
        level.alpha_bar: table
        for level, table in zip(manifest.levels, schedule.tables, strict=True)
    }
    for name, table in wanted.items():
        # exp and tan of another system may differ in the last digits
        if not np.allclose(tables[name], table, rtol=1e-9, atol=0):
            raise BundleError(
                f"{bundle.path}: its table {name!r} does not match the model's schedule; convert "
                "the model again."
            )


def _encoder_choice(bundle: Bundle) -> Literal["yes", "no"]:
    text = bundle.manifest.text
    return "yes" if text and text.encoder else "no"


def _range_row(package: str, watch: Watch) -> RangeRow:
    largest, bad = watch.largest, watch.first_nonfinite
    return RangeRow(
        package,
        largest.largest if largest else 0.0,
        largest.name if largest else "",
        bad.name if bad else None,
    )
