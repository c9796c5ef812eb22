"""Measures one cell in a fresh process; `run` starts it with `python -m`.

Reads the cell as JSON from stdin and writes its record as the last line on stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mdm_apple.config.strict_json import plain_values
from mdm_apple.errors import MdmError

from ..bundle.folder import Bundle
from ..bundle.manifest import package_bytes
from .cells import Cell
from .conditions import conditions, violations
from .engines import engine_for
from .machine import commit, machine
from .measure import measure
from .results import STAND_INS

NOTHING: dict[str, Any] = dict.fromkeys(
    ("loads", "latencies", "pictures", "sustained", "peak_bytes", "placement", "floor", "quality")
)


def blank(cell: Cell, bundle: Bundle) -> dict[str, Any]:
    """A record of a cell without measurements; the caller sets status and reason."""
    now = asdict(conditions())
    return {
        "schema": 1,
        "tool": "mdm bench device",
        "engine": cell.units if cell.units in STAND_INS else bundle.manifest.format,
        "format": bundle.manifest.format,
        "id": cell.id,
        **asdict(cell),
        "steps": list(cell.steps),
        "layout": bundle.manifest.layout,
        "variant": bundle.manifest.variant,
        "bytes": package_bytes(bundle.manifest.packages),
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": 0.0,
        "commit": commit(),
        "machine": machine(),
        "before": now,
        "after": now,
        "violations": [],
        **NOTHING,
    }


def record_of(cell: Cell, bundle: Bundle, cache: Path) -> dict[str, Any]:
    """Measure a cell; a refusal becomes its reason."""
    before, start = conditions(), time.perf_counter()
    record = blank(cell, bundle) | {"status": "measured", "reason": None}
    try:
        engine = engine_for(cell.units, bundle, cell.precision, cache)
        record |= plain_values(measure(cell, bundle, engine))
    except MdmError as refusal:
        record |= {"status": "failed", "reason": str(refusal)}
    after = conditions()
    return record | {
        "seconds": time.perf_counter() - start,
        "before": asdict(before),
        "after": asdict(after),
        "violations": violations(before, after),
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keeps library output out of the record
    asked = json.load(sys.stdin)
    cell = Cell(**asked["cell"] | {"steps": tuple(asked["cell"]["steps"])})
    record = record_of(cell, Bundle.open(Path(asked["bundle"])), Path(asked["cache"]))
    answers.write(json.dumps(record) + "\n")
    answers.close()


if __name__ == "__main__":
    main()
