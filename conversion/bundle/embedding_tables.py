"""Tables that a bundle carries so that no host has to derive them again.

`tables.safetensors` holds `alpha_bar` (unshifted) and `alpha_bar_<side>` in float64, T + 1 entries
each, and `time_<side>` (T, D) in float32: the level's embedding of t - 1 and of the default
micro-conditions. Row t - 1 belongs to table index t. A student adds `target_time_<side>`, with one
row per index it can jump to, and `guidance_<side>`, with one row per guidance weight it accepts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from mdm_apple.config.model import Distilled
from mdm_apple.diffusion.schedule import build_schedule
from mdm_apple.storage.tensorfile import write_tensors
from mdm_apple.torch.layers import embed_scalar

from ..layouts.names import BASE_TABLE, alpha_bar_name, guidance_name, target_time_name, time_name
from ..source.model import ModelSource

TABLES = "tables.safetensors"
WEIGHT_STEP = 0.25  # between the guidance weights that a student's bundle offers
MAX_WEIGHTS = 64


def student_targets(distilled: Distilled) -> tuple[int, ...]:
    """Table indices a student can jump to."""
    return (*distilled.starts, 0)


def student_weights(distilled: Distilled) -> tuple[float, ...]:
    """Guidance weights in steps of a quarter, or in wider steps where quarters give too many."""
    if distilled.guidance is None:
        return ()
    low, high = distilled.guidance
    count = min(MAX_WEIGHTS, 1 + round((high - low) / WEIGHT_STEP))
    if count == 1 or low == high:
        return (low,) if low == high else (low, high)
    return tuple(low + (high - low) * i / (count - 1) for i in range(count))


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
    if config.distilled is not None:
        tables |= _student_tables(source, config.distilled)
    write_tensors(folder / TABLES, tables)


@torch.inference_mode()
def _student_tables(source: ModelSource, distilled: Distilled) -> dict[str, NDArray[Any]]:
    tables: dict[str, NDArray[Any]] = {}
    targets = torch.tensor(student_targets(distilled), dtype=torch.float32)
    weights = torch.tensor(student_weights(distilled), dtype=torch.float32)
    for side, level in zip(source.config.sides, source.net.level_modules(), strict=True):
        rows = embed_scalar(targets, level.temb_target_layer1, level.temb_target_layer2)
        tables[target_time_name(side)] = rows.float().numpy()
        if len(weights):
            rows = embed_scalar(weights, level.temb_guidance_layer1, level.temb_guidance_layer2)
            tables[guidance_name(side)] = rows.float().numpy()
    return tables
