"""Numbers that a bundle carries so that no host derives them again.

`tables.safetensors` holds, float64, `alpha_bar` (unshifted) and `alpha_bar_<side>`, T + 1 entries
each; float32, `time_<side>` (T, D): what the network of that level makes of t - 1 and of the
default micro-conditions. Row t - 1 belongs to table index t.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from conversion.source import ModelSource
from mdm_apple.schedule import build_schedule
from mdm_apple.tensorfile import write_tensors

TABLES = "tables.safetensors"
BASE_TABLE = "alpha_bar"


def alpha_bar_name(side: int) -> str:
    return f"alpha_bar_{side}"


def time_name(side: int) -> str:
    return f"time_{side}"


def write_tables(folder: Path, source: ModelSource) -> None:
    config = source.config
    schedule = build_schedule(config.diffusion.schedule, config.model.scales)
    tables: dict[str, NDArray[Any]] = {BASE_TABLE: schedule.base}
    for side, table in zip(config.sides, schedule.tables, strict=True):
        tables[alpha_bar_name(side)] = table
    with torch.inference_mode():
        rows = source.net.embed(torch.arange(schedule.num_steps, dtype=torch.float32))
    for side, level in zip(config.sides, rows, strict=True):
        tables[time_name(side)] = level.float().numpy()
    write_tensors(folder / TABLES, tables)
