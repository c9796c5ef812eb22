"""Packages whose shapes come with the inputs, loops, branches, lists: against torch and NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from execute_cases import arrays, ct, decibels, mil_package, save, traced

from mdm_apple.conversion.execute import ExecutionError, Package
from mdm_apple.conversion.execute.errors import FlexibleShapeError

torch = pytest.importorskip("torch")
nn, F, Tensor = torch.nn, torch.nn.functional, torch.Tensor
mb: Any = ct.converters.mil.Builder
types: Any = ct.converters.mil.mil.types

LEAST = 90.0  # dB


class Flexible(nn.Module):
    """Reshapes, slices, pads and resizes by sizes that it takes from its input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        h = F.silu(self.norm(self.conv(x)))
        high, wide = h.shape[2], h.shape[3]
        tokens = h.flatten(2).transpose(1, 2)
        tokens = tokens + F.scaled_dot_product_attention(*[self.mix(tokens)] * 3)
        h = tokens.transpose(1, 2).reshape(1, 8, high, wide)
        h = F.interpolate(F.avg_pool2d(h, 2), scale_factor=2.0, mode="nearest")
        return F.pad(h, (1, 1, 0, 2))[:, :, : high + 1] + torch.arange(wide + 2)


def flexible_package(folder: Path, shape: Any) -> tuple[Any, Package]:
    module = Flexible()
    model = traced(module, (torch.randn(1, 3, 8, 10),), [ct.TensorType(name="x", shape=shape)])
    return module, Package.open(save(model, folder))


def ranged() -> Any:
    high = ct.RangeDim(lower_bound=4, upper_bound=20, default=8)
    wide = ct.RangeDim(lower_bound=4, upper_bound=40, default=10)
    return ct.Shape(shape=(1, 3, high, wide))


def listed() -> Any:
    return ct.EnumeratedShapes([[1, 3, 8, 10], [1, 3, 12, 6]], default=[1, 3, 8, 10])


@pytest.mark.parametrize("kind", ["ranged", "listed"])
def test_flexible_package_matches_torch_and_a_perturbed_one_does_not(
    tmp_path: Path, kind: str
) -> None:
    module, package = flexible_package(tmp_path, ranged() if kind == "ranged" else listed())
    program = package.load()
    with torch.no_grad():
        for high, wide in ((8, 10), (12, 6)):  # one program, one shape after the other
            x = torch.randn(1, 3, high, wide)
            (got,) = program({"x": x.numpy()}).values()
            assert decibels(got, module(x)) > LEAST
        module.conv.weight[0, 0, 1, 1] += 0.05
        assert decibels(got, module(x)) < LEAST - 20


@pytest.mark.parametrize(
    ("kind", "shape", "takes"),
    [
        ("ranged", (1, 3, 8, 41), r"\[1, 3, 4 to 20, 4 to 40\]"),
        ("ranged", (1, 3, 3, 10), r"\[1, 3, 4 to 20, 4 to 40\]"),
        ("ranged", (3, 8, 10), r"\[1, 3, 4 to 20, 4 to 40\]"),
        ("listed", (1, 3, 8, 12), r"\[1, 3, 8, 10\] or \[1, 3, 12, 6\]"),
    ],
)
def test_shape_that_the_package_does_not_allow_is_refused(
    tmp_path: Path, kind: str, shape: tuple[int, ...], takes: str
) -> None:
    _, package = flexible_package(tmp_path, ranged() if kind == "ranged" else listed())
    with pytest.raises(ExecutionError, match=rf"input 'x': expected fp32{takes}, got float32"):
        package.load()({"x": np.zeros(shape, np.float32)})
    with pytest.raises(FlexibleShapeError):
        package.function()


def test_default_value_of_an_input_that_is_left_out_is_used(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Any, scale: Any) -> Any:
            return x * scale

    inputs = [
        ct.TensorType(name="x", shape=(2, 3)),
        ct.TensorType(name="scale", shape=(1,), default_value=np.array([2.5], np.float32)),
    ]
    model = traced(Scaled(), (torch.ones(2, 3), torch.ones(1)), inputs)
    program = Package.open(save(model, tmp_path)).load()
    x = np.random.RandomState(0).normal(size=(2, 3)).astype(np.float32)
    (left_out,), (given,) = (
        program({"x": x, **more}).values() for more in ({}, {"scale": np.array([3.0])})
    )
    assert np.array_equal(left_out, x * np.float32(2.5))
    assert np.array_equal(given, x * 3)
    with pytest.raises(ExecutionError, match="input 'x': missing"):
        program({})


class Scripted(nn.Module):
    """A loop whose rounds, and a branch whose side, depend on the data."""

    def forward(self, x: Tensor, rounds: Tensor) -> Tensor:
        total = x
        for k in range(int(rounds)):
            total = total * 0.9 + x.roll(1, 1) * k
        if bool(total.sum() > 0):
            return total + 1.0
        return total * -2.0


def test_scripted_loop_and_branch_match_torch(tmp_path: Path) -> None:
    module, x = torch.jit.script(Scripted()), torch.randn(2, 6)
    with torch.no_grad():
        model = ct.convert(
            module,
            inputs=[*arrays(x), ct.TensorType(name="rounds", shape=(1,), dtype=np.int32)],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )
    package = Package.open(save(model, tmp_path))
    program, seen = package.load(), set()
    for sign in (1, -1):
        for rounds in (0, 1, 5):
            given = sign * x
            want = module(given, torch.tensor([rounds]))
            (got,) = program({"in0": given.numpy(), "rounds": np.array([rounds])}).values()
            assert decibels(got, want) > LEAST
            other = module(given, torch.tensor([rounds + 1]))
            assert decibels(got, other) < LEAST - 20
            seen.add(bool((want - other).abs().max() > 0))
    assert seen == {True}
    with pytest.raises(ExecutionError, match="control flow"):
        package.function()


