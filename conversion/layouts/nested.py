"""The layout with one package per pass through a level: outer levels down, the core, up again.

    x_1024 ─► down_1024 ─ features ─► down_256 ─ features ─► core_64 ─► prediction_64
                  │ skips                 │ skips               │ hidden
    prediction_1024 ◄─ up_1024 ◄─ hidden ─ up_256 ◄─────────────┘
                                             └─► prediction_256

Stopping at a side skips the packages of larger sides; the level where it stops gets zeros for the
features from above.

Of a clip, what the host gives and takes and what levels exchange are canvases; skips are frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdm_apple.config.model import DiffusionConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.config.types import Compute
from mdm_apple.diffusion.prediction import limit_output
from mdm_apple.torch.nested_unet import NestedUNet, fold, unfold
from mdm_apple.torch.ops import TorchOps
from mdm_apple.torch.unet import BlockKeysValues, UNet

from ..neural_engine import for_neural_engine
from ..neural_engine.norms import standardised
from ..source.model import ModelSource
from .names import (
    ATTENTION_MASK,
    features_name,
    hidden_name,
    image_name,
    keys_values_names,
    prediction_name,
    skip_name,
    temb_name,
)
from .parts import Part, cross_attention_counts, hides_padding, key_shapes, mask_shape

Text = tuple[BlockKeysValues, ...]


def nested_parts(source: ModelSource, compute: Compute) -> list[Part]:
    """The step packages in the order in which they run."""
    net = for_neural_engine(source.net) if compute == "ane" else source.net
    cutter = _Cutter(source, net.level_modules(), compute)
    outer = range(len(source.config.sides) - 1)
    return [
        *(cutter.down(i) for i in outer),
        cutter.core(),
        *(cutter.up(i) for i in reversed(outer)),
    ]


class _Cutter:
    """Makes the parts of one network; levels are numbered from the largest side down."""

    def __init__(self, source: ModelSource, levels: list[UNet], compute: Compute) -> None:
        self.source, self.levels = source, levels
        self.compute: Compute = compute
        self.config, self.sides = source.config, source.config.sides
        with_text = source.config.model.text_width is not None
        self.counts = cross_attention_counts(source.net)
        if not with_text:
            self.counts = [[0] * len(blocks) for blocks in self.counts]

    def down(self, i: int) -> Part:
        level, side = self.levels[i], self.sides[i]
        assert isinstance(level, NestedUNet)
        counts = self.counts[i][: len(level.down_blocks)]
        inputs = self._shared_inputs(i, 0, sum(counts))
        from_above = i > 0
        if from_above:
            inputs[features_name(side)] = _zeros(level.config.channels[0], side)
        masked = self._masked(sum(counts), inputs)
        skips = [skip_name(side, k) for k in range(len(skip_shapes(level.config, side)))]
        module = DownNetwork(level, from_above, masked, counts, self.compute == "ane")
        return self._part(
            f"down_{side}", side, module, inputs, (features_name(self.sides[i + 1]), *skips)
        )

    def core(self) -> Part:
        i, side = len(self.levels) - 1, self.sides[-1]
        counts = self.counts[i]
        inputs = self._shared_inputs(i, 0, sum(counts))
        if i > 0:
            inputs[features_name(side)] = _zeros(self.levels[i].config.channels[0], side)
        masked = self._masked(sum(counts), inputs)
        module = CoreNetwork(
            self.levels[i], i > 0, masked, counts, self.config.diffusion, len(self.sides)
        )
        outputs = (prediction_name(side), *([hidden_name(side)] if i > 0 else []))
        return self._part(f"core_{side}", side, module, inputs, outputs)

    def up(self, i: int) -> Part:
        level, side, inner = self.levels[i], self.sides[i], self.sides[i + 1]
        assert isinstance(level, NestedUNet)
        before = len(level.down_blocks)
        first, counts = sum(self.counts[i][:before]), self.counts[i][before:]
        inputs = self._shared_inputs(i, first, sum(counts))
        del inputs[image_name(side)]
        inputs[hidden_name(inner)] = _zeros(self.levels[i + 1].config.channels[0], inner)
        for k, shape in enumerate(skip_shapes(level.config, side)):
            inputs[skip_name(side, k)] = torch.zeros(shape)
        masked = self._masked(sum(counts), inputs)
        module = UpNetwork(level, i > 0, masked, counts, self.config.diffusion, len(self.sides))
        outputs = (prediction_name(side), *([hidden_name(side)] if i > 0 else []))
        return self._part(f"up_{side}", side, module, inputs, outputs)

    def _shared_inputs(self, i: int, first: int, count: int) -> dict[str, Tensor]:
        """Image, embedding, and keys and values of the layers from `first` on, in that order."""
        side = self.sides[i]
        inputs = {
            image_name(side): torch.zeros(1, 3, side, side),
            temb_name(side): torch.zeros(1, self.config.model.time_dim),
        }
        shapes = key_shapes(self.source, i, self.compute)
        for index in range(first, first + count):
            for name, shape in zip(keys_values_names(side, index), shapes[index], strict=True):
                inputs[name] = torch.zeros(shape)
        return inputs

    def _masked(self, attentions: int, inputs: dict[str, Tensor]) -> bool:
        """Add the mask to `inputs` if a part with so many attention layers needs it; says if so."""
        masked = bool(attentions) and hides_padding(self.source)
        if masked and self.config.text:
            shape = mask_shape(self.config.text.max_tokens, self.compute)
            inputs[ATTENTION_MASK] = torch.zeros(shape)
        return masked

    def _part(
        self,
        name: str,
        side: int,
        module: _LevelNetwork,
        inputs: dict[str, Tensor],
        outputs: Sequence[str],
    ) -> Part:
        module.order = tuple(inputs)
        return Part(name, "step", module, inputs, tuple(outputs), side, self.compute)


def skip_shapes(config: UNetConfig, side: int) -> list[tuple[int, ...]]:
    """Shapes of a level's skips from its way down, in order; the inner level joins at the last.

    Of a clip, each has its frames in the first axis.
    """
    frames, side = config.frame_grid**2, side // config.frame_grid
    shapes = [(frames, config.channels[0], side, side)]
    for i, width in enumerate(config.channels):
        shapes += [(frames, width, side, side)] * config.num_resnets[i]
        if i < len(config.channels) - 1:
            if config.resamples_frames:
                frames //= 2
            else:
                side //= 2
            shapes.append((frames, width, side, side))
    return shapes


class _LevelNetwork(nn.Module):
    """One pass through one level; its arguments are the tensors of `order`.

    counts: text attention layers per block of this pass.
    """

    order: tuple[str, ...]

    def __init__(self, level: UNet, side_names: bool, masked: bool, counts: list[int]) -> None:
        super().__init__()
        self.level, self.connected, self.masked, self.counts = level, side_names, masked, counts

    def _named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.order, tensors, strict=True))

    def _text(self, named: dict[str, Tensor]) -> Text:
        """Keys and values per block."""
        if not sum(self.counts):
            return ()
        flat: Iterator[Tensor] = iter(
            t for n, t in named.items() if n.startswith(("keys_", "values_"))
        )
        return tuple(tuple((next(flat), next(flat)) for _ in range(n)) for n in self.counts)


def _one(named: dict[str, Tensor], kind: str) -> Tensor:
    """The one tensor whose name begins with `kind`."""
    (found,) = (t for n, t in named.items() if n.startswith(f"{kind}_"))
    return found


class DownNetwork(_LevelNetwork):
    """From the noisy image to the features for the inner level, plus all that the way up needs."""

    def __init__(
        self, level: NestedUNet, from_above: bool, masked: bool, counts: list[int], engine: bool
    ) -> None:
        super().__init__(level, from_above, masked, counts)
        self.engine = engine

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        named, level = self._named(tensors), self.level
        assert isinstance(level, NestedUNet)
        grid, temb = level.config.frame_grid, _one(named, "temb")
        x = unfold(_one(named, "x"), grid)
        if level.config.normalize_input:
            x = standardised(x) if self.engine else level.normalized(x)
        h = level.conv_in(x)
        if self.connected:
            h = h + unfold(_one(named, "features"), grid)
        h, skips = level.run_down(h, temb, self._text(named), named.get(ATTENTION_MASK))
        return (level.features_inside(h), *skips)


class _Predicting(_LevelNetwork):
    """A part that ends in a prediction."""

    def __init__(
        self,
        level: UNet,
        connected: bool,
        masked: bool,
        counts: list[int],
        diffusion: DiffusionConfig,
        levels: int,
    ) -> None:
        super().__init__(level, connected, masked, counts)
        self.diffusion, self.levels = diffusion, levels

    def _outputs(self, prediction: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        ops: Any = TorchOps()
        prediction = limit_output(prediction, self.diffusion, self.levels, ops)
        return (prediction, hidden) if self.connected else (prediction,)


class CoreNetwork(_Predicting):
    """The innermost level."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        named = self._named(tensors)
        features = _one(named, "features") if self.connected else None
        (prediction,), hidden = self.level.denoise_level(
            [_one(named, "x")],
            features,
            [_one(named, "temb")],
            (self._text(named),),
            named.get(ATTENTION_MASK),
        )
        return self._outputs(prediction, hidden)


class UpNetwork(_Predicting):
    """From the hidden state of the inner level to this level's prediction."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        named, level = self._named(tensors), self.level
        assert isinstance(level, NestedUNet)
        skips = [t for n, t in named.items() if n.startswith("skip_")]
        h = skips[-1] + level.frames_from_inside(_one(named, "hidden"))
        text, mask = self._text(named), named.get(ATTENTION_MASK)
        h = level.run_up(h, skips, _one(named, "temb"), text, mask)
        grid = level.config.frame_grid
        return self._outputs(fold(level.output(h), grid), fold(h, grid))


def _zeros(channels: int, side: int) -> Tensor:
    return torch.zeros(1, channels, side, side)
