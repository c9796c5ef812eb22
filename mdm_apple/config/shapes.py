"""Names and shapes of a network's weights, computed without a framework.

They match Apple's published checkpoints, in the order of their state dicts, so that a checkpoint
can be checked, imported and counted without torch or MLX.
"""

from __future__ import annotations

import math

from mdm_apple.config.network import TEMPORAL_HEAD_WIDTH, T5Config, UNetConfig

IMAGE_CHANNELS = 3
# modules whose names begin so stay fp32 in every mode: 999 is 1000 in bf16
_FP32_MODULES = ("temb_", "cond_layers", "cond_emb", "lm_proj", "lm_head", "norm")
STUDENT_INPUTS = ("temb_target_", "temb_guidance_")  # prefixes of a student's own names

Shapes = dict[str, tuple[int, ...]]


def state_shapes(config: UNetConfig) -> Shapes:
    """Shape of every entry of the state dict, torch layout (out, in, height, width), by name."""
    dim, text, channels = config.time_dim, config.text_width, config.channels
    shapes: Shapes = {}
    _embedding(shapes, "temb_layer1", "temb_layer2", dim)
    if config.inner is None and text:
        shapes["cond_emb.weight"] = (dim, text)
    for name in config.micro_conditions:
        _embedding(shapes, f"cond_layers.{name}.0", f"cond_layers.{name}.1", dim)
    if config.student and config.student.target_time:
        _embedding(shapes, "temb_target_layer1", "temb_target_layer2", dim)
    if config.student and config.student.guidance:
        _embedding(shapes, "temb_guidance_layer1", "temb_guidance_layer2", dim)
    _conv(shapes, "conv_in", IMAGE_CHANNELS, channels[0])
    _norm(shapes, "norm_out", channels[0])
    _conv(shapes, "conv_out", channels[0], IMAGE_CHANNELS)
    _blocks(shapes, config)
    if config.inner is None and config.text_dim and config.text_proj_dim:
        _linear(shapes, "lm_proj", config.text_dim, config.text_proj_dim)
    for i in range(config.num_text_head_layers if config.inner is None and text else 0):
        _attention_1d(shapes, f"lm_head.{i}.attn", text or 0)
        _mlp(shapes, f"lm_head.{i}.mlp", text or 0)
    if config.inner is not None:
        inner = state_shapes(config.inner)
        shapes.update({f"inner_unet.{name}": shape for name, shape in inner.items()})
        _conv(shapes, "in_adapter", channels[-1], config.inner.channels[0])
        _conv(shapes, "out_adapter", config.inner.channels[0], channels[-1])
    if config.interp_conditioning:
        _embedding(shapes, "interp_layer1", "interp_layer2", dim)
    return shapes


def parameter_count(config: UNetConfig) -> int:
    """Number of weights of the network, rotary frequencies included."""
    return sum(math.prod(shape) for shape in state_shapes(config).values())


def idle_parameters(config: UNetConfig) -> frozenset[str]:
    """Names in published checkpoints that training never reads.

    No gradient reaches them, so an optimiser must leave them unchanged: `interp_*`, the middle
    blocks of an outer level, and a student's extra embeddings, which only distillation uses.
    """
    unused = ["interp_layer", *STUDENT_INPUTS]
    if config.inner is not None:
        unused.append("mid_blocks.")
    names = {name for name in state_shapes(config) if name.startswith(tuple(unused))}
    if config.inner is not None:
        names |= {f"inner_unet.{name}" for name in idle_parameters(config.inner)}
    return frozenset(names)


def stays_fp32(module: str) -> bool:
    """Whether a module of this dotted name would lose quality in 16 bits: embeddings and norms."""
    return any(part.startswith(_FP32_MODULES) for part in module.split("."))


def is_students_own(name: str) -> bool:
    """Whether a parameter belongs to an input that only a student has."""
    return name.rpartition("inner_unet.")[2].startswith(STUDENT_INPUTS)


def _blocks(shapes: Shapes, config: UNetConfig) -> None:
    channels, last = config.channels, len(config.channels) - 1
    skips, running = [channels[0]], channels[0]
    for i, width in enumerate(channels):
        widths_in: list[int] = []
        for _ in range(config.num_resnets[i]):
            widths_in.append(running)
            skips.append(width)
            running = width
        if i < last:
            skips.append(width)
        _block(shapes, f"down_blocks.{i}", config, i, widths_in, resample=i < last)
    if config.mid_blocks:
        _resnet(shapes, "mid_blocks.0.resnets.0", running, running, config.time_dim)
        _attention_2d(shapes, "mid_blocks.0.attn.0", running, config)
        _resnet(shapes, "mid_blocks.1.resnets.0", running, running, config.time_dim)
    for k, i in enumerate(range(last, -1, -1)):
        widths_in = []
        for _ in range(config.num_resnets[i] + 1):
            widths_in.append(running + skips.pop())
            running = channels[i]
        _block(shapes, f"up_blocks.{k}", config, i, widths_in, resample=i > 0)


