"""The MLX network against the torch one: outputs, gradients and weights, from the same numbers.

The oracle is the torch network in float64; both fp32 networks are measured against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from backends import MlxBackend, TorchBackend, predict
from small import around, noisy_images, normal, plain, random_state, random_text, video
from tolerances import FORWARD_OVER_TORCH, GRADIENT, GRADIENT_NORM_FLOOR

from mdm_apple.config.network import UNetConfig
from mdm_apple.config.shapes import state_shapes
from mdm_apple.errors import MdmError

mx = pytest.importorskip("mlx.core")
torch = pytest.importorskip("torch")

from mdm_apple.mlx.weights import flat, load_weights, nested, save_weights  # noqa: E402
from mdm_apple.torch import layers, unet  # noqa: E402

# at least 64 channels before each norm of 32 groups: with one channel per group the biases in
# front of it have a true gradient of zero, and any relative error
WIDE: dict[str, Any] = {"channels": (64, 64), "num_resnets": (1, 1)}
THREE_SCALES = around(
    around(
        plain(channels=(64, 128), num_resnets=(1, 1), micro_conditions={}),
        **WIDE,
        micro_conditions={},
        normalize_input=True,
    ),
    **WIDE,
    num_attention_layers=(0, 1),
)
VIDEO = video(
    plain(channels=(64, 128), text_proj_dim=64, num_text_head_layers=1),
    channels=(64, 64, 64),
    num_attention_layers=(0, 1, 0),
    temporal_positional_encoding=True,
)
NETS = {"three": THREE_SCALES, "video": VIDEO}
TIMES = np.array([7, 500, 993])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], np.float32)
ROWS = (2, 3, 3)  # a mixed batch: the top level misses the last row

Gradients = dict[str, np.ndarray]


def state_of(config: UNetConfig) -> dict[str, np.ndarray]:
    """Every weight random, the zero-initialised layers included."""
    return random_state(config, seed=5)


def inputs(config: UNetConfig) -> list[np.ndarray]:
    images = noisy_images(config, 3, side=8)
    return [x[:rows] for x, rows in zip(images, ROWS[-len(images) :], strict=True)]


def weights_of_outputs(config: UNetConfig) -> list[np.ndarray]:
    """What the scalar whose gradient is taken multiplies the outputs with."""
    factors = [normal(20 + i, *x.shape) for i, x in enumerate(inputs(config))]
    return [x / np.float32(x[0].size) for x in factors]


def torch_run(
    config: UNetConfig, state: Mapping[str, np.ndarray], dtype: Any
) -> tuple[list[np.ndarray], Gradients]:
    """Outputs, and the gradient of every weight, of the torch network in a number type."""
    net = TorchBackend().network(config, state).to(dtype)
    images = [torch.from_numpy(x).to(dtype) for x in inputs(config)]
    text = torch.from_numpy(random_text(3)).to(dtype)
    out = net(images, torch.from_numpy(TIMES), text, torch.from_numpy(MASK))
    scalars = [
        (level * torch.from_numpy(w).to(dtype)).sum()
        for level, w in zip(out, weights_of_outputs(config), strict=True)
    ]
    torch.stack(scalars).sum().backward()
    gradients = {k: p.grad.numpy() for k, p in net.named_parameters() if p.grad is not None}
    return [level.detach().numpy() for level in out], gradients


def mlx_run(
    config: UNetConfig, state: Mapping[str, np.ndarray], checkpointing: bool = False
) -> tuple[list[np.ndarray], Gradients]:
    backend = MlxBackend()
    net = backend.network(config, state)
    for level in net.level_modules():
        level.checkpointing = checkpointing
    images = [backend.image(x) for x in inputs(config)]
    factors = [backend.image(w) for w in weights_of_outputs(config)]

    def scalar(parameters: Any) -> Any:
        net.update(parameters)
        out = predict(backend, net, images, TIMES, random_text(3), MASK, {})
        total = sum((a * b).sum() for a, b in zip(out, factors, strict=True))
        return total, out

    (_, out), gradients = mx.value_and_grad(scalar)(net.trainable_parameters())
    named = flat(gradients)
    shapes = {k: v for k, v in state_shapes(config).items() if k in named}
    return [backend.numpy(level) for level in out], save_weights(named, shapes)


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes out of the torch network what is fp32 in it even when its weights are float64."""

    def sinusoid(values: Any, width: int) -> Any:
        steps = torch.arange(width // 2, dtype=torch.float64)
        angles = values.double()[:, None] * torch.exp(steps * (-np.log(1e4) / (width // 2)))
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def linear(layer: Any, x: Any) -> Any:
        return torch.nn.functional.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)

    def output(self: Any, h: Any) -> Any:
        return self.conv_out(torch.nn.functional.silu(self.norm_out(h)))

    monkeypatch.setattr(layers, "sinusoid", sinusoid)
    monkeypatch.setattr(layers, "_linear_fp32", linear)
    monkeypatch.setattr(unet.UNet, "output", output)


def relative(got: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    return max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, wanted, strict=True)
    )


def gradient_errors(got: Gradients, wanted: Gradients) -> dict[str, float]:
    """Per weight: norm of the error over the norm of the gradient, which counts at least a floor.

    The floor is relative to the largest norm, for gradients that are zero but for rounding.
    """
    assert set(wanted) <= set(got)
    norms = {k: float(np.linalg.norm(v)) for k, v in wanted.items()}
    floor = GRADIENT_NORM_FLOOR * max(norms.values())
    return {k: float(np.linalg.norm(got[k] - wanted[k])) / max(n, floor) for k, n in norms.items()}


@pytest.mark.usefixtures("oracle")
@pytest.mark.parametrize("name", NETS)
def test_outputs_and_gradients_are_as_exact_as_those_of_torch(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = NETS[name]
    state = state_of(config)
    exact, exact_gradients = torch_run(config, state, torch.float64)
    by_torch, torch_gradients = torch_run(config, state, torch.float32)
    by_mlx, mlx_gradients = mlx_run(config, state)
    ours, theirs = relative(by_mlx, exact), relative(by_torch, exact)
    errors = gradient_errors(mlx_gradients, exact_gradients)
    torch_errors = gradient_errors(torch_gradients, exact_gradients)
    worst = max(errors, key=lambda k: errors[k])
    with capsys.disabled():
        print(
            f"\nparity {name}: forward MLX {ours:.1e}, torch {theirs:.1e}; worst of {len(errors)} "
            f"gradients MLX {errors[worst]:.1e} ({worst}), torch {max(torch_errors.values()):.1e}",
            end="",
        )
    assert ours <= FORWARD_OVER_TORCH * theirs
    assert max(errors.values()) <= GRADIENT
    assert len(errors) > 100


@pytest.mark.usefixtures("oracle")
def test_one_perturbed_weight_shows_in_outputs_and_gradients() -> None:
    config = THREE_SCALES
    state = state_of(config)
    exact, exact_gradients = torch_run(config, state, torch.float64)
    state["inner_unet.inner_unet.up_blocks.0.attn.0.kv_cond.weight"][3, 2] += 0.05
    by_mlx, gradients = mlx_run(config, state)
    assert relative(by_mlx, exact) > 10 * GRADIENT
    errors = gradient_errors(gradients, exact_gradients)
    assert sum(error > GRADIENT for error in errors.values()) > len(errors) / 2


@pytest.mark.parametrize("name", NETS)
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    config = NETS[name]
    state = state_of(config)
    kept, recomputed = mlx_run(config, state), mlx_run(config, state, checkpointing=True)
    for a, b in zip(kept[0], recomputed[0], strict=True):
        np.testing.assert_array_equal(a, b)
    for key, error in gradient_errors(recomputed[1], kept[1]).items():
        assert error < 3e-6, key  # contributions are summed in another order


def test_recomputing_draws_the_same_dropout_mask_again() -> None:
    """The gradient along a direction is that of finite differences, where masks stay the same."""
    config = UNetConfig((32,), (1,), (0,), mid_blocks=False, temb_dim=32, dropout=0.5)
    net = MlxBackend().network(config, random_state(config)).train()
    net.checkpointing = True
    image, times = mx.array(normal(0, 2, 8, 8, 3)), mx.array([3, 900])
    weights = flat(net.trainable_parameters())
    along = {k: mx.array(normal(1, *v.shape)) for k, v in weights.items() if "conv1" in k}

    def loss(parameters: dict[str, Any]) -> Any:
        net.update(nested(parameters))
        mx.random.seed(5)
        return mx.square(net([image], times)[0]).mean()

    def moved(step: float) -> dict[str, Any]:
        return weights | {k: weights[k] + step * direction for k, direction in along.items()}

    gradients = mx.grad(loss)(weights)
    slope = sum(float((gradients[k] * direction).sum()) for k, direction in along.items())
    differences = float(loss(moved(1e-3)) - loss(moved(-1e-3))) / 2e-3
    assert abs(slope) > 1e-2
    assert slope == pytest.approx(differences, rel=1e-2)


# --- weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_weights_come_back_byte_for_byte_in_the_order_of_the_folder(name: str) -> None:
    config = NETS[name]
    state = state_of(config)
    net = MlxBackend().network(config, state)
    back = save_weights(flat(net.parameters()), state_shapes(config))
    assert list(back) == list(state_shapes(config))
    for key, value in state.items():
        assert back[key].dtype == np.float32
        assert back[key].shape == value.shape
        assert back[key].tobytes() == value.tobytes(), key


def test_a_convolution_of_one_pixel_is_a_linear_layer() -> None:
    parameters = flat(MlxBackend().network(THREE_SCALES, state_of(THREE_SCALES)).parameters())
    shapes = state_shapes(THREE_SCALES)
    pointwise = [k for k, shape in shapes.items() if shape[2:] == (1, 1)]
    assert len(pointwise) > 10
    assert all(parameters[k].ndim == 2 for k in pointwise)
    assert set(parameters) == set(shapes)


@pytest.mark.parametrize("change", ["missing", "unexpected", "transposed", "wider"])
def test_weights_that_do_not_fit_are_refused_by_name(change: str) -> None:
    config = plain()
    state = random_state(config)
    name = "down_blocks.0.resnets.0.conv1.weight"
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        name = "conv_between.weight"
        state[name] = np.zeros((3, 3), np.float32)
    elif change == "transposed":
        name = "cond_emb.weight"
        state[name] = np.ascontiguousarray(state[name].T)
    else:
        state[name] = np.zeros((32, 32, 5, 5), np.float32)
    net = MlxBackend().network(config, random_state(config, seed=1))
    before = {k: np.array(v) for k, v in flat(net.parameters()).items()}
    with pytest.raises(MdmError, match=name):
        load_weights(net, state)
    for key, value in flat(net.parameters()).items():
        np.testing.assert_array_equal(np.array(value), before[key])


def test_a_frozen_inner_level_learns_nothing_and_the_outer_one_everything() -> None:
    config = around(plain(), freeze_inner=True)
    net = MlxBackend().network(config, random_state(config))
    learning = {k.startswith("inner_unet.") for k in flat(net.trainable_parameters())}
    assert learning == {False}
    own = [k for k in state_shapes(config) if not k.startswith("inner_unet.")]
    assert len(flat(net.trainable_parameters())) == len(own)
