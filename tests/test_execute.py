"""The executor of Core ML packages against torch, on packages that coremltools wrote."""

from __future__ import annotations

import json
import logging
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
logging.getLogger("coremltools").setLevel(logging.CRITICAL)
ct = pytest.importorskip("coremltools")

import coremltools.optimize.coreml as cto  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402
from torch import nn  # noqa: E402

from conversion.execute import ExecutionError, Package, Watch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

EXACT = 2e-5  # of the largest value: fp32 arithmetic in another order
TARGETS = {17: ct.target.iOS17, 18: ct.target.iOS18}
PRECISIONS = {"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}


class Attended(nn.Module):
    """What a UNet block is made of: GroupNorm, FiLM, attention with a mask, FFN, resampling, skip."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 32, 3, padding=1)
        self.down = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.norm, self.token_norm = nn.GroupNorm(8, 32), nn.LayerNorm(16)
        self.film, self.kv = nn.Linear(24, 64), nn.Linear(16, 64)
        self.qkv, self.out = nn.Conv2d(32, 96, 1), nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, x: Any, temb: Any, tokens: Any, mask: Any) -> Any:
        skip = self.conv_in(x)
        h = self.down(skip)
        scale, shift = self.film(F.silu(temb))[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm(h) * (1 + scale) + shift)
        q, k, v = self.qkv(h).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in (q, k, v))
        a = F.scaled_dot_product_attention(q, k, v)
        tk, tv = self.kv(self.token_norm(tokens)).chunk(2, dim=-1)
        tk, tv = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in (tk, tv))
        a = a + F.scaled_dot_product_attention(q, tk, tv, attn_mask=(mask > 0.5)[:, None, None, :])
        h = h + F.gelu(a.transpose(1, 2).flatten(2).transpose(1, 2).reshape(h.shape))
        return self.out(torch.cat([F.interpolate(h, scale_factor=2.0), skip], dim=1))


ATTENDED_INPUTS = ((1, 3, 8, 8), (1, 24), (1, 5, 16), (1, 5))


class Convolutions(nn.Module):
    """Depthwise, dilated, strided, transposed and 1-D convolutions; pooling; batch norm; shuffles."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, (3, 5), padding=(2, 4), dilation=2, groups=12)
        self.grouped = nn.Conv2d(12, 24, 1, groups=3, bias=False)
        self.same = nn.Conv2d(24, 24, 4, padding="same", groups=2)
        self.up = nn.ConvTranspose2d(24, 8, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.line = nn.Conv1d(8, 16, 3, stride=2, padding=2)
        self.head = nn.Linear(16, 5)
        with torch.no_grad():
            self.bn.running_mean.uniform_(-1, 1)
            self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x: Any) -> Any:
        h = F.hardswish(self.bn(self.first(x)))
        h = F.relu6(self.depthwise(h))
        h = self.same(F.leaky_relu(self.grouped(h), 0.1))
        h = F.max_pool2d(h, 3, 2, padding=1, ceil_mode=True)
        h = F.pad(h, (1, 2, 2, 1), mode="reflect") + F.pad(h, (1, 2, 2, 1), value=0.5)
        h = self.up(h)
        a = F.avg_pool2d(h, 3, 2, padding=1, count_include_pad=False)
        b = F.avg_pool2d(h, 3, 2, padding=1, ceil_mode=True)
        h = F.pixel_unshuffle(F.pixel_shuffle(F.pad(a, (0, 0, 0, 0)), 2), 2)
        line = self.line(h.flatten(2))
        return self.head(line.mean(dim=2)), b, F.adaptive_avg_pool2d(h, 1)


class Transformer(nn.Module):
    """A ViT encoder over patches, with a class token and learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, stride=4)
        self.cls = nn.Parameter(torch.randn(1, 1, 24))
        self.pos = nn.Parameter(torch.randn(1, 17, 24))
        self.n1, self.n2 = nn.LayerNorm(24), nn.LayerNorm(24)
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))

    def forward(self, x: Any) -> Any:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls.expand(1, -1, -1), h], dim=1) + self.pos
        q, k, v = self.qkv(self.n1(h)).reshape(1, 17, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
        attention = ((q * 8**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        h = h + self.proj((attention @ v).transpose(1, 2).reshape(1, 17, 24))
        return (h + self.mlp(self.n2(h)))[:, 0]


class Arithmetic(nn.Module):
    """Elementwise operations, reductions, indexing and resampling that the others do not use."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.prelu = nn.PReLU(4)
        self.register_buffer("order", torch.tensor([3, 0, 2]))

    def forward(self, x: Any, y: Any) -> Any:
        p = x.abs() + 0.5
        numbers = (
            torch.sqrt(p) + torch.rsqrt(p) + torch.exp(-p) + torch.log(p) + 1 / p + p**1.5
            + torch.sin(x) * torch.cos(x) + torch.tanh(x) + torch.sigmoid(x) + torch.erf(x)
            + torch.floor(x * 3) + torch.ceil(x * 3) + torch.atan(x) + x.sign()
        )  # fmt: skip
        bent = (
            F.softplus(x) + F.elu(x, 0.7) + self.prelu(x) + F.hardsigmoid(x) + F.gelu(x)
            + F.softsign(x) + x.clamp(-0.3, 0.6) + torch.maximum(x, y) + torch.minimum(x, y)
        )  # fmt: skip
        chosen = torch.where(
            torch.logical_or(x > y, torch.logical_not(x < 0.1)), x, -y
        ) + torch.remainder(x, 0.7)
        reduced = torch.cat(
            [x.amax((2, 3)), x.amin((2, 3)), x.sum((2, 3)), x.var((2, 3)), x.norm(dim=(2, 3))],
            dim=1,
        )
        places = x.argmax(dim=3)
        moved = torch.roll(x.index_select(1, self.order).flip(2), 1, 3)[:, :, ::2, 1:-1]
        looked = self.table(places).cumsum(dim=-1)
        grown = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        grown = grown + F.interpolate(x, size=(10, 12), mode="bilinear", align_corners=True)
        tiled = x.repeat(1, 2, 1, 3).tril(1) + x.logsumexp(dim=(2, 3), keepdim=True).repeat(
            1, 2, 1, 1
        )
        picked = torch.gather(x, 3, places.unsqueeze(3)) + x.topk(2, dim=3).values
        return numbers, bent, chosen, reduced, moved, looked, grown, tiled, picked


MODULES: dict[str, tuple[type[nn.Module], tuple[tuple[int, ...], ...]]] = {
    "attended": (Attended, ATTENDED_INPUTS),
    "convolutions": (Convolutions, ((1, 3, 17, 20),)),
    "transformer": (Transformer, ((1, 3, 16, 16),)),
    "arithmetic": (Arithmetic, ((1, 4, 5, 6), (1, 4, 5, 6))),
}


def build(name: str) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """A module whose weights are fp16 numbers, and inputs that are as well: storage loses nothing."""
    kind, shapes = MODULES[name]
    torch.manual_seed(3)
    module = kind().eval()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.half().float()
    inputs = {f"in{i}": torch.randn(s).half().float().numpy() for i, s in enumerate(shapes)}
    if name == "attended":
        inputs["in3"] = np.array([[1, 1, 1, 0, 0]], np.float32)
    return module, inputs


def expected(module: nn.Module, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        out = module(*map(torch.from_numpy, inputs.values()))
    return [o.numpy() for o in (out if isinstance(out, tuple) else (out,))]


def convert(name: str, target: int, precision: str) -> Any:
    module, inputs = build(name)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        args = tuple(map(torch.from_numpy, inputs.values()))
        exported = torch.export.export(module, args).run_decompositions({})
        return ct.convert(
            exported,
            inputs=[ct.TensorType(name=n, shape=a.shape) for n, a in inputs.items()],
            minimum_deployment_target=TARGETS[target],
            compute_precision=PRECISIONS[precision],
        )


Saved = Callable[[str, int, str], Path]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The path of a converted module; each conversion is done once."""
    folder, done = tmp_path_factory.mktemp("packages"), dict[tuple[str, int, str], Path]()

    def path(name: str, target: int, precision: str) -> Path:
        key = (name, target, precision)
        if key not in done:
            done[key] = folder / f"{name}_{target}_{precision}.mlpackage"
            convert(*key).save(str(done[key]))
        return done[key]

    return path


def outputs(path: Path, inputs: dict[str, np.ndarray], precision: Any = "fp32") -> list[np.ndarray]:
    return list(Package.open(path).load(precision=precision)(inputs).values())


def error(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """Largest difference over the largest value, worst output."""
    assert [g.shape for g in got] == [w.shape for w in want]
    return max(float(abs(g - w).max() / abs(w).max()) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("target", [17, 18])
@pytest.mark.parametrize("name", list(MODULES))
def test_fp32_package_matches_torch(saved: Saved, name: str, target: int) -> None:
    module, inputs = build(name)
    assert error(outputs(saved(name, target, "fp32"), inputs), expected(module, inputs)) < EXACT


@pytest.mark.parametrize(
    ("name", "target"),
    [("attended", 17), ("attended", 18), ("transformer", 18), ("convolutions", 18)],
)
def test_fp16_package_without_rounding_matches_torch(saved: Saved, name: str, target: int) -> None:
    """Only constants such as epsilons and scales were rounded by the conversion."""
    module, inputs = build(name)
    assert error(outputs(saved(name, target, "fp16"), inputs), expected(module, inputs)) < 1e-3


@pytest.mark.parametrize("target", [17, 18])
def test_fp16_mode_rounds_within_bounds(saved: Saved, target: int) -> None:
    module, inputs = build("attended")
    got = outputs(saved("attended", target, "fp16"), inputs, "fp16")
    worst = error(got, expected(module, inputs))
    assert 2**-14 < worst < 2**-6  # rounded, by a few units of fp16 (2**-11) and no more
    assert all((g == g.astype(np.float16)).all() for g in got)


def test_perturbed_weight_fails_the_comparison(saved: Saved) -> None:
    module, inputs = build("attended")
    with torch.no_grad():
        module.conv_in.weight[0, 0, 1, 1] += 0.05
    assert (
        error(outputs(saved("attended", 18, "fp32"), inputs), expected(module, inputs)) > 20 * EXACT
    )


def mil_program(tmp_path: Path, body: Callable[..., Any], shapes: list[tuple[int, ...]]) -> Path:
    """A package of MIL operations given directly, fp32, for what torch never emits."""
    specs = [mb.TensorSpec(shape=s) for s in shapes]
    program = {
        1: lambda: mb.program(input_specs=specs, opset_version=ct.target.iOS17)(lambda a: body(a)),
        2: lambda: mb.program(input_specs=specs, opset_version=ct.target.iOS17)(
            lambda a, b: body(a, b)
        ),
    }[len(shapes)]()
    path = tmp_path / "mil.mlpackage"
    model = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
    )
    model.save(str(path))
    return path


def test_paddings_follow_the_specification(tmp_path: Path) -> None:
    x, w = np.random.default_rng(0).normal(size=(1, 2, 6, 7)), np.ones((1, 2, 4, 4))
    x, w = x.astype(np.float32), w.astype(np.float32)

    def body(a: Any) -> Any:
        return [
            mb.conv(x=a, weight=w, pad_type="same", strides=[2, 2]),
            mb.conv(x=a, weight=w, pad_type="same_lower", strides=[2, 2]),
            mb.conv(x=a, weight=w, pad_type="custom", pad=[0, 1, 2, 3]),
            mb.max_pool(x=a, kernel_sizes=[3, 2], pad_type="custom", pad=[0, 1, 1, 0]),
            mb.avg_pool(x=a, kernel_sizes=[2, 2], strides=[2, 2], pad_type="same_lower"),
        ]

    def padded(top: int, bottom: int, left: int, right: int, value: float = 0.0) -> Any:
        return F.pad(torch.from_numpy(x), (left, right, top, bottom), value=value)

    kernel = torch.from_numpy(w)
    want = [
        F.conv2d(padded(1, 1, 1, 2), kernel, stride=2),  # ceil(7 / 2) = 4 columns need 3 zeros
        F.conv2d(padded(1, 1, 2, 1), kernel, stride=2),
        F.conv2d(padded(0, 1, 2, 3), kernel),
        F.max_pool2d(padded(0, 1, 1, 0, -np.inf), (3, 2), 1),
        F.avg_pool2d(padded(0, 0, 1, 0), 2),
    ]
    got = outputs(mil_program(tmp_path, body, [x.shape]), {"a": x})
    assert error(got, [w.numpy() for w in want]) < EXACT


def test_operations_that_torch_never_emits(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4, 5), (2, 5, 4, 6)))

    rows, twos = np.array([[0, 2], [1, 1]], np.int32), np.full((2, 3, 2, 5), 2, np.float32)
    plane = np.full((2, 4, 5), 2, np.float32)

    def body(a: Any, b: Any) -> Any:
        return [
            mb.einsum(values=(a, b), equation="nchw,nwhu->nchu"),
            mb.matmul(x=a, y=a, transpose_y=True),
            mb.gather(x=a, indices=rows, axis=2, batch_dims=1),
            mb.gather_nd(x=a, indices=rows),
            mb.band_part(x=a, lower=1, upper=0),
            mb.resize_bilinear(x=a, target_size_height=7, target_size_width=3),
            mb.resize_nearest_neighbor(x=a, target_size_height=7, target_size_width=3),
            mb.reverse(x=a, axes=[1, 3]),
            mb.instance_norm(x=a, epsilon=1e-3),
            mb.l2_norm(x=a, epsilon=1e-3),
            mb.layer_norm(x=a, axes=[1], epsilon=1e-3),
            mb.cumsum(x=a, axis=3, exclusive=True, reverse=True),
            mb.concat(values=(a, a), axis=1, interleave=True),
            mb.slice_by_size(x=a, begin=[0, 1, 2, 0], size=[-1, 2, 1, 3]),
            mb.slice_by_index(
                x=a,
                begin=[1, -2, 3, 0],
                end=[2, 3, 0, 0],
                stride=[1, 1, -2, 2],
                end_mask=[False, False, False, True],
                squeeze_mask=[True, False, False, False],
            ),
            mb.reshape(x=a, shape=[2, 0, -1, 5]),
            mb.depth_to_space(x=mb.space_to_depth(x=b, block_size=2), block_size=2),
            mb.reduce_log_sum_exp(x=a, axes=[-1], keep_dims=True),
            mb.gelu(x=a, mode="TANH_APPROXIMATION"),
            mb.gelu(x=a, mode="SIGMOID_APPROXIMATION"),
            mb.scatter(data=a, indices=[2, 0], updates=twos, axis=2, mode="sub"),
            mb.scatter_nd(data=a, indices=rows, updates=plane, mode="update"),
        ]

    scattered = x.copy()
    scattered[[0, 1], [2, 1]] = 2
    mean, var = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)
    mean1, var1 = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    top = np.minimum(np.arange(7) * 4 / 7, 3)
    low, share = np.floor(top).astype(int), (top - np.floor(top))[:, None]
    tall = x[:, :, low] * (1 - share) + x[:, :, np.minimum(low + 1, 3)] * share
    left = np.minimum(np.arange(3) * 5 / 3, 4)
    low3, share3 = np.floor(left).astype(int), left - np.floor(left)
    sums = np.flip(np.cumsum(np.flip(x, 3), 3), 3) - x
    want = [
        np.einsum("nchw,nwhu->nchu", x, y),
        x @ x.swapaxes(2, 3),
        np.stack([x[0][:, [0, 2]], x[1][:, [1, 1]]]),
        x[[0, 1], [2, 1]],
        np.tril(np.triu(x, -1), 0),
        tall[..., low3] * (1 - share3) + tall[..., np.minimum(low3 + 1, 4)] * share3,
        x[:, :, np.arange(7) * 4 // 7][..., np.arange(3) * 5 // 3],
        x[:, ::-1, :, ::-1],
        (x - mean) / np.sqrt(var + 1e-3),
        x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True) + 1e-3),
        (x - mean1) / np.sqrt(var1 + 1e-3),
        sums,
        np.repeat(x, 2, axis=1),
        x[:, 1:3, 2:3, :3],
        x[1, -2:3, 3:0:-2, 0::2],
        x.reshape(2, 3, 4, 5),
        y,
        np.log(np.exp(x).sum(-1, keepdims=True)),
        x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
        x / (1 + np.exp(-1.702 * x)),
        x - np.array([2, 0, 2, 0])[:, None],
        scattered,
    ]
    got = outputs(mil_program(tmp_path, body, [x.shape, y.shape]), {"a": x, "b": y})
    for index, (g, w) in enumerate(zip(got, want, strict=True)):
        assert error([g], [w]) < EXACT, index


def test_fp16_mode_is_numpy_half_arithmetic(tmp_path: Path) -> None:
    """One basic operation in fp32, then rounded, is the correctly rounded fp16 operation."""
    x = np.random.default_rng(2).normal(size=(64,)).astype(np.float16)

    @mb.program(
        input_specs=[mb.TensorSpec(shape=x.shape, dtype=ct.converters.mil.mil.types.fp16)],
        opset_version=ct.target.iOS17,
    )
    def program(a: Any) -> Any:
        half = np.float16
        h = mb.real_div(x=mb.mul(x=a, y=half(1.1)), y=half(0.3))
        return mb.sub(x=mb.sqrt(x=mb.abs(x=h)), y=mb.mul(x=a, y=half(3e4)))

    path = tmp_path / "half.mlpackage"
    ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS17,
        pass_pipeline=ct.PassPipeline.EMPTY,
        outputs=[ct.TensorType(dtype=np.float16)],
    ).save(str(path))
    half = np.float16
    with np.errstate(over="ignore"):
        want = np.sqrt(abs(x * half(1.1) / half(0.3))) - x * half(3e4)
    watch = Watch()
    (got,) = Package.open(path).load(precision="fp16")({"a": x}, watch).values()
    assert np.isinf(want).any()
    assert (got == want.astype(np.float32)).all()
    first = watch.first_nonfinite
    assert first is not None
    assert first.operation == "mul"
    (unrounded,) = Package.open(path).load()({"a": x}).values()
    assert np.isfinite(unrounded).all()


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(16, 64, 3, padding=1), nn.Linear(64, 64)

    def forward(self, x: Any) -> Any:
        return self.linear(F.relu(self.conv(x)).mean((2, 3)))


MODULES["weights"] = (Weights, ((1, 16, 4, 4),))


def palettized(bits: int, **settings: Any) -> Callable[[Any], Any]:
    config = cto.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=0, **settings)
    return lambda model: cto.palettize_weights(model, cto.OptimizationConfig(config))


def quantized(dtype: str, granularity: str, **settings: Any) -> Callable[[Any], Any]:
    config = cto.OpLinearQuantizerConfig(
        mode="linear", dtype=dtype, granularity=granularity, weight_threshold=0, **settings
    )
    return lambda model: cto.linear_quantize_weights(model, cto.OptimizationConfig(config))


def pruned(model: Any) -> Any:
    config = cto.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=0)
    return cto.prune_weights(model, cto.OptimizationConfig(config))


def jointly(first: Callable[[Any], Any], bits: int) -> Callable[[Any], Any]:
    config = cto.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=0)
    return lambda model: cto.palettize_weights(
        first(model), cto.OptimizationConfig(config), joint_compression=True
    )


def quantized_palette(model: Any) -> Any:
    config = cto.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_tensor", weight_threshold=0
    )
    return cto.linear_quantize_weights(
        palettized(4)(model), cto.OptimizationConfig(config), joint_compression=True
    )


GROUPS = {"granularity": "per_grouped_channel", "group_size": 16}
COMPRESSIONS: dict[str, tuple[int, str, Callable[[Any], Any]]] = {
    **{f"lut{b}": (18, "constexpr_lut_to_dense", palettized(b)) for b in (1, 2, 3, 4, 6, 8)},
    **{f"ios17 lut{b}": (17, "constexpr_lut_to_dense", palettized(b)) for b in (1, 2, 4, 6, 8)},
    "lut4 groups": (18, "constexpr_lut_to_dense", palettized(4, **GROUPS)),
    "lut4 scales": (
        18,
        "constexpr_blockwise_shift_scale",
        palettized(4, enable_per_channel_scale=True),
    ),
    "lut int8": (18, "constexpr_blockwise_shift_scale", quantized_palette),
    "int8": (18, "constexpr_blockwise_shift_scale", quantized("int8", "per_channel")),
    "ios17 int8": (17, "constexpr_affine_dequantize", quantized("int8", "per_channel")),
    "int4 blocks": (
        18,
        "constexpr_blockwise_shift_scale",
        quantized("int4", "per_block", block_size=16),
    ),
    "sparse": (18, "constexpr_sparse_to_dense", pruned),
    "ios17 sparse": (17, "constexpr_sparse_to_dense", pruned),
    "sparse lut4": (18, "constexpr_lut_to_sparse", jointly(pruned, 4)),
}


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    return {target: convert("weights", target, "fp16") for target in TARGETS}


@pytest.mark.parametrize("name", list(COMPRESSIONS))
def test_compressed_weights_equal_those_that_coremltools_decompresses(
    plain: dict[int, Any], tmp_path: Path, name: str
) -> None:
    target, kind, compress = COMPRESSIONS[name]
    model = compress(plain[target])
    model.save(str(tmp_path / "small.mlpackage"))
    cto.decompress_weights(model).save(str(tmp_path / "large.mlpackage"))
    package = Package.open(tmp_path / "small.mlpackage")
    assert kind in {operation.kind for operation in package.function().operations}
    _, inputs = build("weights")
    got = list(package.load(precision="fp16")(inputs).values())
    assert error(got, outputs(tmp_path / "large.mlpackage", inputs, "fp16")) < 1e-3


def test_vector_palette_is_laid_along_its_axis() -> None:
    from conversion.execute.compressed import look_up

    lut = np.array([[1, 2, 3], [4, 5, 6]], np.float32)[None, None]
    indices = np.array([[0, 1], [1, 0]], np.uint8)
    rows = look_up(indices, lut, 0)
    assert rows.tolist() == [[1, 4], [2, 5], [3, 6], [4, 1], [5, 2], [6, 3]]
    assert look_up(indices, lut, 1).tolist() == [[1, 2, 3, 4, 5, 6], [4, 5, 6, 1, 2, 3]]
    grouped = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    assert look_up(indices, grouped, 1).tolist() == [[0, 1, 2, 3], [6, 7, 4, 5]]


def test_functions_are_run_by_name(plain: dict[int, Any], tmp_path: Path) -> None:
    for name, model in (("a", plain[18]), ("b", palettized(2)(plain[18]))):
        model.save(str(tmp_path / f"{name}.mlpackage"))
    description = ct.utils.MultiFunctionDescriptor()
    for name in "ab":
        description.add_function(str(tmp_path / f"{name}.mlpackage"), "main", name)
    description.default_function_name = "b"
    ct.utils.save_multifunction(description, str(tmp_path / "both.mlpackage"))
    package = Package.open(tmp_path / "both.mlpackage")
    _, inputs = build("weights")
    assert package.functions == ("a", "b")
    for name, function in (("a", "a"), ("b", None)):
        (got,) = package.load(function)(inputs).values()
        assert (got == outputs(tmp_path / f"{name}.mlpackage", inputs)[0]).all()
    with pytest.raises(ExecutionError, match="no function 'c'"):
        package.load("c")


def test_package_describes_itself_and_its_memory(saved: Saved) -> None:
    package = Package.open(saved("attended", 18, "fp16"))
    assert {n: t.shape for n, t in package.inputs.items()} == {
        f"in{i}": shape for i, shape in enumerate(ATTENDED_INPUTS)
    }
    assert [t.shape for t in package.outputs.values()] == [(1, 3, 8, 8)]
    program, watch = package.load(), Watch()
    program(build("attended")[1], watch)
    # the skip, its upsampled companion and their concatenation live together: 4 x 32 x 64 fp16 values
    assert 4 * 32 * 64 * 2 <= program.peak_bytes < 3 * 4 * 32 * 64 * 2
    assert watch.largest is not None
    assert watch.largest.largest < 65504
    assert not watch.beyond_fp16
    assert len(watch.ranges) > 30


def test_wrong_inputs_are_refused(saved: Saved) -> None:
    program = Package.open(saved("transformer", 18, "fp32")).load()
    good = build("transformer")[1]["in0"]
    for inputs, message in (
        ({}, "missing"),
        ({"in0": good, "in1": good}, "unknown"),
        ({"in0": good[:, :2]}, r"expected fp32\[1, 3, 16, 16\], got float32\[1, 2, 16, 16\]"),
        ({"in0": good.astype(str)}, "expected fp32"),
    ):
        with pytest.raises(ExecutionError, match=message):
            program(inputs)


# --- damaged and hostile packages --------------------------------------------------------------

WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
MODEL = "Data/com.apple.CoreML/model.mlmodel"


def rewrite(package: Path, change: Callable[[Any], None]) -> None:
    from coremltools.proto import Model_pb2

    message = Model_pb2.Model()
    message.ParseFromString((package / MODEL).read_bytes())
    function = message.mlProgram.functions["main"]
    change(function.block_specializations[function.opset])
    (package / MODEL).write_bytes(message.SerializeToString())


def operation(block: Any, kind: str) -> Any:
    return next(op for op in block.operations if op.type == kind)


def blob(block: Any) -> Any:
    values = (op.attributes["val"] for op in block.operations if op.type == "const")
    return next(v.blobFileValue for v in values if v.WhichOneof("value") == "blobFileValue")


def truncate(file: str, keep: float) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        data = (package / file).read_bytes()
        (package / file).write_bytes(data[: int(len(data) * keep)])

    return change


def patch_weights(offset: int, data: bytes) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        content = bytearray((package / WEIGHTS).read_bytes())
        content[offset : offset + len(data)] = data
        (package / WEIGHTS).write_bytes(content)

    return change


def in_manifest(path: str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        file = package / "Manifest.json"
        manifest = json.loads(file.read_text())
        manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = path
        file.write_text(json.dumps(manifest))

    return change


def in_program(change: Callable[[Any], None]) -> Callable[[Path], None]:
    return lambda package: rewrite(package, change)


def link_outside(package: Path) -> None:
    outside = package.parent / "outside.bin"
    (package / WEIGHTS).rename(outside)
    (package / WEIGHTS).symlink_to(outside)


def huge(block: Any) -> None:
    operation(block, "conv").outputs[0].type.tensorType.dimensions[0].constant.size = 1 << 50


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut short": (truncate(WEIGHTS, 0.5), "truncated"),
    "weights empty": (truncate(WEIGHTS, 0), "expected a weight file, got 0 bytes"),
    "weights missing": (lambda p: (p / WEIGHTS).unlink(), "is missing"),
    "weights linked outside": (link_outside, "leads out of the package"),
    "weights of another version": (patch_weights(4, b"\x07"), "version 2, got 7"),
    "weight record overwritten": (patch_weights(64, b"\0" * 4), "no weight record at offset 64"),
    "weight of another type": (patch_weights(68, b"\x03"), "holds uint8, but the program expects"),
    "weight size changed": (patch_weights(72, b"\x01"), "the package is damaged"),
    "weight data beyond the end": (
        patch_weights(80, struct.pack("<Q", 1 << 60)),
        "the file is truncated",
    ),
    "offset beyond the end": (
        in_program(lambda b: setattr(blob(b), "offset", 1 << 62)),
        "lies outside the file",
    ),
    "offset off the grid": (in_program(lambda b: setattr(blob(b), "offset", 65)), "off its grid"),
    "weight file elsewhere": (
        in_program(lambda b: setattr(blob(b), "fileName", "@model_path/../../../x")),
        "leads out of the package",
    ),
    "weight file absolute": (
        in_program(lambda b: setattr(blob(b), "fileName", "/etc/passwd")),
        "expected @model_path/",
    ),
    "weight file unlisted": (
        in_program(lambda b: setattr(blob(b), "fileName", "@model_path/../../Manifest.json")),
        "leads out of the package",
    ),
    "manifest missing": (lambda p: (p / "Manifest.json").unlink(), "no such file"),
    "manifest not JSON": (truncate("Manifest.json", 0.7), "not the manifest"),
    "manifest path outside": (in_manifest("../../x.mlmodel"), "leads out of the package"),
    "manifest path absolute": (in_manifest("/etc/x.mlmodel"), "leads out of the package"),
    "manifest path missing": (in_manifest("com.apple.CoreML/other.mlmodel"), "is missing"),
    "manifest path a folder": (in_manifest("com.apple.CoreML/weights"), "expected a .mlmodel"),
    "model cut short": (truncate(MODEL, 0.6), "damaged or cut short"),
    "model empty": (truncate(MODEL, 0), "expected an ML program, got an empty model"),
    "unknown operation": (
        in_program(lambda b: setattr(operation(b, "conv"), "type", "summon")),
        "the operation 'summon' is not supported",
    ),
    "helper named as operation": (
        in_program(lambda b: setattr(operation(b, "conv"), "type", "pad_spatial")),
        "the operation 'pad_spatial' is not supported",
    ),
    "unknown compressed form": (
        in_program(lambda b: setattr(operation(b, "const"), "type", "constexpr_magic")),
        "unknown compressed form",
    ),
    "unknown parameter": (
        in_program(lambda b: operation(b, "relu").inputs["y"].arguments.add(name="in0")),
        "parameter 'y' is not known",
    ),
    "parameter missing": (
        in_program(lambda b: operation(b, "conv").inputs.pop("weight") and None),
        "parameter 'weight' is missing",
    ),
    "input never computed": (
        in_program(lambda b: setattr(operation(b, "relu").inputs["x"].arguments[0], "name", "?")),
        "not computed before it",
    ),
    "wrong shape declared": (
        in_program(
            lambda b: setattr(
                operation(b, "relu").outputs[0].type.tensorType.dimensions[1].constant, "size", 7
            )
        ),
        "declares .* but computes",
    ),
    "impossible size declared": (in_program(huge), "GB to run, but this machine has"),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damaged_package_is_refused_in_one_sentence(
    plain: dict[int, Any], tmp_path: Path, name: str
) -> None:
    change, message = DAMAGES[name]
    package = tmp_path / "damaged.mlpackage"
    plain[18].save(str(package))
    change(package)
    with pytest.raises(ExecutionError, match=message) as refusal:
        Package.open(package).load()
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400 + len(str(tmp_path))


def test_flipped_bits_are_refused_or_harmless(plain: dict[int, Any], tmp_path: Path) -> None:
    """Any damage to the program ends in an ExecutionError, or leaves something that still runs."""
    package, rng = tmp_path / "flipped.mlpackage", np.random.default_rng(5)
    plain[18].save(str(package))
    original = (package / MODEL).read_bytes()
    refused = 0
    for _ in range(120):
        data = bytearray(original)
        for place in rng.integers(0, len(data), size=rng.integers(1, 4)):
            data[place] ^= 1 << int(rng.integers(0, 8))
        (package / MODEL).write_bytes(data)
        try:
            Package.open(package).load()
        except ExecutionError as error_:
            refused += "\n" not in str(error_)
    assert refused > 20


def test_missing_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="no such file"):
        Package.open(tmp_path / "nothing.mlpackage")
    shutil.copy(__file__, tmp_path / "file.mlpackage")
    with pytest.raises(ExecutionError, match="cannot be read"):
        Package.open(tmp_path / "file.mlpackage")