def _block(
    shapes: Shapes, at: str, config: UNetConfig, i: int, widths_in: list[int], resample: bool
) -> None:
    width = config.channels[i]
    for j, width_in in enumerate(widths_in):
        _resnet(shapes, f"{at}.resnets.{j}", width_in, width, config.time_dim)
    for k in range(len(widths_in) * config.num_attention_layers[i]):
        _attention_2d(shapes, f"{at}.attn.{k}", width, config)
    temporal = config.num_temporal_attention_layers
    for k in range(len(widths_in) * temporal[i] if temporal else 0):
        _temporal_attention(shapes, f"{at}.t_attn.{k}", width, config.temporal_positional_encoding)
    if resample:
        kernel = (3,) if config.resamples_frames else (3, 3)
        shapes[f"{at}.resample.weight"] = (width, width, *kernel)
        shapes[f"{at}.resample.bias"] = (width,)


def _resnet(shapes: Shapes, at: str, width_in: int, width: int, dim: int) -> None:
    _norm(shapes, f"{at}.norm1", width_in)
    _conv(shapes, f"{at}.conv1", width_in, width)
    _linear(shapes, f"{at}.time_layer", dim, 2 * width)
    _norm(shapes, f"{at}.norm2", width)
    _conv(shapes, f"{at}.conv2", width, width)
    if width_in != width:
        _conv(shapes, f"{at}.conv3", width_in, width, kernel=1)


def _attention_2d(shapes: Shapes, at: str, width: int, config: UNetConfig) -> None:
    _norm(shapes, f"{at}.norm", width)
    _conv(shapes, f"{at}.qkv", width, 3 * width, kernel=1)
    if config.text_width:
        _norm(shapes, f"{at}.norm_cond", config.text_width)
        _linear(shapes, f"{at}.kv_cond", config.text_width, 2 * width)
    _conv(shapes, f"{at}.proj_out", width, width, kernel=1)
    if config.attention_ffn:
        _norm(shapes, f"{at}.ffn.0", width)
        _conv(shapes, f"{at}.ffn.1", width, 4 * width, kernel=1)
        _conv(shapes, f"{at}.ffn.3", 4 * width, width, kernel=1)


def _temporal_attention(shapes: Shapes, at: str, width: int, rotary: bool) -> None:
    _conv(shapes, f"{at}.down_conv", width, width)
    _conv(shapes, f"{at}.up_conv", width, width)
    _attention_1d(shapes, f"{at}.attn", width)
    if rotary:
        shapes[f"{at}.attn.pos_emb.freqs"] = (TEMPORAL_HEAD_WIDTH // 2,)
    _mlp(shapes, f"{at}.mlp", width)


def _attention_1d(shapes: Shapes, at: str, width: int) -> None:
    _norm(shapes, f"{at}.norm", width)
    _linear(shapes, f"{at}.qkv", width, 3 * width)
    _linear(shapes, f"{at}.proj_out", width, width)


def _mlp(shapes: Shapes, at: str, width: int) -> None:
    _norm(shapes, f"{at}.main.0", width)
    _linear(shapes, f"{at}.main.1", width, 4 * width)
    _linear(shapes, f"{at}.main.3", 4 * width, width)


def _embedding(shapes: Shapes, first: str, second: str, dim: int) -> None:
    _linear(shapes, first, dim // 4, dim)
    _linear(shapes, second, dim, dim)


def _norm(shapes: Shapes, at: str, width: int) -> None:
    shapes[f"{at}.weight"], shapes[f"{at}.bias"] = (width,), (width,)


def _linear(shapes: Shapes, at: str, width_in: int, width: int) -> None:
    shapes[f"{at}.weight"], shapes[f"{at}.bias"] = (width, width_in), (width,)


def _conv(shapes: Shapes, at: str, width_in: int, width: int, kernel: int = 3) -> None:
    shapes[f"{at}.weight"] = (width, width_in, kernel, kernel)
    shapes[f"{at}.bias"] = (width,)


SHARED = "shared.weight"


def encoder_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, torch layout (out, in), under Hugging Face's names."""
    width, inner = config.d_model, config.num_heads * config.d_kv
    gated = config.feed_forward == "gated-gelu"
    shapes: dict[str, tuple[int, ...]] = {SHARED: (config.vocab_size, width)}
    for i in range(config.num_layers):
        attention, feed_forward = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        for name in "qkv":
            shapes[f"{attention}.SelfAttention.{name}.weight"] = (inner, width)
        shapes[f"{attention}.SelfAttention.o.weight"] = (width, inner)
        if i == 0:
            shapes[f"{attention}.SelfAttention.relative_attention_bias.weight"] = (
                config.relative_buckets,
                config.num_heads,
            )
        shapes[f"{attention}.layer_norm.weight"] = (width,)
        for name in ("wi_0", "wi_1") if gated else ("wi",):
            shapes[f"{feed_forward}.DenseReluDense.{name}.weight"] = (config.d_ff, width)
        shapes[f"{feed_forward}.DenseReluDense.wo.weight"] = (width, config.d_ff)
        shapes[f"{feed_forward}.layer_norm.weight"] = (width,)
    shapes["encoder.final_layer_norm.weight"] = (width,)
    return shapes
