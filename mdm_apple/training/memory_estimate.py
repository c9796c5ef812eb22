"""What a training run will hold in memory, computed from its configuration alone.

Weights, gradients, moments and averages are counts times four bytes. Activations are the tensors
that a backward pass needs, counted layer by layer, plus the gradients that exist at the same time:
those of all skips, and of everything in the largest layer. A framework's own memory (caches,
workspaces, the graph) is not counted, so the largest batch assumes only a share of the memory. On
a CPU, MLX writes out every 3x3 window of a convolution's input as a row: nine times the widest
input. This is not counted, because a GPU does not do it.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.network import ATTENTION_HEADS, TEMPORAL_HEAD_WIDTH, UNetConfig
from mdm_apple.config.shapes import encoder_shapes, idle_parameters, parameter_count, state_shapes
from mdm_apple.errors import ConfigError
from mdm_apple.training.parts import most_rows
from mdm_apple.training.settings import TrainConfig

FP32 = 4
BEYOND = 8  # times the memory of the machine
USABLE_SHARE = 0.75  # of the machine's memory: about what Apple silicon recommends for its GPU


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. activations_per_picture: kept until the backward pass."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations_per_picture: int

    def total(self, pictures: int) -> int:
        """Total with this many pictures in the network at once."""
        fixed = self.weights + self.gradients + self.optimizer + self.ema
        return fixed + pictures * self.activations_per_picture

    def largest_batch(self, available: int) -> int:
        """Number of pictures that fit into this many bytes at once; 0 if not even one does."""
        return max(0, (available - self.total(0)) // self.activations_per_picture)


def estimate(config: ModelConfig, train: TrainConfig) -> MemoryEstimate:
    """Memory of a training run: any backend, one process."""
    encoder = config.text.encoder if config.text and config.text.trainable else None
    of_encoder = sum(map(math.prod, encoder_shapes(encoder).values())) if encoder else 0
    count = parameter_count(config.model) + of_encoder
    learning = _learning(config.model) + of_encoder
    number = 2 if train.precision == "bf16" else FP32
    reduced = count * 2 if train.precision == "bf16" else 0  # a 16-bit copy of the weights
    return MemoryEstimate(
        weights=count * FP32 + reduced,
        gradients=learning * FP32,
        optimizer=2 * learning * FP32,
        ema=count * FP32 if train.ema_decay is not None else 0,
        activations_per_picture=number * _activations(config, train.checkpointing),
    )


def machine_memory() -> int | None:
    """Bytes of this machine's memory, if the system reports them."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def usable_memory(gigabytes: float | None = None) -> int | None:
    """Bytes that a run may use of this machine's memory, or of the given gigabytes."""
    machine = machine_memory() if gigabytes is None else int(gigabytes * 1e9)
    return None if machine is None else int(machine * USABLE_SHARE)


def needs_recomputing(config: ModelConfig, train: TrainConfig, available: int | None) -> bool:
    """Whether a batch with all its activations would not fit into this many bytes."""
    keeping = estimate(config, dataclasses.replace(train, checkpointing=False))
    at_once = most_rows(train)
    return available is not None and keeping.total(at_once) > available


def check_memory(config: ModelConfig, train: TrainConfig, world: int) -> None:
    """Refuse a batch that no machine like this one can hold.

    Estimates are rough, and a GPU may have more memory than its machine. So only a batch that needs
    BEYOND times the memory of the machine is refused. Raises ConfigError.
    """
    machine, found = machine_memory(), estimate(config, train)
    at_once = most_rows(train, world)
    if machine is not None and found.total(at_once) > BEYOND * machine:
        fits = found.largest_batch(int(machine * USABLE_SHARE))
        raise ConfigError(
            f"batch_size: {at_once} pictures at once need about {found.total(at_once) / 1e9:,.0f} "
            f"GB, and this machine has {machine / 1e9:,.0f} GB, which hold {fits}; lower it, or "
            "raise accumulate."
        )


def _learning(config: UNetConfig) -> int:
    """Parameters with a gradient."""
    idle, frozen = idle_parameters(config), _frozen_from(config)
    return sum(
        math.prod(shape)
        for name, shape in state_shapes(config).items()
        if name not in idle and not name.startswith(frozen)
    )


def _frozen_from(config: UNetConfig) -> str | tuple[str, ...]:
    """Prefix of the frozen levels; an empty tuple if all learn."""
    for depth, level in enumerate(config.levels, start=1):
        if level.freeze_inner:
            return "inner_unet." * depth
    return ()


