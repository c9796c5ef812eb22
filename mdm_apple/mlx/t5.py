"""The encoder of a T5 in MLX: token ids to text features.

Attribute names match torch/t5.py and Hugging Face's T5EncoderModel, so that its weights load
strictly. Source: Raffel et al. 2020 (arXiv:1910.10683), section 2.1; gated feed-forward from
Shazeer 2020 (arXiv:2002.05202). Both kinds are in use: relu in T5, gated-gelu in T5 1.1 and
flan-T5.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from mdm_apple.config.network import T5Config
from mdm_apple.mlx.dropout import Dropout
from mdm_apple.mlx.weights import nested
from mdm_apple.text.encoder_folder import HubError, read_encoder_folder
from mdm_apple.text.t5_positions import relative_buckets

MASKED = -3e4  # added to logits: leaves no weight, and is finite in fp16 too


class RMSNorm(nn.Module):
    """Division by the root mean square, without mean or bias; statistics in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones(width)
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        x = mx.fast.rms_norm(x.astype(mx.float32), None, self.eps)
        return x.astype(self.weight.dtype) * self.weight


class SelfAttention(nn.Module):
    """Attention whose logits are not divided by the root of the head width: training absorbs it."""

    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        width, inner = config.d_model, config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.dropout = Dropout(config.dropout)
        # only the queries carry the 1/sqrt(head width); see `normal_linear`
        self.q = normal_linear(width, inner, (width * config.d_kv) ** -0.5)
        self.k = normal_linear(width, inner, width**-0.5)
        self.v = normal_linear(width, inner, width**-0.5)
        self.o = normal_linear(inner, width, inner**-0.5)
        if has_bias_table:
            self.relative_attention_bias = nn.Embedding(config.relative_buckets, config.num_heads)
            self.relative_attention_bias.weight = width**-0.5 * mx.random.normal(
                (config.relative_buckets, config.num_heads)
            )

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        """x (B, L, D), bias (B, heads, L, L) added to the logits."""
        q, k, v = (
            mx.unflatten(layer(x), -1, (self.heads, -1)).transpose(0, 2, 1, 3)
            for layer in (self.q, self.k, self.v)
        )
        return self.o(self._attend(q, k, v, bias.astype(q.dtype)).transpose(0, 2, 1, 3).flatten(2))

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, bias: mx.array) -> mx.array:
        if not self.training:
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=bias)
        scores = mx.softmax(q @ k.transpose(0, 1, 3, 2) + bias, axis=-1, precise=True)
        return self.dropout(scores) @ v  # the fused operator has no dropout


class DenseReluDense(nn.Module):
    """Feed-forward of either kind, under its name in the first T5."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gated = config.feed_forward == "gated-gelu"
        sizes = (config.d_model, config.d_ff, config.d_model**-0.5)
        if self.gated:
            self.wi_0 = normal_linear(*sizes)
            self.wi_1 = normal_linear(*sizes)
        else:
            self.wi = normal_linear(*sizes)
        self.wo = normal_linear(config.d_ff, config.d_model, config.d_ff**-0.5)
        self.dropout = Dropout(config.dropout)

    def __call__(self, x: mx.array) -> mx.array:
        if self.gated:
            hidden = nn.gelu_approx(self.wi_0(x)) * self.wi_1(x)
        else:
            hidden = nn.relu(self.wi(x))
        return self.wo(self.dropout(hidden))


class AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, has_bias_table)
        self.layer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        return x + self.dropout(self.SelfAttention(self.layer_norm(x), bias))


class FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = DenseReluDense(config)
        self.layer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.dropout(self.DenseReluDense(self.layer_norm(x)))


class Block(nn.Module):
    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        self.layer: Any = [AttentionLayer(config, has_bias_table), FeedForwardLayer(config)]

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        attention, feed_forward = self.layer
        return feed_forward(attention(x, bias))


class Stack(nn.Module):
    """The blocks; the first block's relative position table serves all."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.block = [Block(config, i == 0) for i in range(config.num_layers)]
        self.final_layer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        """x (B, L, D), mask (B, L)."""
        bias = self.attention_bias(mask)
        # the residual sum stays fp32: it exceeds fp16 in large models
        x = self.dropout(x.astype(mx.float32))
        for block in self.block:
            x = block(x, bias)
        return self.dropout(self.final_layer_norm(x))

    def attention_bias(self, mask: mx.array) -> mx.array:
        """Relative position bias, and MASKED at padded keys: (B, heads, L, L)."""
        config = self.config
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        buckets = relative_buckets(
            mask.shape[1], config.relative_buckets, config.relative_max_distance
        )
        bias = table(mx.array(buckets)).transpose(2, 0, 1)
        return mx.where(mask[:, None, None, :] == 0, MASKED, bias[None])


class T5Encoder(nn.Module):
    """Encoder half of a T5, trainable, initialised as in the paper's code."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.shared.weight = mx.random.normal((config.vocab_size, config.d_model))
        self.encoder = Stack(config)

    def __call__(self, ids: mx.array, mask: mx.array) -> mx.array:
        """Features (B, L, D) of integer ids (B, L); zero where mask (B, L) is."""
        features = self.encoder(self.shared(ids), mask)
        return features * mask[:, :, None].astype(features.dtype)


def normal_linear(width_in: int, width: int, std: float) -> nn.Linear:
    """A Linear whose normal weights keep activations near 1 without the usual scaling of logits.

    Source: the initialisation of mesh-tensorflow's T5.
    """
    layer = nn.Linear(width_in, width, bias=False)
    layer.weight = std * mx.random.normal((width, width_in))
    return layer


def load_hf_encoder(
    folder: Path, dtype: mx.Dtype | None = None
) -> tuple[T5Config, dict[str, mx.array]]:
    """Configuration and weights of a T5 in a local Hugging Face folder, cast to `dtype` if given.

    Raises HubError unless the folder holds exactly one encoder; a decoder is ignored.
    """
    files = read_encoder_folder(folder)
    names_of_file: dict[Path, list[str]] = defaultdict(list)
    for name, path in files.weights.items():
        names_of_file[path].append(name)
    state: dict[str, mx.array] = {}
    for path, names in names_of_file.items():
        try:
            stored = mx.load(str(path), format="safetensors")
        except RuntimeError as error:
            raise HubError(f"{path}: cannot be read as safetensors ({error}).") from None
        assert isinstance(stored, dict), "a safetensors file has arrays by name"
        for name in names:
            tensor = stored[files.stored_names[name]]
            state[name] = tensor if dtype is None else tensor.astype(dtype)
    return files.config, {name: state[name] for name in files.weights}


def encoder_from_state(config: T5Config, state: Mapping[str, mx.array]) -> T5Encoder:
    """A frozen encoder in evaluation mode that uses the arrays of a checked state."""
    encoder = T5Encoder(config)
    encoder.update(nested(state))
    encoder.freeze()
    encoder.eval()
    mx.eval(encoder.parameters())
    return encoder
