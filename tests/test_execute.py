"""The executor of Core ML packages against torch and numpy, on packages that coremltools wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from execute_cases import ATTENDED_INPUTS, build, convert, ct, error, expected, outputs, save

from mdm_apple.conversion.execute import ExecutionError, Package, Watch

torch = pytest.importorskip("torch")
F = torch.nn.functional
mb: Any = ct.converters.mil.Builder
types: Any = ct.converters.mil.mil.types

EXACT = 2e-5  # of the largest value: fp32 arithmetic in another order
NAMES = ["attended", "convolutions", "transformer", "arithmetic"]


@pytest.mark.parametrize("target", [17, 18])
@pytest.mark.parametrize("name", NAMES)
def test_fp32_package_matches_torch(tmp_path: Path, name: str, target: int) -> None:
    module, inputs = build(name)
    assert (
        error(
            outputs(save(convert(name, target, "fp32"), tmp_path), inputs), expected(module, inputs)
        )
        < EXACT
    )


@pytest.mark.parametrize(
    ("name", "target"),
    [("attended", 17), ("attended", 18), ("transformer", 18), ("convolutions", 18)],
)
def test_fp16_package_without_rounding_matches_torch(
    tmp_path: Path, name: str, target: int
) -> None:
    """Only constants such as epsilons and scales were rounded by the conversion."""
    module, inputs = build(name)
    assert (
        error(
            outputs(save(convert(name, target, "fp16"), tmp_path), inputs), expected(module, inputs)
        )
        < 1e-3
    )


@pytest.mark.parametrize("target", [17, 18])
def test_fp16_mode_rounds_within_bounds(tmp_path: Path, target: int) -> None:
    module, inputs = build("attended")
    got = outputs(save(convert("attended", target, "fp16"), tmp_path), inputs, "fp16")
    worst = error(got, expected(module, inputs))
    assert 2**-14 < worst < 2**-6  # rounded, by a few units of fp16 (2**-11) and no more
    assert all((g == g.astype(np.float16)).all() for g in got)


def test_perturbed_weight_fails_the_comparison(tmp_path: Path) -> None:
    module, inputs = build("attended")
    with torch.no_grad():
        module.conv_in.weight[0, 0, 1, 1] += 0.05
    assert (
        error(
            outputs(save(convert("attended", 18, "fp32"), tmp_path), inputs),
            expected(module, inputs),
        )
        > 20 * EXACT
    )


def mil_program(folder: Path, body: Callable[..., Any], shapes: list[tuple[int, ...]]) -> Path:
    """A package of MIL operations given directly, fp32, for what torch never emits."""
    specs = [mb.TensorSpec(shape=s) for s in shapes]
    build_program = mb.program(input_specs=specs, opset_version=ct.target.iOS17)
    model = ct.convert(
        build_program(body),
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
    )
    return save(model, folder)


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
        input_specs=[mb.TensorSpec(shape=x.shape, dtype=types.fp16)],
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


def test_package_describes_itself_and_its_memory(tmp_path: Path) -> None:
    package = Package.open(save(convert("attended", 18, "fp16"), tmp_path))
    assert {n: t.shape for n, t in package.inputs.items()} == {
        f"in{i}": shape for i, shape in enumerate(ATTENDED_INPUTS)
    }
    assert [t.shape for t in package.outputs.values()] == [(1, 3, 8, 8)]
    program, watch = package.load(), Watch()
    program(build("attended")[1], watch)
    # the skip, its companion and their concatenation live together: 4 x 32 x 64 fp16 values
    assert 4 * 32 * 64 * 2 <= program.peak_bytes < 3 * 4 * 32 * 64 * 2
    assert watch.largest is not None
    assert watch.largest.largest < 65504
    assert watch.first_nonfinite is None
    assert len(watch.ranges) > 30


def test_wrong_inputs_are_refused(tmp_path: Path) -> None:
    program = Package.open(save(convert("transformer", 18, "fp32"), tmp_path)).load()
    good = build("transformer")[1]["in0"]
    for inputs, message in (
        ({}, "missing"),
        ({"in0": good, "in1": good}, "unknown"),
        ({"in0": good[:, :2]}, r"expected fp32\[1, 3, 16, 16\], got float32\[1, 2, 16, 16\]"),
        ({"in0": good.astype(str)}, "expected fp32"),
    ):
        with pytest.raises(ExecutionError, match=message):
            program(inputs)
