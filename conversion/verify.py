"""Proof of a bundle: its packages, executed, against the torch network they came from.

Enters: a bundle, and the model folder or the golden record inside the bundle. Leaves: a report with
a row per level and noise level, holding the worst of the prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from conversion.bundle import Bundle
from conversion.chain import Denoiser, Jump
from conversion.errors import BundleError
from conversion.execute import Precision, Watch
from conversion.golden import read_golden
from conversion.parts import TEXT_FEATURES, TEXT_MASK, TOKEN_IDS
from conversion.quality import Closeness, closeness, picture_psnr, plain_values
from conversion.reference import PROMPTS, SEED, TextInputs, Walk, text_inputs, walk, walk_grid
from conversion.source import ModelSource, load_source
from mdm_apple.config import ModelConfig
from mdm_apple.loss import image_scale
from mdm_apple.noise import NoiseStream, draw_batch
from mdm_apple.ops import NumpyOps
from mdm_apple.sampling import SamplerConfig, sample, sample_student
from mdm_apple.schedule import build_schedule

FLOOR_FP16 = 60.0  # dB; what trained fp16 packages keep in fp16-storage execution


@dataclass(frozen=True)
class Row:
    """The worst of the prompts at one level and table index t."""

    side: int
    t: int
    psnr: float
    snr: float


@dataclass(frozen=True)
class RangeRow:
    """Largest magnitude in a package and its operation, and the first one that was not finite.

    Over all prompts and noise levels.
    """

    package: str
    largest: float
    operation: str
    first_nonfinite: str | None


@dataclass(frozen=True)
class VerifyReport:
    """floor is None where only finite numbers are demanded: compressed weights, no floor given.

    picture_psnr: per level, at the end of a short trajectory run by the bundle alone.
    """

    reference: Literal["model", "golden"]
    runtime: Literal["reference"]
    precision: Precision
    variant: str
    text: str | None
    prompts: int
    floor: float | None
    rows: tuple[Row, ...]
    picture_psnr: dict[int, float]
    ranges: tuple[RangeRow, ...]

    @property
    def worst(self) -> float:
        return min(row.psnr for row in self.rows)

    @property
    def passed(self) -> bool:
        finite = all(r.first_nonfinite is None for r in self.ranges)
        finite &= all(value > -math.inf for value in (self.worst, *self.picture_psnr.values()))
        return finite and (self.floor is None or self.worst >= self.floor)

    def as_json(self) -> dict[str, Any]:
        """Plain values; infinities as text, since JSON has none."""
        data = asdict(self) | {"passed": self.passed, "worst_psnr": self.worst}
        return plain_values(data)


def verify(
    bundle: Bundle,
    model: Path | None = None,
    *,
    precision: Precision = "fp16",
    prompts: int = len(PROMPTS),
    floor: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> VerifyReport:
    """Compare a bundle with its model folder, or with its own golden record.

    Args:
        prompts: how many, up to 8; the golden record has its own.
        floor: PSNR in dB that every row must reach; None: 60 for fp16 weights, else nothing.

    Raises BundleError when the folder is not the model of the bundle, or the bundle's tables are
    not those of its schedule.
    """
    if model is None:
        config = bundle.config()
        golden = bundle.manifest.golden
        text, record = read_golden(bundle.file(golden.path), golden, config.sides)
    else:
        source = load_source(model, _encoder_choice(bundle))
        return verify_source(
            bundle, source, precision=precision, prompts=prompts, floor=floor, say=say
        )
    return _compare(bundle, config, text, record, "golden", precision, floor, say)


def verify_source(
    bundle: Bundle,
    source: ModelSource,
    *,
    precision: Precision = "fp16",
    prompts: int = len(PROMPTS),
    floor: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> VerifyReport:
    """`verify` against a network in memory."""
    if source.config != bundle.config():
        raise BundleError(
            f"{bundle.path}: was made from a model of another configuration; give its own folder."
        )
    chosen = PROMPTS[: max(1, min(prompts, len(PROMPTS)))]
    say("running the torch network")
    text = text_inputs(source, chosen)
    record = walk(source, text, len(chosen))
    return _compare(bundle, source.config, text, record, "model", precision, floor, say)


def _compare(
    bundle: Bundle,
    config: ModelConfig,
    text: TextInputs | None,
    record: Walk,
    reference: Literal["model", "golden"],
    precision: Precision,
    floor: float | None,
    say: Callable[[str], None],
) -> VerifyReport:
    if floor is None and all(p.weight_bits == 16 for p in bundle.manifest.packages):
        floor = FLOOR_FP16
    _check_tables(bundle, config)
    denoiser = Denoiser(bundle, precision)
    prompts = len(record.pictures[0])
    watches: dict[str, Watch] = {}
    worst: dict[tuple[int, int], Closeness] = {}
    for p in range(prompts):
        say(f"prompt {p + 1} of {prompts}")
        conditioning = denoiser.condition(_text_of(bundle, text, p), watches)
        for probe in record.probes:
            x_t = [x[p : p + 1] for x in probe.x_t]
            jump = None if probe.target is None else Jump(probe.target)
            out = denoiser.predict(x_t, probe.t - 1, conditioning, watches, jump=jump)
            for side, wanted, got in zip(bundle.sides, probe.prediction, out, strict=True):
                found = closeness(wanted[p : p + 1], got)
                before = worst.get((side, probe.t))
                if before is None or found.psnr < before.psnr:
                    worst[side, probe.t] = found
    say("a short trajectory")
    final = _trajectory(denoiser, bundle, config, _text_of(bundle, text, 0))
    pictures = {
        side: picture_psnr(wanted[:1], got)
        for side, wanted, got in zip(bundle.sides, record.pictures, final, strict=True)
    }
    return VerifyReport(
        reference=reference,
        runtime="reference",
        precision=precision,
        variant=bundle.manifest.variant,
        text=None if text is None else text.source,
        prompts=prompts,
        floor=floor,
        rows=tuple(Row(side, t, c.psnr, c.snr) for (side, t), c in sorted(worst.items())),
        picture_psnr=pictures,
        ranges=tuple(_range_row(name, watch) for name, watch in watches.items()),
    )


def _check_tables(bundle: Bundle, config: ModelConfig) -> None:
    """The trajectory below takes its schedule from the configuration, an app from these tables."""
    schedule = build_schedule(config.diffusion.schedule, config.model.scales)
    tables, manifest = bundle.tables(), bundle.manifest
    wanted = {manifest.alpha_bar: schedule.base}
    wanted |= {
        level.alpha_bar: table
        for level, table in zip(manifest.levels, schedule.tables, strict=True)
    }
    for name, table in wanted.items():
        # another system's exp and tan may differ in the last digits
        if not np.allclose(tables[name], table, rtol=1e-9, atol=0):
            raise BundleError(
                f"{bundle.path}: its table {name!r} is not that of the model's schedule; convert "
                "the model again."
            )


def _encoder_choice(bundle: Bundle) -> Literal["yes", "no"]:
    text = bundle.manifest.text
    return "yes" if text and text.encoder else "no"


def _text_of(bundle: Bundle, text: TextInputs | None, p: int) -> dict[str, NDArray[Any]] | None:
    """Text of one prompt: tokens where the bundle encodes them itself, else features."""
    if text is None:
        return None
    mask = {TEXT_MASK: text.mask[p : p + 1]}
    info = bundle.manifest.text
    if info and info.encoder and text.ids is not None:
        return mask | {TOKEN_IDS: text.ids[p : p + 1]}
    return mask | {TEXT_FEATURES: text.features[p : p + 1]}


def _trajectory(
    denoiser: Denoiser,
    bundle: Bundle,
    config: ModelConfig,
    text: dict[str, NDArray[Any]] | None,
) -> list[NDArray[np.float32]]:
    """The pictures of the golden trajectory, every evaluation by the bundle."""
    schedule = build_schedule(config.diffusion.schedule, config.model.scales)
    golden = bundle.manifest.golden
    stream = NoiseStream(SEED, config.sides)
    conditioning = denoiser.condition(text)
    if config.distilled is not None:
        steps = sample_student(
            lambda x_t, time, to: denoiser.predict(x_t, time, conditioning, jump=Jump(to)),
            draw_batch([stream]),
            schedule,
            config.diffusion,
            walk_grid(config),
        )
    else:
        steps = sample(
            lambda x_t, time: denoiser.predict(x_t, time, conditioning),
            draw_batch([stream]),
            lambda: draw_batch([stream]),
            schedule,
            config.diffusion,
            SamplerConfig("ddim", golden.steps),
            config.model.scales,
            NumpyOps(),
        )
    last: list[NDArray[np.float32]] = []
    for step in steps:
        last = step.x_next
    signal = [image_scale(config.diffusion, config.model.scales, i) for i in range(len(last))]
    return [x * q for x, q in zip(last, signal, strict=True)]


def _range_row(package: str, watch: Watch) -> RangeRow:
    largest, bad = watch.largest, watch.first_nonfinite
    return RangeRow(
        package,
        largest.largest if largest else 0.0,
        largest.name if largest else "",
        bad.name if bad else None,
    )
