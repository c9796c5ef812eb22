"""Device results as a Markdown section."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mdm_apple.bundled_models import FORMATS

from .doctor import HARNESS_ONLY, Candidate, candidates
from .results import STAND_INS, Record

MANY = 20  # fewest values for a 95th percentile


def table(name: str, records: Sequence[Record]) -> str:
    """One row per bundle and unit; missing values read "not measured"."""
    first = records[0]["machine"]
    lines = [
        f"## On a device: {name}\n",
        f"{first['model'] or first['chip'] or first['processor']}, {first['system']} "
        f"{first['os_version'] or 'of unknown version'}, commit {records[0]['commit']}. Repeat by "
        f"`{_command(name, records)}`.\n",
    ]
    if all(record["engine"] in STAND_INS for record in records):
        lines.append(f"{HARNESS_ONLY}\n")
    lines += [
        "| bundle | unit | step | picture | first load | second load | memory | pictures, PSNR "
        "| share on the Neural Engine | remarks |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += [_line(candidate) for candidate in candidates(records)]
    return "\n".join(lines) + "\n"


def _command(name: str, records: Sequence[Record]) -> str:
    bundles = dict.fromkeys(record["bundle"] for record in records)
    steps = dict.fromkeys(n for record in records for n in record["steps"])
    words = [*bundles, *(f"--steps {n}" for n in steps), f"--out {name}.jsonl"]
    return f"mdm bench device {' '.join(words)}"


def _line(c: Candidate) -> str:
    pictures = [f"{n} steps {_times(s)}" for n, s in sorted(c.seconds.items())]
    first = sum(load["first_s"] for load in c.loads)
    seconds = [load["second_s"] for load in c.loads]
    second = None if None in seconds or not seconds else sum(seconds)
    cold = "cold " if any(load["cold"] for load in c.loads) else ""
    shares = [share["neuralEngine"] for share in c.placement.values()]
    remarks = [*c.failures, *(f"CPU fallback: {f}" for f in c.fallbacks), *c.violations]
    cells = [
        f"{c.bundle}, {FORMATS[c.format]}, {c.layout}, {c.variant}, {c.bytes / 1e6:.1f} MB",
        c.units,
        _times(c.step) if c.step else "not measured",
        ", ".join(pictures) or "not measured",
        f"{cold}{first:.2f} s" if c.loads else "not measured",
        "not measured" if second is None else f"{second:.2f} s",
        "not measured" if c.peak_bytes is None else f"{c.peak_bytes / 1e6:.0f} MB",
        "not measured" if c.picture_psnr is None else f"{c.picture_psnr:.1f} dB",
        "not measured" if not shares else f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %",
        "; ".join(dict.fromkeys(remarks)),
    ]
    return f"| {' | '.join(cells)} |"


def _times(seconds: Sequence[float]) -> str:
    """Median and interquartile range, plus the 95th percentile if there are enough values."""
    median = statistics.median(seconds)
    if len(seconds) < 2:
        return f"{1e3 * median:.1f} ms"
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    text = f"{1e3 * median:.1f} ms ({1e3 * (high - low):.1f})"
    if len(seconds) >= MANY:
        text += f", p95 {1e3 * statistics.quantiles(seconds, n=20, method='inclusive')[-1]:.1f} ms"
    return text
