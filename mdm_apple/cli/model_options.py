"""Kinds of options that several commands take."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from mdm_apple.config.presets import PRESETS
from mdm_apple.data.clips.open_clips import CLIPS_PER_FILE, MAX_CLIPS_PER_FILE
from mdm_apple.sampling.inner_model import AskedLevel

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
            self.fail(f"{value!r} is not an amount of memory in GB.", param, ctx)
        return number


class Number(click.FloatRange):
    """A number from `min` to `max`; click's own range lets "nan" and "inf" through."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class LevelName(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """A level of pictures by its side, or of clips as FRAMESxSIDE; which exist, the model knows."""

    name = "LEVEL"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> AskedLevel:
        asked = AskedLevel.of(str(value))
        if asked is None:
            self.fail(f"{value!r} is neither a side, such as 64, nor such as 16x32.", param, ctx)
        return asked


preset_option = click.option(
    "--preset", "preset_name", type=click.Choice(sorted(PRESETS)), help="A named model."
)
config_option = click.option(
    "--config", "config_path", type=FILE, metavar="F", help="A config.json instead of a preset."
)
clips_per_file_option = click.option(
    "--clips-per-file",
    type=click.IntRange(1, MAX_CLIPS_PER_FILE),
    help=f"At most so many clips of each file of a folder of clips; default: {CLIPS_PER_FILE}.",
)
