"""The plain eager network that benchmarks compare with computes what ours computes."""

from __future__ import annotations

import pytest
import torch
from backends import TorchBackend
from small import around, noisy_images, plain, random_state, random_text
from tolerances import FORWARD

from benchmarks.eager import build_eager, run_eager
from mdm_apple.config.network import UNetConfig
from mdm_apple.torch.nested_unet import build_unet


def eager_difference(config: UNetConfig, change: float) -> float:
    """Largest difference to our network over its largest value, one weight moved by `change`."""
    state = random_state(config)
    net = TorchBackend().network(config, state)
    eager = build_eager(config).eval()
    state["up_blocks.0.attn.0.kv_cond.weight"][3, 2] += change
    eager.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    x_t = [torch.from_numpy(x) for x in noisy_images(config, 3, side=8)]
    text = torch.from_numpy(random_text(3))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).float()
    times = torch.tensor([7, 500, 993])
    with torch.inference_mode():
        ours, theirs = net(x_t, times, text, mask), run_eager(eager, x_t, times, text, mask)
    return max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(ours, theirs, strict=True)
    )


# attention over text with and without its mask, with and without its FFN, and in a nest
NETWORKS = [
    plain(masked_cross_attention=True),
    plain(masked_cross_attention=False, attention_ffn=False),
    around(plain(), num_attention_layers=(0, 1)),
]


@pytest.mark.parametrize("config", NETWORKS)
def test_the_eager_network_is_ours(config: UNetConfig) -> None:
    assert eager_difference(config, 0.0) <= FORWARD


@pytest.mark.parametrize("config", NETWORKS)
def test_the_eager_network_with_one_perturbed_weight_is_not(config: UNetConfig) -> None:
    assert eager_difference(config, 0.5) > 10 * FORWARD


def test_nothing_in_the_plain_network_is_faster_than_plain() -> None:
    torch.manual_seed(0)
    config = UNetConfig(channels=(64, 64), num_resnets=(1, 1), num_attention_layers=(0, 0))
    seen = {}
    for name, net in (("ours", build_unet(config)), ("eager", build_eager(config))):
        x = torch.randn(2, 3, 64, 64)
        (out,) = net(x.to(memory_format=torch.channels_last), torch.tensor([1, 2]))
        seen[name] = functions_behind(out)
    own = {"_ProductsBackward", "_InterleavedBackward", "_GroupNormBackward"}
    assert own <= seen["ours"]
    assert not own - {"_GroupNormBackward"} & seen["eager"]


def functions_behind(out: torch.Tensor) -> set[str]:
    """Names of all that a gradient would go through."""
    found, waiting = set(), [out.grad_fn]
    while waiting:
        function = waiting.pop()
        if function is not None and function not in found:
            found.add(function)
            waiting += [before for before, _ in function.next_functions]
    return {type(function).__name__ for function in found}
