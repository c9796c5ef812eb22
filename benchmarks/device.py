"""The overhead of the device harness: a step through it, next to bare calls of the same packages.

It uses the executor and so runs on any machine; it says nothing about a device.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from benchmarks.harness import Measured, Row
from mdm_apple.bundled_models import EMOJI
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.bundle.golden import read_golden
from mdm_apple.conversion.convert import ConvertOptions, convert
from mdm_apple.conversion.device.cells import Cell
from mdm_apple.conversion.device.engines import engine_for
from mdm_apple.conversion.device.measure import WARM_UP, measure
from mdm_apple.conversion.run.packages import Denoiser
from mdm_apple.conversion.source.model import load_source
from mdm_apple.conversion.verify.ladder import text_of
from mdm_apple.storage.model_folder import weights_sha256


def overhead(repetitions: int, work: Path) -> Row:
    """Steps of the embedded model; the two sides run one after the other, not in turn."""
    out = work / "emoji-device.bundle"
    bundle = (
        Bundle.open(out)
        if out.exists()
        else convert(load_source(EMOJI), out, ConvertOptions("nested", compute="ane"))
    )
    digest = bundle.manifest.digest
    cell = Cell(out.name, digest, "executor", "packages", (), 1, repetitions, 1, "fp16")
    found = measure(cell, bundle, engine_for("executor", bundle, "fp16", work))
    (step,) = [row for row in found["latencies"] if row["what"] == "step"]
    packages = [
        statistics.median(row["seconds"])
        for row in found["latencies"]
        if row["what"].startswith("package inner") or row["what"].startswith("package outer")
    ]
    return Row(
        "a step through the device harness, executor",
        Measured(step["seconds"]),
        "the denoiser alone",
        Measured(_bare(bundle, repetitions)),
        figures={"packages of it, s": sum(packages)},
        note="one after the other; proves the harness, says nothing about a device",
        model_sha256=weights_sha256(EMOJI),
        warm_up=WARM_UP,
    )


def _bare(bundle: Bundle, repetitions: int) -> list[float]:
    config, golden = bundle.config(), bundle.manifest.golden
    text, record = read_golden(bundle.file(golden.path), golden, config.sides)
    denoiser = Denoiser(bundle, "fp16")
    given = denoiser.condition(text_of(bundle, text, 0))
    seconds: list[float] = []
    for k in range(WARM_UP + repetitions):
        probe = record.probes[k % len(record.probes)]
        start = time.perf_counter()
        denoiser.predict([x[:1] for x in probe.x_t], probe.t - 1, given)
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]
