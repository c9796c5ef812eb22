"""Which model a command means: --preset or --config, and which backend runs it."""

from __future__ import annotations

import importlib.util
import math
import platform
import sys
from pathlib import Path
from typing import Any

import click

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.presets import PRESETS, preset
from mdm_apple.config.strict_json import read_config
from mdm_apple.errors import MdmError, require

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


class Gigabytes(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """More than 0 and up to a million; click's own range lets "nan" through."""

    name = "GB"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number <= 1e6:
            self.fail(f"{value!r} is no amount of memory in GB.", param, ctx)
        return number


preset_option = click.option(
    "--preset", "preset_name", type=click.Choice(sorted(PRESETS)), help="A named model."
)
config_option = click.option(
    "--config", "config_path", type=FILE, metavar="F", help="A config.json instead of a preset."
)


def chosen_config(preset_name: str | None, config_path: Path | None) -> ModelConfig:
    """The configuration that exactly one of the two options names."""
    if (preset_name is None) == (config_path is None):
        raise MdmError("give either --preset or --config.")
    if config_path is not None:
        return read_config(ModelConfig, config_path)
    assert preset_name is not None
    return preset(preset_name)


backend_option = click.option(
    "--backend",
    type=click.Choice(["torch", "mlx"]),
    default=None,
    help="Default: mlx on Apple silicon, else torch; or the one that is installed.",
)


def default_backend() -> str:
    """MLX on Apple silicon, PyTorch elsewhere; the other one where only that is installed."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    first, second = ("mlx", "torch") if apple else ("torch", "mlx")
    installed = [name for name in (first, second) if importlib.util.find_spec(name)]
    return installed[0] if installed else first


def require_backend(name: str) -> None:
    """Load a backend's framework, or refuse with the pip command that installs it."""
    require("mlx.core" if name == "mlx" else name)
