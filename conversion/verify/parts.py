"""Compares packages one by one: with the part each was made from, or with its other format.

Whole predictions hide where an error arises; here each package gets its own row. Its worst output
counts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mdm_apple.config.types import ExecutorPrecision

from ..bundle.folder import Bundle
from ..errors import BundleError
from ..layouts.choose import parts_of
from ..layouts.names import ATTENTION_MASK, TEXT_MASK, TEXT_SEEN, TOKEN_IDS
from ..layouts.parts import MASKED, Part
from ..psnr import closeness
from ..run.packages import Load, Values
from ..source.model import ModelSource
from ..source.trajectory import PROMPTS, text_inputs

SEED = 11
FLOORS: dict[ExecutorPrecision, float] = {"fp16": 58.0, "fp32": 100.0}  # dB against torch
# The text encoder does not scale its logits. Trained ones reach 68 dB in fp16, and a small one with
# random weights 57.6.
TEXT_FLOORS: dict[ExecutorPrecision, float] = {"fp16": 57.0, "fp32": 80.0}


@dataclass(frozen=True)
class PartRow:
    """The worst output of one package, with its PSNR and floor in dB."""

    package: str
    output: str
    psnr: float
    floor: float

    @property
    def passed(self) -> bool:
        return self.psnr >= self.floor


def rows_against_torch(
    bundle: Bundle, source: ModelSource, load: Load, precision: ExecutorPrecision
) -> tuple[PartRow, ...]:
    """Every package of an fp16 bundle against its part in torch.

    The text encoder gets the prompts of every record, because its logits grow on pieces that no
    caption puts side by side; the others get random inputs. In fp32 the weights of the part are
    rounded to fp16, as they are stored: that shows the arithmetic alone.

    Raises BundleError if the bundle is not one of this model.
    """
    rows: list[PartRow] = []
    for part in same_parts(bundle, source):
        info = bundle.package(part.name)
        run = load(bundle.file(info.path), bundle.function(info), info.compute)
        floor = (TEXT_FLOORS if part.phase == "text" else FLOORS)[precision]
        found: list[PartRow] = []
        for inputs in prompt_inputs(source) if part.phase == "text" else [random_inputs(part)]:
            wanted = torch_outputs(part, inputs, rounded=precision == "fp32")
            got = run({name: value.numpy() for name, value in inputs.items()})
            found.append(worst_output(part.name, wanted, got, floor))
        rows.append(min(found, key=lambda row: row.psnr))
    return tuple(rows)


def same_parts(bundle: Bundle, source: ModelSource) -> list[Part]:
    """The parts that a bundle was made from, in the order of its packages."""
    parts = parts_of(source, bundle.manifest.layout, bundle.compute)
    names = [package.name for package in bundle.manifest.packages]
    if names != [part.name for part in parts]:
        raise BundleError(
            f"{bundle.path}: its packages are not the parts of this model; give the folder that it "
            "was made from, and a bundle that was not split."
        )
    return parts


def prompt_inputs(source: ModelSource) -> list[dict[str, Tensor]]:
    """What the text encoder takes for each prompt of a record."""
    text = text_inputs(source, PROMPTS)
    if text is None or text.ids is None:
        return []
    ids, mask = torch.from_numpy(text.ids), torch.from_numpy(text.mask)
    return [{TOKEN_IDS: ids[p : p + 1], TEXT_MASK: mask[p : p + 1]} for p in range(len(PROMPTS))]


def random_inputs(part: Part) -> dict[str, Tensor]:
    """Normal numbers, and a mask that hides the last half."""
    draw = torch.Generator().manual_seed(SEED)
    inputs: dict[str, Tensor] = {}
    for name, example in part.inputs.items():
        if name in (TEXT_MASK, TEXT_SEEN, ATTENTION_MASK):
            shown = torch.arange(example.numel()) <= example.numel() // 2
            values = shown.float() if name != ATTENTION_MASK else (~shown).float() * MASKED
            inputs[name] = values.reshape(example.shape)
        else:
            inputs[name] = torch.randn(example.shape, generator=draw)
    return inputs


def torch_outputs(part: Part, inputs: Mapping[str, Tensor], rounded: bool) -> Values:
    """A part's outputs by name, computed in fp32. rounded: with weights as fp16 stores them."""
    module = copy.deepcopy(part.module).half().float() if rounded else part.module
    with torch.inference_mode():
        out = module(*inputs.values())
    tensors: Sequence[Tensor] = out if isinstance(out, tuple) else (out,)
    return {name: t.float().numpy() for name, t in zip(part.outputs, tensors, strict=True)}


def worst_output(package: str, wanted: Values, got: Values, floor: float) -> PartRow:
    """The output with the lowest PSNR; not finite counts as the lowest."""
    psnrs = {
        name: closeness(np.asarray(value, np.float32), np.asarray(got[name], np.float32)).psnr
        for name, value in wanted.items()
    }
    name = min(psnrs, key=lambda n: psnrs[n])
    return PartRow(package, name, psnrs[name], floor)