def _activations(config: ModelConfig, checkpointing: bool) -> int:
    """Numbers kept for the backward pass of one picture, over all levels."""
    fractions = config.diffusion.mixed_fractions or (1.0,) * len(config.sides)
    tokens = config.text.max_tokens if config.text else 0
    kept, inside_largest = 0.0, 0.0
    for level, side, share in zip(config.model.levels, config.sides, fractions, strict=True):
        blocks = _layers(level, side, tokens)
        edges = 8 * 3 * side * side + 4 * level.channels[0] * side * side  # loss, conv_in, output
        edges += 2 * sum(_skips(level, side))  # gradients of skips, enlarged images
        kept += share * (edges + sum(block[0 if checkpointing else 1] for block in blocks))
        inside_largest = max(inside_largest, share * max(inside for _, inside in blocks))
    # its gradients, and the layer itself if it was not kept
    return math.ceil(kept + (2 if checkpointing else 1) * inside_largest)


def _skips(config: UNetConfig, side: int) -> list[int]:
    """Numbers in each tensor that the way down leaves for the way up."""
    found = [config.channels[0] * side**2]
    for i, width in enumerate(config.channels):
        found += [width * _pixels(config, side, i)] * config.num_resnets[i]
        if i < len(config.channels) - 1:
            found.append(width * _pixels(config, side, i + 1))
    return found


def _pixels(config: UNetConfig, side: int, stage: int) -> int:
    """Of all frames at a stage, which has half the side of the one before, or half its frames."""
    return side**2 >> min(stage if config.resamples_frames else 2 * stage, 60)


def _layers(config: UNetConfig, side: int, tokens: int) -> list[tuple[int, int]]:
    """Per resnet with its attention: numbers in its input, and kept for its backward pass."""
    out: list[tuple[int, int]] = []
    channels, last = config.channels, len(config.channels) - 1
    skips, running = [channels[0]], channels[0]

    over_time = config.num_temporal_attention_layers or (0,) * len(channels)

    def add(i: int, width_in: int, attention: int, temporal: int = 0) -> None:
        pixels, width = _pixels(config, side, i), channels[i]
        # norm, silu and convolution of either half; shift and scale; the sum
        inside = pixels * (4 * width_in + 7 * width)
        inside += attention * _attention(config, pixels, width, tokens)
        inside += temporal * _temporal_attention(config, pixels, width, i)
        out.append((pixels * width_in, inside))

    for i, width in enumerate(channels):
        for _ in range(config.num_resnets[i]):
            add(i, running, config.num_attention_layers[i], over_time[i])
            running = width
            skips.append(width)
        if i < last:
            skips.append(width)
    if config.mid_blocks and config.inner is None:
        add(last, running, 1)
        add(last, running, 0)
    for i in range(last, -1, -1):
        for _ in range(config.num_resnets[i] + 1):
            add(i, running + skips.pop(), config.num_attention_layers[i], over_time[i])
            running = channels[i]
    return out


def _attention(config: UNetConfig, pixels: int, width: int, tokens: int) -> int:
    """The backward pass of fused attention needs its scores again: softmax over pixels and text."""
    scores = 2 * ATTENTION_HEADS * pixels * (pixels + (tokens if config.text_width else 0))
    ffn = 14 * width * pixels if config.attention_ffn else 0  # norm, widened twice, result
    return 10 * width * pixels + scores + ffn


def _temporal_attention(config: UNetConfig, pixels: int, width: int, stage: int) -> int:
    """Between the frames of a stage, at half their side."""
    frames = config.frame_grid**2 >> (stage if config.resamples_frames else 0)
    tokens = pixels // 4
    scores = 2 * (width // TEMPORAL_HEAD_WIDTH) * tokens * frames
    return 3 * width * pixels + 18 * width * tokens + scores  # two convolutions; attention, MLP


def describe(config: ModelConfig, train: TrainConfig, available: int | None) -> dict[str, object]:
    """The estimate as plain values, with the largest batch for this many bytes."""
    found, at_once = estimate(config, train), most_rows(train)
    values: dict[str, object] = dataclasses.asdict(found)
    values["activations"] = at_once * found.activations_per_picture
    values["total"] = found.total(at_once)
    values["available"] = available
    values["largest_batch"] = None if available is None else found.largest_batch(available)
    return values


def summary(config: ModelConfig, train: TrainConfig, available: int | None) -> str:
    """The same as text for a person."""
    found, at_once = estimate(config, train), most_rows(train)
    again = ", recomputed" if train.checkpointing else ""
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimizer": found.optimizer,
        "averages": found.ema,
        f"activations of {at_once}{again}": at_once * found.activations_per_picture,
        "together": found.total(at_once),
    }
    lines = [f"{name:30} {size / 1e9:9.3f} GB" for name, size in parts.items()]
    if available is not None:
        what = "pictures" if config.frames == 1 else "clips"
        lines.append(
            f"{available / 1e9:.1f} GB hold {found.largest_batch(available)} {what} at once."
        )
    return "computed, not measured (on a CPU up to 1.7 times as much):\n" + "\n".join(lines)
