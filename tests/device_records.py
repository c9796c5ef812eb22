"""Cells as `mdm bench device` writes them on a Mac; the numbers are made up, for the doctor."""

from __future__ import annotations

from typing import Any


def cell(
    bundle: str = "a.bundle",
    units: str = "cpuAndNeuralEngine",
    kind: str = "pictures",
    *,
    seconds: float = 1.0,
    psnr: float = 40.0,
    size: int = 10_000_000,
    number: int = 1,
    engine: str = "coreml",
    **changes: Any,
) -> dict[str, Any]:
    """A measured cell; a bundle's digest follows from its name."""
    fair = {"thermal": "nominal", "low_power": False}
    machine = {
        "system": "Darwin",
        "os_version": "15.1 (24B83)",
        "processor": "arm64",
        "model": "Mac0,0",
        "chip": "Apple M0",
        "cores": 8,
        "memory_bytes": 16 << 30,
        "python": "3.11.7",
        "libraries": {"coremltools": "9.0"},
    }
    pictures = [{"steps": 4, "evaluations": 1, "seconds": [seconds] * 5}]
    record: dict[str, Any] = {
        "schema": 1,
        "tool": "mdm bench device",
        "engine": engine,
        "id": f"{bundle}.{units}.{kind}.{number}",
        "bundle": bundle,
        "digest": bundle.encode().hex().ljust(64, "0"),
        "layout": "nested",
        "variant": "fp16",
        "bytes": size,
        "units": units,
        "kind": kind,
        "steps": [4],
        "evaluations": 1,
        "repetitions": 5,
        "round": number,
        "precision": "fp16",
        "status": "measured",
        "reason": None,
        "started": "2026-01-01T00:00:00Z",
        "seconds": 10.0,
        "commit": None,
        "machine": machine,
        "before": fair,
        "after": fair,
        "violations": [],
        "loads": None,
        "latencies": None,
        "pictures": pictures if kind == "pictures" else None,
        "sustained": None,
        "peak_bytes": 500_000_000,
        "placement": None,
        "floor": None,
        "quality": {"prediction_psnr": 50.0, "picture_psnr": {"64": psnr}},
    }
    return record | changes


def floor(own: float, cpu: float) -> list[dict[str, Any]]:
    return [
        {
            "package": "core_64",
            "seconds": own,
            "cpu_seconds": cpu,
            "factor": 1.2,
            "cpu_fallback": own * 1.2 > cpu,
        }
    ]
