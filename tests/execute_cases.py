"""Small networks for the tests of the executor, and their conversion by coremltools."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("coremltools")

import torch
import torch.nn.functional as F
from torch import nn

from mdm_apple.conversion.coreml import quiet_coremltools
from mdm_apple.conversion.execute import Package

with quiet_coremltools() as ct:
    TARGETS = {17: ct.target.iOS17, 18: ct.target.iOS18}
    PRECISIONS = {"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}


class Attended(nn.Module):
    """What a UNet block is made of: GroupNorm, FiLM, masked attention, resampling, a skip."""

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
    """Depthwise, dilated, transposed and 1-D convolutions, pooling, batch norm, shuffles."""

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


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(16, 64, 3, padding=1), nn.Linear(64, 64)

    def forward(self, x: Any) -> Any:
        return self.linear(F.relu(self.conv(x)).mean((2, 3)))


MODULES: dict[str, tuple[type[nn.Module], tuple[tuple[int, ...], ...]]] = {
    "attended": (Attended, ATTENDED_INPUTS),
    "convolutions": (Convolutions, ((1, 3, 17, 20),)),
    "transformer": (Transformer, ((1, 3, 16, 16),)),
    "arithmetic": (Arithmetic, ((1, 4, 5, 6), (1, 4, 5, 6))),
    "weights": (Weights, ((1, 16, 4, 4),)),
}


def build(name: str) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """A module whose weights are fp16 numbers, and such inputs: storing them loses nothing."""
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


@cache
def convert(name: str, target: int, precision: str) -> Any:
    """The coremltools model of a module; each conversion is done once a session."""
    module, inputs = build(name)
    with quiet_coremltools(), torch.no_grad():
        args = tuple(map(torch.from_numpy, inputs.values()))
        exported = torch.export.export(module, args).run_decompositions({})
        return ct.convert(
            exported,
            inputs=[ct.TensorType(name=n, shape=a.shape) for n, a in inputs.items()],
            minimum_deployment_target=TARGETS[target],
            compute_precision=PRECISIONS[precision],
        )


def traced(module: nn.Module, examples: tuple[Any, ...], inputs: list[Any], **options: Any) -> Any:
    """The coremltools model of a module as anybody makes it: traced, fp32, iOS 17."""
    with quiet_coremltools(), torch.no_grad():
        return ct.convert(
            torch.jit.trace(module.eval(), examples),
            inputs=inputs,
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
            **options,
        )


def arrays(*examples: Any) -> list[Any]:
    """The input types of examples, called in0, in1 ..."""
    return [ct.TensorType(name=f"in{i}", shape=e.shape) for i, e in enumerate(examples)]


def mil_package(folder: Path, body: Any, shapes: list[Any], name: str = "model") -> Path:
    """A package of MIL operations given directly, fp32, for what torch never emits."""
    builder = ct.converters.mil.Builder
    with quiet_coremltools():
        specs = [builder.TensorSpec(shape=shape) for shape in shapes]
        program = builder.program(input_specs=specs, opset_version=ct.target.iOS18)(body)
        model = ct.convert(
            program,
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
    return save(model, folder, name)


def decibels(got: Any, want: Any) -> float:
    """PSNR, whose peak is the largest value that is wanted."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return float(20 * np.log10(abs(want).max() / max(np.sqrt(((got - want) ** 2).mean()), 1e-30)))


def save(model: Any, folder: Path, name: str = "model") -> Path:
    path = folder / f"{name}.mlpackage"
    model.save(str(path))
    return path


def outputs(path: Path, inputs: dict[str, np.ndarray], precision: Any = "fp32") -> list[np.ndarray]:
    return list(Package.open(path).load(precision=precision)(inputs).values())


def error(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """Largest difference over the largest value, worst output."""
    assert [g.shape for g in got] == [w.shape for w in want]
    return max(float(abs(g - w).max() / abs(w).max()) for g, w in zip(got, want, strict=True))
