"""Reads results and recommends what to ship: format, layout, variant and unit, with the reason.

Cells of the same bundle and unit are pooled over their rounds. Candidates that fell back to the
CPU, failed or make poor pictures are named and left out. Of the rest it takes the fastest, and
among those about as fast, the smallest.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mdm_apple.bundled_models import FORMATS
from mdm_apple.config.types import Format

from .results import STAND_INS, Record

LEAST_PSNR = 20.0  # of pictures, in dB: below it, they visibly differ from the network's
ABOUT = 1.05  # times the fastest: within the scatter of repetitions
THROTTLED = 1.3  # a larger slowdown in sustained pictures is reported

HARNESS_ONLY = (
    "These cells ran on what stands in for Apple's systems: they only prove this harness and say "
    "nothing about any device. Run mdm bench device on a Mac."
)


@dataclass
class Candidate:
    """One bundle on one unit with all its measurements. seconds: of pictures, by steps."""

    bundle: str
    format: Format
    layout: str
    variant: str
    bytes: int
    units: str
    engine: str
    seconds: dict[int, list[float]] = field(default_factory=dict)
    step: list[float] = field(default_factory=list)
    picture_psnr: float | None = None
    peak_bytes: int | None = None
    sustained: list[float] = field(default_factory=list)
    placement: dict[str, dict[str, float]] = field(default_factory=dict)
    loads: list[dict[str, Any]] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return (
            f"{self.bundle} ({FORMATS[self.format]}, {self.layout}, {self.variant}) on {self.units}"
        )

    @property
    def picture(self) -> tuple[int, float] | None:
        """Steps and median seconds of the shortest kind of picture."""
        if not self.seconds:
            return None
        steps = min(self.seconds)
        return steps, statistics.median(self.seconds[steps])


@dataclass(frozen=True)
class Advice:
    """best: None if there is nothing to recommend. notes: one sentence each."""

    best: Candidate | None
    reason: str
    notes: tuple[str, ...]
    harness_only: bool

    def as_json(self) -> dict[str, Any]:
        best = self.best
        return {
            "harness_only": self.harness_only,
            "recommended": None
            if best is None
            else {
                "bundle": best.bundle,
                "format": best.format,
                "layout": best.layout,
                "variant": best.variant,
                "compute_units": best.units,
            },
            "reason": self.reason,
            "notes": list(self.notes),
        }


def advise(records: Sequence[Record], least_psnr: float = LEAST_PSNR) -> Advice:
    """Recommend what to ship, from the cells of one device."""
    if all(record["engine"] in STAND_INS for record in records):
        found = candidates(records)
        return Advice(None, HARNESS_ONLY, tuple(_notes(found, least_psnr)), True)
    on_device = [record for record in records if record["engine"] not in STAND_INS]
    found = candidates(on_device)
    notes = _notes(found, least_psnr)
    if len(on_device) < len(records):
        notes.append(f"{len(records) - len(on_device)} cells of stand-ins were left out.")
    devices = {(r["machine"]["model"], r["machine"]["os_version"]) for r in on_device}
    if len(devices) > 1:
        known = ", ".join(sorted(f"{model} with {version}" for model, version in devices))
        return Advice(
            None, f"The cells come from several devices ({known}); give one file each.", (), False
        )
    fit = [c for c in found if c.picture is not None and not _unfit(c, least_psnr)]
    if not fit:
        return Advice(None, "No bundle is fit to ship on any unit.", tuple(notes), False)
    steps = min(s for c in fit for s in c.seconds)
    compared = [c for c in fit if steps in c.seconds]
    fastest = min(statistics.median(c.seconds[steps]) for c in compared)
    near = [c for c in compared if statistics.median(c.seconds[steps]) <= ABOUT * fastest]
    # equally fast: Core ML runs on more systems, then the smaller download
    best = min(
        near,
        key=lambda c: (c.format != "coreml", c.bytes, statistics.median(c.seconds[steps])),
    )
    return Advice(best, _reason(best, compared, steps), tuple(notes), False)


def candidates(records: Sequence[Record]) -> list[Candidate]:
    """Cells pooled by bundle and unit, in the order of each one's first cell."""
    found: dict[tuple[str, str, str], Candidate] = {}
    for r in records:
        key = (r["digest"], r["units"], r["engine"])
        if key not in found:
            found[key] = Candidate(
                r["bundle"],
                r.get("format", "coreml"),
                r["layout"],
                r["variant"],
                r["bytes"],
                r["units"],
                r["engine"],
            )
        _add(found[key], r)
    return list(found.values())


