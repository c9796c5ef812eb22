"""`python -m benchmarks ID REPETITIONS FOLDER`: one row, measured in this process.

Prints the row's JSON as the last line on stdout. `mdm bench run` starts one such process per row,
so that no row inherits another's memory. FOLDER is scratch space shared by the rows of a run.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.blas import lend_blas
from benchmarks.harness import machine
from benchmarks.suites import entries_of
from mdm_apple.conversion.device.machine import commit
from mdm_apple.conversion.footprint import peak_bytes
from mdm_apple.errors import MdmError


def main(row_id: str, repetitions: int, work: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps library output out of the result
    lend_blas()  # before a row imports MLX
    (entry,) = entries_of([row_id])
    row = entry.measure(repetitions, work)
    data = (
        {"id": entry.id}
        | row.as_json()
        | {
            "peak_bytes": peak_bytes() if row.in_process else None,
            "warm_up": row.warm_up,
            "command": f"{entry.command} --repetitions {repetitions}",
            "commit": commit(),
            "recorded": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
            "machine": machine(),
        }
    )
    answers.write(json.dumps(data) + "\n")
    answers.close()


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    except MdmError as refusal:
        sys.exit(str(refusal))
