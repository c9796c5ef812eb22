"""The encoder of a T5 in PyTorch: token ids to text features.

Attribute names match Hugging Face's T5EncoderModel, so that its weights load strictly.
Source: Raffel et al. 2020 (arXiv:1910.10683), section 2.1; gated feed-forward from Shazeer 2020
(arXiv:2002.05202). Both kinds are in use: relu in T5, gated-gelu in T5 1.1 and flan-T5.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdm_apple.config.network import T5Config
from mdm_apple.text.encoder_folder import read_encoder_folder
from mdm_apple.text.t5_positions import relative_buckets
from mdm_apple.text.tokenizer import TextError, TextFeatures, TokenBatch
from mdm_apple.torch.dropout import Dropout

MASKED = -3e4  # added to logits: leaves no weight, and is finite in fp16 too


class RMSNorm(nn.Module):
    """Division by the root mean square, without mean or bias; statistics in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
        return x.to(self.weight.dtype) * self.weight


class SelfAttention(nn.Module):
    """Attention whose logits are not divided by the root of the head width: training absorbs it."""

    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.dropout = Dropout(config.dropout)
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_bias_table:
            self.relative_attention_bias = nn.Embedding(config.relative_buckets, config.num_heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, L, D), bias (B, heads, L, L) added to the logits."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in self.qkv)
        bias = bias.to(q.dtype)
        if self.dropout.by_row:  # the fused operator draws its own masks
            scores = torch.softmax((q @ k.transpose(-2, -1) + bias).float(), dim=-1)
            out = self.dropout(scores).to(v.dtype) @ v
        else:
            dropout = self.dropout.share if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))

    @property
    def qkv(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.q, self.k, self.v


class DenseReluDense(nn.Module):
    """Feed-forward of either kind, under its name in the first T5."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gated = config.feed_forward == "gated-gelu"
        if self.gated:
            self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
            self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        else:
            self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            hidden = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)
        else:
            hidden = F.relu(self.wi(x))
        return self.wo(self.dropout(hidden))


class AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, has_bias_table)
        self.layer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.dropout(self.SelfAttention(self.layer_norm(x), bias))


class FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = DenseReluDense(config)
        self.layer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.DenseReluDense(self.layer_norm(x)))


class Block(nn.Module):
    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        layers = (AttentionLayer(config, has_bias_table), FeedForwardLayer(config))
        self.layer = nn.ModuleList(layers)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attention, feed_forward = self.layer
        return feed_forward(attention(x, bias))


class Stack(nn.Module):
    """The blocks; the first block's relative position table serves all."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.block = nn.ModuleList(Block(config, i == 0) for i in range(config.num_layers))
        self.final_layer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, D), mask (B, L)."""
        bias = self.attention_bias(mask)
        x = self.dropout(x.float())  # the residual sum stays fp32: it exceeds fp16 in large models
        for block in self.block:
            x = block(x, bias)
        return self.dropout(self.final_layer_norm(x))

    def attention_bias(self, mask: Tensor) -> Tensor:
        """Relative position bias, and MASKED at padded keys: (B, heads, L, L)."""
        config = self.config
        first = cast(AttentionLayer, cast(Block, self.block[0]).layer[0])
        table = first.SelfAttention.relative_attention_bias
        buckets = relative_buckets(
            mask.shape[1], config.relative_buckets, config.relative_max_distance
        )
        bias = table(torch.from_numpy(buckets).to(mask.device)).permute(2, 0, 1)
        padded = mask[:, None, None, :] == 0
        return torch.where(padded, MASKED, bias[None])


class T5Encoder(nn.Module):
    """Encoder half of a T5, trainable, initialised as in the paper's code."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config)
        self.apply(_initialize)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Features (B, L, D) of ids (B, L) int64; zero where mask (B, L) is."""
        features = self.encoder(self.shared(ids), mask)
        return features * mask[:, :, None].to(features.dtype)


def _initialize(module: nn.Module) -> None:
    """Normal weights that keep activations near 1 without the usual scaling of logits.

    Only queries carry the 1/sqrt(head width). Source: the initialisation of mesh-tensorflow's T5.
    """
    if isinstance(module, SelfAttention):
        width, inner = module.q.in_features, module.q.out_features
        nn.init.normal_(module.q.weight, std=(width * inner // module.heads) ** -0.5)
        nn.init.normal_(module.k.weight, std=width**-0.5)
        nn.init.normal_(module.v.weight, std=width**-0.5)
        nn.init.normal_(module.o.weight, std=inner**-0.5)
        if hasattr(module, "relative_attention_bias"):
            nn.init.normal_(module.relative_attention_bias.weight, std=width**-0.5)
    elif isinstance(module, DenseReluDense):
        for layer in module.children():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)


def text_features(encoder: T5Encoder, tokens: TokenBatch) -> TextFeatures[Tensor]:
    """Encode a batch of tokens on the encoder's device; the mask stays float32."""
    largest = int(tokens.ids.max())
    if largest >= encoder.config.vocab_size:
        raise TextError(
            f"tokens: id {largest} is beyond the encoder's {encoder.config.vocab_size} pieces; "
            "use the tokenizer that came with it."
        )
    device = encoder.shared.weight.device
    ids = torch.from_numpy(tokens.ids).to(device, torch.int64)
    mask = torch.from_numpy(tokens.mask).to(device)
    return TextFeatures(encoder(ids, mask), mask)


def load_hf_encoder(
    folder: Path, dtype: torch.dtype | None = None
) -> tuple[T5Config, dict[str, Tensor]]:
    """Configuration and weights of a T5 in a local Hugging Face folder, cast to `dtype` if given.

    Raises HubError unless the folder holds exactly one encoder; a decoder is ignored.
    """
    from safetensors import safe_open

    files = read_encoder_folder(folder)
    names_of_file: dict[Path, list[str]] = defaultdict(list)
    for name, path in files.weights.items():
        names_of_file[path].append(name)
    state: dict[str, Tensor] = {}
    for path, names in names_of_file.items():
        with safe_open(path, framework="pt") as file:
            for name in names:
                tensor = file.get_tensor(files.stored_names[name])
                state[name] = tensor if dtype is None else tensor.to(dtype)
    return files.config, {name: state[name] for name in files.weights}


def encoder_from_state(config: T5Config, state: dict[str, Tensor]) -> T5Encoder:
    """A frozen encoder in evaluation mode that uses the tensors of a state dict without a copy."""
    with torch.device("meta"):
        encoder = T5Encoder(config)
    encoder.load_state_dict(state, strict=True, assign=True)
    return encoder.requires_grad_(False).eval()
