"""Group norm, modulation and SiLU: outputs and gradients against PyTorch's own, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdm_apple.torch.cpu.norm import normalize, normalize_silu

SIDE = 34  # large enough for gradients of our own


def exact(norm: nn.GroupNorm, x: Tensor, film: Tensor | None) -> Tensor:
    h = norm(x)
    if film is not None:
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
    return F.silu(h)


def errors(groups: int, channels: int, with_film: bool, nudge: float = 0.0) -> list[float]:
    """Of the output and of the gradients of everything that goes in."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, channels, SIDE, SIDE) * 2 + 1
    x = x.to(memory_format=torch.channels_last)
    inputs = [x, norm.weight.detach(), norm.bias.detach()]
    inputs += [torch.randn(3, 2 * channels)] if with_film else []
    ours, theirs = (
        [i.to(dtype).requires_grad_() for i in inputs] for dtype in (torch.float32, torch.float64)
    )
    outputs = []
    for function, given in ((normalize_silu, ours), (exact, theirs)):
        layer = nn.GroupNorm(groups, channels)
        layer.weight, layer.bias = nn.Parameter(given[1]), nn.Parameter(given[2])
        given[1:3] = layer.weight, layer.bias
        outputs.append(function(layer, given[0], given[3] if with_film else None))
    grad = torch.randn(outputs[0].shape)
    mine = torch.autograd.grad(outputs[0], ours, grad)
    grad[0, 0, 0, 0] += nudge
    wanted = torch.autograd.grad(outputs[1], theirs, grad.double())
    pairs = zip((outputs[0], *mine), (outputs[1], *wanted), strict=True)
    return [float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs]


@pytest.mark.parametrize("with_film", [False, True])
@pytest.mark.parametrize(("groups", "channels"), [(4, 8), (8, 8), (2, 16)])
def test_output_and_gradients_are_exact(groups: int, channels: int, with_film: bool) -> None:
    assert max(errors(groups, channels, with_film)) < 1e-5


def test_one_changed_number_of_the_gradient_changes_all_gradients() -> None:
    _, *gradients = errors(4, 8, with_film=True, nudge=1.0)
    assert min(gradients) > 1e-4


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    norm = nn.GroupNorm(2, 4)
    x = torch.randn(1, 4, SIDE, SIDE).to(memory_format=torch.channels_last).requires_grad_()
    (grad,) = torch.autograd.grad(normalize(norm, x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_large_images_take_gradients_of_our_own_and_small_ones_do_not() -> None:
    norm = nn.GroupNorm(2, 4)
    large, small = (
        torch.randn(1, 4, side, side).to(memory_format=torch.channels_last) for side in (SIDE, 8)
    )
    names = [type(normalize(norm, x).grad_fn).__name__ for x in (large, small, large.contiguous())]
    assert names == ["_GroupNormBackward", "NativeGroupNormBackward0", "NativeGroupNormBackward0"]