def _add(to: Candidate, r: Record) -> None:
    if r["status"] != "measured":
        to.failures.append(f"{r['kind']}, round {r['round']}: {r['status']}, {r['reason']}")
    to.violations += r["violations"]
    for picture in r["pictures"] or ():
        to.seconds.setdefault(picture["steps"], []).extend(picture["seconds"])
    for latency in r["latencies"] or ():
        if latency["what"] == "step":
            to.step += latency["seconds"]
    to.sustained += [one["seconds"] for one in r["sustained"] or ()]
    to.loads += [one for one in r["loads"] or () if r["round"] == 1]
    for row in r["placement"] or ():
        to.placement[row["package"]] = row["cost_share"]
    for row in r["floor"] or ():
        if row["cpu_fallback"]:
            to.fallbacks.append(
                f"{row['package']} took {1e3 * row['seconds']:.1f} ms and "
                f"{1e3 * row['cpu_seconds']:.1f} ms on the CPU alone"
            )
    if r["quality"] is not None:
        values = [float(v) for v in r["quality"]["picture_psnr"].values()]
        to.picture_psnr = min(values, default=float("nan"))
    if r["peak_bytes"] is not None:
        to.peak_bytes = max(r["peak_bytes"], to.peak_bytes or 0)


def _unfit(c: Candidate, least_psnr: float) -> list[str]:
    """Reasons not to ship a candidate."""
    out = [f"{f}: it fell back to the CPU, or gains nothing from the unit" for f in c.fallbacks]
    out += c.failures
    if least_psnr == 0:
        return out
    if c.picture_psnr is None:
        out.append("the quality of its pictures was not measured")
    elif not c.picture_psnr >= least_psnr:
        out.append(f"its pictures reach {c.picture_psnr:.1f} dB, below {least_psnr:g}")
    return out


def _notes(found: Sequence[Candidate], least_psnr: float) -> list[str]:
    notes: list[str] = []
    for c in found:
        notes += [f"{c.name}: {why}." for why in dict.fromkeys(_unfit(c, least_psnr))]
        notes += [f"{c.name}: doubtful, {v}." for v in dict.fromkeys(c.violations)]
        if len(c.sustained) > 1 and c.sustained[-1] > THROTTLED * c.sustained[0]:
            notes.append(
                f"{c.name}: picture {len(c.sustained)} in a row took "
                f"{c.sustained[-1] / c.sustained[0]:.1f} times as long as the first."
            )
        cold = [load for load in c.loads if load["cold"]]
        if cold:
            seconds = sum(load["first_s"] for load in cold)
            notes.append(
                f"{c.name}: the first load took {seconds:.1f} s; load once before it is needed."
            )
    return notes


def _reason(best: Candidate, compared: Sequence[Candidate], steps: int) -> str:
    seconds = statistics.median(best.seconds[steps])
    text = f"{seconds:.2f} s per picture of {steps} steps, {best.bytes / 1e6:.0f} MB"
    quality = "of unknown quality" if best.picture_psnr is None else f"{best.picture_psnr:.1f} dB"
    text += f", pictures {quality}"
    if best.peak_bytes is not None:
        text += f", at most {best.peak_bytes / 1e6:.0f} MB of memory"
    others = sorted(
        (statistics.median(c.seconds[steps]), c.name) for c in compared if c is not best
    )
    if not others:
        return f"{text}; no other fit candidate was measured."
    second, name = others[0]
    if second < seconds:
        return f"{text}; {name} is larger and takes {second:.2f} s, which is within the scatter."
    return f"{text}; the next is {name} with {second:.2f} s."