def test_a_loop_that_fills_a_list_matches_numpy(tmp_path: Path) -> None:
    """Rounds, places and sizes come from the data; the list grows."""

    def body(x: Any, last: Any) -> Any:
        begun = mb.make_list(init_length=1, elem_shape=[3], dtype="fp32", dynamic_length=True)
        rows = mb.cast(x=last, dtype="int32")
        rows = mb.squeeze(x=rows, axes=[0])

        def goes_on(k: Any, ls: Any) -> Any:
            return mb.less(x=k, y=rows)

        def round_(k: Any, ls: Any) -> Any:
            place = mb.expand_dims(x=k, axes=[0])
            row = mb.squeeze(x=mb.gather(x=x, indices=place, axis=0), axes=[0])
            return mb.add(x=k, y=1), mb.list_write(ls=ls, index=k, value=mb.mul(x=row, y=2.0))

        _, filled = mb.while_loop(_cond=goes_on, _body=round_, loop_vars=(0, begun))
        changed = mb.list_scatter(
            ls=filled, indices=np.array([0, 2], np.int32), value=np.ones((2, 3), np.float32)
        )
        return [
            mb.list_gather(ls=changed, indices=np.array([2, 1], np.int32)),
            mb.list_read(ls=filled, index=1),
            mb.list_length(ls=changed),
        ]

    package = Package.open(mil_package(tmp_path, body, [(5, 3), (1,)]))
    x = np.random.RandomState(3).normal(size=(5, 3)).astype(np.float32)
    program = package.load()
    gathered, read, length = program({"x": x, "last": np.array([4.0], np.float32)}).values()
    assert np.array_equal(gathered, np.stack([np.ones(3, np.float32), 2 * x[1]]))
    assert np.array_equal(read, 2 * x[1])
    assert length == 4
    *_, longer = program({"x": x, "last": np.array([5.0], np.float32)}).values()
    assert longer == 5
    with pytest.raises(ExecutionError, match=r"list_read .*index 1 lies outside a list of 1"):
        program({"x": x, "last": np.array([1.0], np.float32)})


def test_places_of_what_is_not_zero_have_the_size_of_the_data(tmp_path: Path) -> None:
    path = mil_package(tmp_path, lambda x: mb.non_zero(x=x), [(2, 3)])
    program = Package.open(path).load()
    for x in (np.eye(2, 3), np.ones((2, 3))):
        (got,) = program({"x": x.astype(np.float32)}).values()
        assert np.array_equal(got, np.argwhere(x))


def test_fp16_flexible_package_rounds_what_it_computes(tmp_path: Path) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.sqrt(x * 1.1) / 0.3

    wide = ct.RangeDim(lower_bound=1, upper_bound=9, default=5)
    model = ct.convert(
        torch.jit.trace(Doubled(), torch.ones(5)),
        inputs=[ct.TensorType(name="x", shape=(wide,))],
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    package, x = Package.open(save(model, tmp_path)), np.linspace(0.1, 7, 7, dtype=np.float32)
    (rounded,), (exact,) = (package.load(precision=p)({"x": x}).values() for p in ("fp16", "fp32"))
    assert np.array_equal(rounded, rounded.astype(np.float16))
    assert not np.array_equal(exact, exact.astype(np.float16))
    assert decibels(rounded, exact) > 55


# --- hostile ------------------------------------------------------------------------------------


def test_a_result_too_large_for_the_machine_is_refused_before_it_is_allocated(
    tmp_path: Path,
) -> None:
    """A size that comes from the data cannot be checked before the call."""

    def body(x: Any) -> Any:
        shape = mb.cast(x=x, dtype="int32")
        return mb.reduce_sum(x=mb.fill(shape=shape, value=1.0), axes=[0], keep_dims=True)

    program = Package.open(mil_package(tmp_path, body, [(2,)])).load()
    (got,) = program({"x": np.array([2, 3], np.float32)}).values()
    assert np.array_equal(got, np.full((1, 3), 2, np.float32))
    with pytest.raises(ExecutionError, match=r"fill .*needs .* GB to run"):
        program({"x": np.array([1 << 20, 1 << 20], np.float32)})
    with pytest.raises(ExecutionError, match=r"fill "):
        program({"x": np.array([-3, 3], np.float32)})


def test_a_list_that_grows_beyond_the_machine_is_refused(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        place = mb.squeeze(x=mb.cast(x=x, dtype="int32"), axes=[0])
        begun = mb.make_list(init_length=1, elem_shape=[999], dtype="fp32", dynamic_length=True)
        filled = mb.list_write(ls=begun, index=place, value=np.ones(999, np.float32))
        return mb.list_length(ls=filled)

    program = Package.open(mil_package(tmp_path, body, [(1,)])).load()
    assert next(iter(program({"x": np.array([6], np.float32)}).values())) == 7
    with pytest.raises(ExecutionError, match=r"needs .* GB to run"):
        program({"x": np.array([2e9], np.float32)})


def test_a_loop_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdm_apple.conversion.execute.flexible.MAX_ROUNDS", 50)

    def body(x: Any) -> Any:
        return mb.while_loop(
            _cond=lambda k: mb.squeeze(x=mb.less(x=k, y=1.0), axes=[0]),
            _body=lambda k: mb.mul(x=k, y=0.5),
            loop_vars=(x,),
        )

    program = Package.open(mil_package(tmp_path, body, [(1,)])).load()
    (got,) = program({"x": np.array([2.0], np.float32)}).values()
    assert got == 2.0
    with pytest.raises(ExecutionError, match=r"while_loop .*did not end after 50 rounds"):
        program({"x": np.array([0.5], np.float32)})
