"""The rewritten network is the network: same weights by name, same outputs, other layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tolerances import REWRITE
from torch import Tensor, nn

from mdm_apple.config.model import ModelConfig, TextConfig
from mdm_apple.config.network import ATTENTION_HEADS, UNetConfig
from mdm_apple.conversion.layouts.conditioning import additive_mask
from mdm_apple.conversion.neural_engine import for_neural_engine
from mdm_apple.conversion.neural_engine.attention import (
    QUERIES_AT_ONCE,
    Attention,
    attend,
    engine_keys_values,
    engine_mask,
)
from mdm_apple.conversion.neural_engine.norms import GroupNorm, mean_per_group, standardised
from mdm_apple.conversion.psnr import closeness
from mdm_apple.conversion.source.model import random_source
from mdm_apple.torch import layers
from mdm_apple.torch.unet import Conditioning, UNet

LENGTHS = (64, 256, 576, 1024, 1600)


def network(masked: bool, seed: int = 0) -> UNet:
    core = UNetConfig(
        (32,),
        (1,),
        (1,),
        attention_ffn=True,
        temb_dim=32,
        text_dim=16,
        masked_cross_attention=masked,
    )
    return random_source(ModelConfig(core, side=8, text=TextConfig(max_tokens=7)), seed).net


def both(net: UNet, rewritten: UNet, side: int, batch: int) -> tuple[Tensor, Tensor]:
    """Predictions of the two for the same noisy images, embeddings and text."""
    generator = torch.Generator().manual_seed(side)
    x = torch.randn(batch, 3, side, side, generator=generator)
    features = torch.randn(batch, 7, 16, generator=generator)
    mask = (torch.arange(7)[None] < torch.tensor([[4], [7]])[:batch]).float()
    with torch.inference_mode():
        plain = net.condition(features, mask)
        keys_values = tuple(
            tuple(tuple(engine_keys_values(*layer) for layer in block) for block in level)
            for level in plain.keys_values
        )
        additive = None if plain.mask is None else engine_mask(additive_mask(mask))
        other = Conditioning(plain.pooled, additive, keys_values)
        temb = [torch.randn(batch, 32, generator=generator)]
        return net.denoise([x], temb, plain)[0], rewritten.denoise([x], temb, other)[0]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_rewritten_network_predicts_the_same(length: int, masked: bool, batch: int) -> None:
    net = network(masked)
    wanted, got = both(net, for_neural_engine(net), round(length**0.5), batch)
    assert closeness(wanted.numpy(), got.numpy()).psnr >= REWRITE


@pytest.mark.parametrize(
    "name",
    [
        "down_blocks.0.attn.0.qkv.weight",
        "down_blocks.0.attn.0.norm.weight",
        "down_blocks.0.resnets.0.time_layer.weight",
        "up_blocks.0.resnets.0.norm2.bias",
    ],
)
@pytest.mark.parametrize("length", LENGTHS)
def test_network_with_one_other_weight_does_not(length: int, name: str) -> None:
    net, other = network(True), network(True)
    with torch.no_grad():
        other.get_parameter(name).view(-1)[0] += 0.5
    wanted, got = both(net, for_neural_engine(other), round(length**0.5), 1)
    assert closeness(wanted.numpy(), got.numpy()).psnr < REWRITE


@pytest.mark.guards("weights move to another layer on the way")
def test_weights_keep_their_names_and_numbers_and_the_network_its_layers() -> None:
    net = network(True)
    before = {name: type(module) for name, module in net.named_modules()}
    rewritten = for_neural_engine(net)
    assert {name: type(module) for name, module in net.named_modules()} == before
    mine = {n: p for n, p in net.named_parameters() if ".norm_cond." not in n and ".kv_c" not in n}
    other = dict(rewritten.named_parameters())
    assert set(other) == set(mine)
    for name, parameter in mine.items():
        assert other[name].data_ptr() == parameter.data_ptr()  # not copied either
        assert other[name].numel() == parameter.numel()
    kinds = {type(module) for module in rewritten.modules()}
    assert not kinds & {layers.Attention, layers.ResNet, nn.GroupNorm}
    assert {Attention, GroupNorm} <= kinds


@pytest.mark.parametrize("queries", [1, 511, 512, 513, 576, 1600])
@pytest.mark.guards("chunked attention drops the tokens of a last chunk that is not full")
def test_no_query_is_lost_at_the_end(queries: int) -> None:
    """A chunked attention elsewhere drops what does not fill its last chunk."""
    generator = torch.Generator().manual_seed(queries)
    q = torch.randn(2, 32, 1, queries, generator=generator)
    k = torch.randn(2, 9, 1, 32, generator=generator)
    v = torch.randn(2, 32, 1, 9, generator=generator)
    got = attend(q, k, v, None, ATTENTION_HEADS)
    heads = (2, ATTENTION_HEADS, 4, -1)
    logits = q.reshape(heads).transpose(2, 3) @ k[:, :, 0].transpose(1, 2).reshape(heads)
    wanted = torch.softmax(logits, -1) @ v.reshape(heads).transpose(2, 3)
    assert got.shape == q.shape
    assert torch.allclose(got, wanted.transpose(2, 3).reshape(q.shape), atol=1e-5)
    assert QUERIES_AT_ONCE == 512


def test_fully_masked_prompt_contributes_nothing() -> None:
    net = network(True)
    rewritten = for_neural_engine(net)
    x, temb = torch.randn(1, 3, 8, 8), torch.randn(1, 32)
    with torch.inference_mode():
        given = net.condition(torch.randn(1, 7, 16), torch.zeros(1, 7))
        text = tuple(
            tuple(tuple(engine_keys_values(*layer) for layer in block) for block in level)
            for level in given.keys_values
        )
        mask = engine_mask(additive_mask(torch.zeros(1, 7)))
        got = rewritten.denoise([x], [temb], Conditioning(given.pooled, mask, text))[0]
        wanted = net.denoise([x], [temb], given)[0]
    assert closeness(wanted.numpy(), got.numpy()).psnr >= REWRITE


@pytest.mark.parametrize("shape", [(2, 64, 8, 8), (1, 96, 40, 24), (1, 32, 128, 67)])
def test_mean_of_means_is_the_mean(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    wanted = x.reshape(shape[0], 32, -1).mean(dim=2)
    assert torch.allclose(mean_per_group(x, 32)[:, :, 0, 0], wanted)


@pytest.mark.guards("statistics of a large image overflow in fp16")
def test_statistics_of_a_large_image_survive_half_precision() -> None:
    """Two million squares of which a running fp16 sum would be infinite."""
    x = (1.5 * torch.randn(1, 32, 256, 256)).half()
    assert torch.isinf((x[0, :1] ** 2).sum(dtype=torch.float16))
    norm = nn.GroupNorm(1, 32).eval()
    wanted = norm(x.float())
    got = GroupNorm(norm).half()(x).float()
    assert torch.isfinite(got).all()
    assert closeness(wanted.detach().numpy(), got.detach().numpy()).psnr > 55


@pytest.mark.parametrize("size", [1e-4, 0.03, 1.0, 300.0, 20_000.0])
@pytest.mark.guards("squares of activations beyond 255 overflow in fp16")
def test_norm_survives_half_precision_whatever_the_size_of_its_numbers(size: float) -> None:
    """Squares of more than 255 are infinite in fp16, those of less than 2e-4 are zero."""
    generator = torch.Generator().manual_seed(0)
    x = (size * torch.randn(1, 64, 16, 16, generator=generator)).clamp(-60_000, 60_000).half()
    assert size < 255 or torch.isinf(x.square()).any()
    norm = nn.GroupNorm(8, 64).eval()
    wanted, got = norm(x.float()).detach(), GroupNorm(norm).half()(x).float().detach()
    assert closeness(wanted.numpy(), got.numpy()).psnr > 60


def test_norm_of_a_constant_is_its_bias() -> None:
    norm = nn.GroupNorm(4, 8).eval()
    nn.init.normal_(norm.bias)
    got = GroupNorm(norm).half()(torch.full((1, 8, 4, 4), 700.0).half())
    assert torch.equal(got, norm.bias.half()[None, :, None, None].expand_as(got))


def test_one_outlier_does_not_drown_the_others_of_its_group() -> None:
    x = torch.randn(1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    x[0, 0, 0, 0] = 3000.0
    norm = nn.GroupNorm(1, 32).eval()
    wanted, got = norm(x).detach(), GroupNorm(norm).half()(x.half()).float().detach()
    rest = torch.ones_like(x, dtype=torch.bool)
    rest[0, 0, 0, 0] = False
    assert closeness(wanted[rest].numpy(), got[rest].numpy()).snr > 40


def test_standard_deviation_is_that_of_training() -> None:
    x = torch.randn(1, 3, 32, 32) * 2 + 0.3
    wanted = x / x.flatten(1).std(dim=1)[:, None, None, None]
    assert np.allclose(standardised(x).numpy(), wanted.numpy(), atol=1e-5)


def test_every_tensor_has_at_most_four_axes() -> None:
    net = for_neural_engine(network(True))
    ranks: list[int] = []
    for module in net.modules():
        module.register_forward_hook(
            lambda _m, _i, out: ranks.append(out.ndim) if isinstance(out, Tensor) else None
        )
    both(network(True), net, 8, 1)
    assert len(ranks) > 20
    assert max(ranks) <= 4


def test_configuration_of_the_test_has_what_it_tests() -> None:
    config = network(True).config
    assert config.attention_ffn
    assert dataclasses.replace(config, masked_cross_attention=False) == network(False).config
