"""Large images in strips of rows against the same layers, one operation at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.eager import randomize_zeros
from mdm_apple.torch.cpu import strips
from mdm_apple.torch.cpu.conv import UpsampleConv3x3
from mdm_apple.torch.cpu.norm import normalize_silu
from mdm_apple.torch.cpu.packed import can_pack, pack
from mdm_apple.torch.layers import ResNet

NEVER = 1 << 62
HEIGHT, WIDTH = 19, 12
# numbers at a time: a strip of one row, strips that do not divide the height, the whole image
SIZES = [1, 5 * WIDTH * 48, NEVER]


def image(channels: int, height: int = HEIGHT) -> Tensor:
    return torch.randn(2, channels, height, WIDTH).to(memory_format=torch.channels_last)


def packed(layer: nn.Module) -> nn.Module:
    net = nn.ModuleDict({"layer": layer.to(memory_format=torch.channels_last)})  # type: ignore[call-overload]
    pack(net)
    return net["layer"]


@pytest.fixture(params=[False, True], ids=["plain", "packed"])
def prepared(request: pytest.FixtureRequest) -> bool:
    if request.param and not can_pack(torch.device("cpu"), torch.float32):
        pytest.skip("needs a PyTorch with oneDNN")
    return bool(request.param)


def block_error(
    monkeypatch: pytest.MonkeyPatch,
    channels: tuple[int, int, int],
    size: int,
    prepared: bool,
    nudge: float = 0.0,
    height: int = HEIGHT,
) -> float:
    """channels: of the input, of the skip beside it (0 for none), and of the output."""
    torch.manual_seed(0)
    c_in, c_skip, c_out = channels
    layer = ResNet(c_in + c_skip, c_out, 16, 8, 0.0).eval()
    randomize_zeros(layer)
    x, temb = image(c_in, height), torch.randn(2, 16)
    skip = image(c_skip, height) if c_skip else None
    with torch.inference_mode():
        monkeypatch.setattr(strips, "WORTHWHILE", NEVER)
        wanted = layer(x, temb, skip)
        layer.conv2.weight[0, 0, 0, 0] += nudge
        layer = packed(layer) if prepared else layer
        monkeypatch.setattr(strips, "WORTHWHILE", 1)
        monkeypatch.setattr(strips, "STRIP", size)
        got = layer(x, temb, skip)
    assert got.is_contiguous(memory_format=torch.channels_last)
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [(32, 0, 32), (32, 32, 32), (32, 32, 64), (64, 32, 64)])
def test_a_block_in_strips_equals_the_whole(
    monkeypatch: pytest.MonkeyPatch, channels: tuple[int, int, int], size: int, prepared: bool
) -> None:
    assert block_error(monkeypatch, channels, size, prepared) < 2e-6


@pytest.mark.parametrize("height", [1, 2])
def test_one_strip_can_have_both_rims(
    monkeypatch: pytest.MonkeyPatch, height: int, prepared: bool
) -> None:
    assert block_error(monkeypatch, (32, 32, 32), NEVER, prepared, height=height) < 2e-6


@pytest.mark.parametrize("size", SIZES)
def test_a_block_in_strips_with_one_perturbed_weight_does_not_equal_it(
    monkeypatch: pytest.MonkeyPatch, size: int, prepared: bool
) -> None:
    assert block_error(monkeypatch, (32, 32, 32), size, prepared, nudge=0.05) > 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_upsampling_in_strips_equals_the_whole(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    if not can_pack(torch.device("cpu"), torch.float32):
        pytest.skip("needs a PyTorch with oneDNN")
    torch.manual_seed(1)
    layer, x = UpsampleConv3x3(32), image(32)
    with torch.inference_mode():
        wanted = layer(x)
        monkeypatch.setattr(strips, "WORTHWHILE", 1)
        monkeypatch.setattr(strips, "STRIP", size)
        got = packed(layer)(x)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 2e-6


@pytest.mark.parametrize("size", SIZES)
def test_norm_and_silu_in_strips_equal_the_whole(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    torch.manual_seed(2)
    norm, x = nn.GroupNorm(4, 16), image(16) + 10  # the mean far from zero
    nn.init.normal_(norm.weight)
    with torch.inference_mode():
        wanted = normalize_silu(copy.deepcopy(norm).double(), x.double())
        monkeypatch.setattr(strips, "WORTHWHILE", 1)
        monkeypatch.setattr(strips, "STRIP", size)
        got = normalize_silu(norm, x)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_only_large_images_without_gradients_in_fp32_are_divided() -> None:
    side = 1 << 10
    large = torch.empty(1, 4, side, side).to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert strips.worthwhile(large)
        assert not strips.worthwhile(large[:, :, 1:])
        assert strips.worthwhile(large[:, :, : side // 2], large[:, :, side // 2 :])
        assert not strips.worthwhile(large.contiguous(memory_format=torch.contiguous_format))
        assert not strips.worthwhile(large.bfloat16())
    assert not strips.worthwhile(large)
