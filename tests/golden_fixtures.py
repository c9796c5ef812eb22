"""Reading the golden fixtures: numbers made by the original implementation (golden/README.md)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from mdm_apple.apple_checkpoints.fields import diffusion_config_from_apple, unet_config_from_apple
from mdm_apple.config.model import DiffusionConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.diffusion.schedule import Schedule, base_table

OWN = Path(__file__).parent / "golden"
KINDS = ("model", "weights", "loss", "train", "sampler", "schedules")


def golden_folders() -> list[Path]:
    """tests/golden and every folder that MDM_GOLDEN adds; a named folder must hold fixtures."""
    added = [Path(p) for p in os.environ.get("MDM_GOLDEN", "").split(os.pathsep) if p]
    return [OWN, *added]


@dataclass(frozen=True)
class Fixture:
    path: Path  # of the JSON

    @cached_property
    def info(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

    @property
    def kind(self) -> str:
        return str(self.info["kind"])

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        return dict(load_file(self.path.with_suffix(".safetensors")))

    def inputs(self, prefix: str) -> dict[str, np.ndarray]:
        """Tensors whose name starts with `prefix`, without it."""
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    @property
    def weights(self) -> Fixture:
        """The fixture that holds the weights of a loss or a sampler."""
        return Fixture(self.path.with_name(f"{self.info['weights']}.json"))

    @property
    def unet(self) -> UNetConfig:
        dim = self.info["lm_dim"]
        return unet_config_from_apple(self.info["config"], dim if dim > 0 else None)

    def state(self, prefix: str = "sd.") -> dict[str, np.ndarray]:
        return {k: v.astype(np.float32) for k, v in self.inputs(prefix).items()}

    def diffusion(self, levels: int) -> DiffusionConfig:
        return diffusion_config_from_apple(self.info["diffusion_config"], levels)


def find_fixtures() -> list[Fixture]:
    found = []
    for folder in golden_folders():
        here = [Fixture(p) for p in sorted(folder.glob("*.json"))]
        if not here:
            raise FileNotFoundError(f"{folder}: expected golden fixtures (*.json), found none.")
        unknown = [f.path.name for f in here if f.kind not in KINDS]
        if unknown:
            raise ValueError(f"{folder}: fixtures of unknown kind: {unknown}")
        found += here
    return found


def rounded_schedule(config: DiffusionConfig, scales: tuple[int, ...]) -> Schedule:
    """Tables rounded as the original rounds them: base to float32 first, shifted in float32."""
    base = base_table(config.schedule).astype(np.float32)
    power = config.schedule.shift_power
    tables = []
    for scale in scales:
        table = base
        if power is not None and scale > 1:
            factor = np.float32(float(scale) ** power)
            with np.errstate(divide="ignore"):
                table = 1 / (1 + factor / (base / (1 - base)))
        tables.append(table.astype(np.float64))
    return Schedule(base.astype(np.float64), tuple(tables))
