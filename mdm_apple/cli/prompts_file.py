"""Prompts from a file, and ranges of seeds: `mdm sample --prompts FILE --seeds 1-16`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mdm_apple.config.model import Threshold
from mdm_apple.config.strict_json import from_json
from mdm_apple.diffusion.noise import MAX_SEED
from mdm_apple.diffusion.schedule import Spacing
from mdm_apple.errors import MdmError
from mdm_apple.sampling.generate import Prompt
from mdm_apple.sampling.settings import SampleSettings
from mdm_apple.sampling.walk import SamplerKind
from mdm_apple.text.captions import clean_caption, read_list

MAX_BYTES = 16 << 20
MOST_SEEDS = 4096
MOST_PICTURES = 1 << 16


@dataclass(frozen=True)
class PromptLine:
    """A line of JSON: a prompt, and the settings that it has of its own; None: the command's."""

    prompt: str
    negative: str | None = None
    seed: int | None = None
    sampler: SamplerKind | None = None
    steps: int | None = None
    eta: float | None = None
    guidance: float | None = None
    threshold: Threshold | None = None
    spacing: Spacing | None = None

    def over(self, settings: SampleSettings) -> SampleSettings:
        """These settings, and those of the command where the line has none."""
        return SampleSettings(
            self.sampler or settings.sampler,
            self.steps or settings.steps,
            settings.full_table and self.steps is None,
            settings.eta if self.eta is None else self.eta,
            settings.guidance if self.guidance is None else self.guidance,
            self.threshold or settings.threshold,
            self.spacing or settings.spacing,
            settings.stop_at,
        )


class SeedRange(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """Seeds from one number to another, both counted, such as 1-16; or a single one."""

    name = "FIRST-LAST"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> range:
        if isinstance(value, range):
            return value
        found = re.fullmatch(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*", str(value))
        if found is None:
            self.fail(f"{value!r} is no range of seeds, such as 1-16.", param, ctx)
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last <= MAX_SEED:
            self.fail(f"{value!r}: expected a range that rises, up to {MAX_SEED}.", param, ctx)
        if last - first >= MOST_SEEDS:
            count = last - first + 1
            self.fail(f"{value!r} is {count:,} seeds, expected up to {MOST_SEEDS:,}.", param, ctx)
        return range(first, last + 1)


def read_prompts(path: Path) -> list[PromptLine]:
    """The prompts of a file: a line each, or a JSON object a line. Blank lines are skipped.

    Raises MdmError with the number of a line that is wrong.
    """
    text = read_list(path, "prompts", "a prompt a line", MAX_BYTES)
    lines = [
        _line(line.strip(), f"{path}, line {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not lines:
        raise MdmError(f"{path}: holds no prompt; write one a line.")
    return lines


def _line(text: str, where: str) -> PromptLine:
    if text.startswith("{"):
        return from_json(PromptLine, text, where)
    return PromptLine(clean_caption(text))


def every_picture(
    lines: list[PromptLine], seeds: tuple[int, ...], negative: str, settings: SampleSettings
) -> tuple[list[Prompt], list[SampleSettings]]:
    """Each prompt with each seed, or with the one of its line, and the settings of each picture.

    Raises MdmError without a seed, and for too many pictures.
    """
    prompts, each = list[Prompt](), list[SampleSettings]()
    for line in lines:
        own = seeds if line.seed is None else (line.seed,)
        if not own:
            raise MdmError(
                "seeds: say which, as in --seeds 1-16, so that an interrupted command can go on."
            )
        mine = negative if line.negative is None else line.negative
        if len(prompts) + len(own) > MOST_PICTURES:
            raise MdmError(
                f"prompts: with these seeds they are more than {MOST_PICTURES:,} pictures; split "
                "the file."
            )
        prompts += [Prompt(line.prompt, seed, mine) for seed in own]
        each += [line.over(settings)] * len(own)
    return prompts, each
