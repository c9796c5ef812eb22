"""The README's table of shippable models; `python -m benchmarks.ship` rewrites it.

Sizes and quality come from pareto_emoji.json, if it was measured on the packaged model; latency
comes from device results. The official models' sizes are counted from their shapes. Missing numbers
read "not measured".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdm_apple.bundled_models import EMOJI
from mdm_apple.config.presets import preset
from mdm_apple.config.shapes import parameter_count
from mdm_apple.conversion.device.doctor import candidates
from mdm_apple.conversion.device.results import read_results
from mdm_apple.storage.model_folder import weights_sha256

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PARETO = HERE / "pareto_emoji.json"
START, END = "<!-- ship: made by python -m benchmarks.ship -->", "<!-- ship ends -->"
NAMES = {
    "fp16": "16 bits",
    "8": "8 bits",
    "6": "6 bits",
    "quality": "mixed, `quality`",
    "balanced": "mixed, `balanced`",
    "compact": "mixed, `compact`",
}
OFFICIAL = ("mdm64", "mdm256", "mdm1024")


def table(pareto: Mapping[str, Any], box_sha256: str | None, on_device: Mapping[str, str]) -> str:
    """The table in Markdown. on_device: latency of the emoji bundles on a device, by variant."""
    lines = [
        "| model | steps | size of the packages | proven here | latency on a device |",
        "|---|---|---:|---|---|",
    ]
    sampler = pareto["protocol"]["sampler"]
    steps = f"{sampler['num_steps']} ({sampler['kind']}, guided)"
    measured = pareto["model"]["sha256"] == box_sha256
    points = {point["name"]: point for point in pareto["points"]}
    for name, label in NAMES.items():
        point = points[name]
        proof = "quality not measured on this model" if not measured else _proof(name, point)
        size = f"{point['bytes'] / 1e6:.1f} MB" if measured else "not measured"
        latency = on_device.get(name, "not measured")
        lines.append(f"| emoji, 64 px, {label} | {steps} | {size} | {proof} | {latency} |")
    for name in OFFICIAL:
        count = parameter_count(preset(name).model)
        size = f"{2 * count / 1e6:.0f} MB counted, in 16 bits"
        lines.append(
            f"| {name}, {count / 1e6:.1f} M parameters | any | {size} | network equal to the "
            "original on golden numbers with random weights | not measured |"
        )
    return "\n".join(lines)


def _proof(name: str, point: Mapping[str, Any]) -> str:
    if name == "fp16":
        return "what the others are compared with"
    worst = float(point["worst"])
    least = "equal" if math.isinf(worst) else f"worst {worst:.1f} dB"
    return f"pictures at {float(point['psnr']):.1f} dB of 16 bits' ({least}), on the executor"


def device_latencies(results: Path) -> dict[str, str]:
    """Latencies of bundles measured with Core ML, by variant."""
    out: dict[str, str] = {}
    for path in sorted(results.glob("device/*.jsonl")):
        for c in candidates([r for r in read_results(path) if r["engine"] == "coreml"]):
            if c.picture is not None:
                steps, seconds = c.picture
                known = f"{out[c.variant]}; " if c.variant in out else ""
                latency = f"{seconds:.2f} s for {steps} steps on {c.units}, {path.stem}"
                out[c.variant] = known + latency
    return out


def readme_with_table() -> str:
    """The README's text with the table made from the results."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    pareto = json.loads(PARETO.read_text(encoding="utf-8"))
    made = table(pareto, weights_sha256(EMOJI), device_latencies(HERE / "results"))
    return f"{before}{START}\n\n{made}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(readme_with_table(), encoding="utf-8")
