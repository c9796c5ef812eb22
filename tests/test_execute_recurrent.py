"""LSTM, GRU and plain recurrent networks against torch, and against their formulas in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from execute_cases import arrays, ct, decibels, mil_package, save, traced

from mdm_apple.conversion.execute import ExecutionError, Package

torch = pytest.importorskip("torch")
nn = torch.nn
mb: Any = ct.converters.mil.Builder

LEAST = 90.0  # dB
STEPS, BATCH, WIDTH, HIDDEN = 7, 2, 5, 6


class Recurrent(nn.Module):
    """Two layers and a linear one, as people write them."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inside = kind(WIDTH, HIDDEN, batch_first=True, num_layers=2, **options)
        self.head = nn.Linear(HIDDEN * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Any) -> Any:
        sequence, _ = self.inside(x)
        return self.head(sequence)


NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm both ways": (nn.LSTM, {"bidirectional": True}),
    "lstm without bias": (nn.LSTM, {"bias": False}),
    "gru": (nn.GRU, {}),
    "gru both ways": (nn.GRU, {"bidirectional": True}),
    "rnn tanh": (nn.RNN, {}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu"}),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_traced_network_matches_torch_and_a_perturbed_one_does_not(
    tmp_path: Path, name: str
) -> None:
    kind, options = NETWORKS[name]
    module, x = Recurrent(kind, **options), torch.randn(BATCH, STEPS, WIDTH)
    program = Package.open(save(traced(module, (x,), arrays(x)), tmp_path)).load()
    (got,) = program({"in0": x.numpy()}).values()
    with torch.no_grad():
        assert decibels(got, module(x)) > LEAST
        module.inside.weight_hh_l0[0, 0] += 0.5
        assert decibels(got, module(x)) < LEAST - 20


def test_initial_and_last_states_of_a_traced_lstm_match_torch(tmp_path: Path) -> None:
    module = nn.LSTM(WIDTH, HIDDEN)
    x = torch.randn(STEPS, BATCH, WIDTH)
    h, c = torch.randn(1, BATCH, HIDDEN), torch.randn(1, BATCH, HIDDEN)

    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = module

        def forward(self, x: Any, h: Any, c: Any) -> Any:
            sequence, (last_h, last_c) = self.inside(x, (h, c))
            return sequence, last_h, last_c

    package = Package.open(save(traced(Stateful(), (x, h, c), arrays(x, h, c)), tmp_path))
    given = {f"in{i}": value.numpy() for i, value in enumerate((x, h, c))}
    with torch.no_grad():
        sequence, (last_h, last_c) = module(x, (h, c))
        for got, want in zip(
            package.load()(given).values(), (sequence, last_h, last_c), strict=True
        ):
            assert decibels(got, want) > LEAST
        other = package.load()(given | {"in2": given["in2"] + 0.05})
    assert decibels(next(iter(other.values())), sequence) < LEAST - 20


# --- every parameter of the operations, against NumPy ------------------------------------------


def rand(*shape: int) -> np.ndarray:
    return np.random.RandomState(sum(shape)).uniform(-1, 1, shape).astype(np.float32)


BENDS: dict[str, Any] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "scaled_tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
}


def lstm_by_hand(
    x: np.ndarray, h: np.ndarray, c: np.ndarray, w: dict[str, Any], bends: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Forward, one number after the other; coremltools' order of gates is i, f, o, z."""
    gate, cell, out = (BENDS[name] for name in bends)
    x, h, c = (a.astype(np.float64) for a in (x, h, c))
    split_x, split_h = np.split(w["ih"], 4), np.split(w["hh"], 4)
    split_b, (p_i, p_f, p_o) = np.split(w["bias"], 4), np.split(w["peephole"], 3)
    states = []
    for step in x:
        i, f, o, z = (
            step @ wx.T + h @ wh.T + b for wx, wh, b in zip(split_x, split_h, split_b, strict=True)
        )
        c_new = gate(f + p_f * c) * c + gate(i + p_i * c) * cell(z)
        c = np.clip(c_new, -w["clip"], w["clip"])
        h = gate(o + p_o * c) * out(c)
        states.append(h)
    return np.stack(states), h, c


FORMS = [
    ("forward", ["sigmoid", "tanh", "tanh"]),
    ("forward", ["hard_sigmoid", "relu", "scaled_tanh"]),
    ("reverse", ["sigmoid", "linear", "sigmoid"]),
    ("bidirectional", ["sigmoid", "tanh", "tanh"]),
    ("bidirectional", ["hard_sigmoid", "sigmoid", "relu"]),
]


@pytest.mark.parametrize(("direction", "bends"), FORMS)
@pytest.mark.parametrize("whole", [True, False])
def test_lstm_follows_its_formula(
    tmp_path: Path, direction: str, whole: bool, bends: list[str]
) -> None:
    ways = 2 if direction == "bidirectional" else 1
    x, h, c = (
        rand(STEPS, BATCH, WIDTH),
        rand(BATCH, ways * HIDDEN),
        rand(BATCH, ways * HIDDEN + 1)[:, 1:],
    )
    there, back = (
        {
            "ih": rand(4 * HIDDEN, WIDTH) + k / 3,
            "hh": rand(4 * HIDDEN, HIDDEN),
            "bias": rand(4 * HIDDEN) - k,
            "peephole": rand(3 * HIDDEN),
            "clip": 0.6,
        }
        for k in range(2)
    )
    second = {
        "weight_ih_back": back["ih"],
        "weight_hh_back": back["hh"],
        "bias_back": back["bias"],
        "peephole_back": back["peephole"],
    }

    def body(a: Any, b: Any, d: Any) -> Any:
        return mb.lstm(
            x=a,
            initial_h=b,
            initial_c=d,
            weight_ih=there["ih"],
            weight_hh=there["hh"],
            bias=there["bias"],
            peephole=there["peephole"],
            direction=direction,
            output_sequence=whole,
            recurrent_activation=bends[0],
            cell_activation=bends[1],
            activation=bends[2],
            clip=np.float32(0.6),
            **(second if ways == 2 else {}),
        )

    package = Package.open(mil_package(tmp_path, body, [x.shape, h.shape, c.shape]))
    got = list(package.load()({"a": x, "b": h, "d": c}).values())

    def wanted(first: dict[str, Any]) -> list[np.ndarray]:
        parts = []
        for k, weights in enumerate((first, back)[:ways]):
            turned = direction == "reverse" or k == 1
            place = slice(k * HIDDEN, (k + 1) * HIDDEN)
            states, last_h, last_c = lstm_by_hand(
                x[::-1] if turned else x, h[:, place], c[:, place], weights, bends
            )
            states = states if whole else states[-1:]
            parts.append((states[::-1] if turned and whole else states, last_h, last_c))
        return [np.concatenate(pair, -1) for pair in zip(*parts, strict=True)]

    for g, w in zip(got, wanted(there), strict=True):
        assert decibels(g, w) > LEAST
    for name in ("bias", "peephole"):
        for g, w in zip(got, wanted(there | {name: there[name] * 0.9}), strict=True):
            assert decibels(g, w) < LEAST - 20, name
    assert decibels(got[2], wanted(there | {"clip": 9.0})[2]) < LEAST - 20


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("turned", [False, True])
def test_gru_that_resets_after_the_product_is_that_of_torch(
    tmp_path: Path, turned: bool, whole: bool
) -> None:
    module = nn.GRU(WIDTH, HIDDEN)
    x, h = rand(STEPS, BATCH, WIDTH), rand(BATCH, HIDDEN)

    def gates(values: Any) -> np.ndarray:
        r, z, n = np.split(values.detach().numpy(), 3)  # torch's order
        return np.concatenate([r, n, z])

    def body(a: Any, b: Any) -> Any:
        return mb.gru(
            x=a,
            initial_h=b,
            weight_ih=gates(module.weight_ih_l0),
            weight_hh=gates(module.weight_hh_l0),
            input_bias=gates(module.bias_ih_l0),
            bias=gates(module.bias_hh_l0),
            reset_after=True,
            direction="reverse" if turned else "forward",
            output_sequence=whole,
        )

    package = Package.open(mil_package(tmp_path, body, [x.shape, h.shape]))
    sequence, last = package.load()({"a": x, "b": h}).values()

    def wanted() -> tuple[Any, Any]:
        with torch.no_grad():
            given = torch.from_numpy(x[::-1].copy() if turned else x)
            states, end = module(given, torch.from_numpy(h)[None])
        states = states if whole else states[-1:]
        return (states.flip(0) if turned and whole else states), end[0]

    assert decibels(sequence, wanted()[0]) > LEAST
    assert decibels(last, wanted()[1]) > LEAST
    with torch.no_grad():
        module.bias_hh_l0[-1] += 0.05  # a bias that only this form scales with the reset gate
    assert decibels(last, wanted()[1]) < LEAST - 20


@pytest.mark.parametrize(("bend", "bend_out"), [("sigmoid", "tanh"), ("hard_sigmoid", "relu")])
def test_gru_that_resets_before_the_product_follows_its_formula(
    tmp_path: Path, bend: str, bend_out: str
) -> None:
    x, h = rand(STEPS, BATCH, WIDTH), rand(BATCH, HIDDEN)
    w_ih, w_hh, bias = rand(3 * HIDDEN, WIDTH), rand(3 * HIDDEN, HIDDEN), rand(3 * HIDDEN)

    def body(a: Any, b: Any) -> Any:
        return mb.gru(
            x=a,
            initial_h=b,
            weight_ih=w_ih,
            weight_hh=w_hh,
            bias=bias,
            recurrent_activation=bend,
            activation=bend_out,
            output_sequence=True,
        )

    package = Package.open(mil_package(tmp_path, body, [x.shape, h.shape]))
    sequence, last = package.load()({"a": x, "b": h}).values()

    def wanted(resets_before: bool) -> np.ndarray:
        gate, out, state = BENDS[bend], BENDS[bend_out], h.astype(np.float64)
        (i_r, i_o, i_z), (h_r, h_o, h_z) = np.split(w_ih, 3), np.split(w_hh, 3)
        b_r, b_o, b_z = np.split(bias, 3)
        states = []
        for step in x.astype(np.float64):
            r = gate(step @ i_r.T + state @ h_r.T + b_r)
            z = gate(step @ i_z.T + state @ h_z.T + b_z)
            product = (r * state) @ h_o.T if resets_before else r * (state @ h_o.T)
            state = (1 - z) * out(step @ i_o.T + product + b_o) + z * state
            states.append(state)
        return np.stack(states)

    assert decibels(sequence, wanted(True)) > LEAST
    assert decibels(last, wanted(True)[-1]) > LEAST
    assert decibels(sequence, wanted(False)) < LEAST - 20


@pytest.mark.parametrize("bend", list(BENDS))
def test_rnn_follows_its_formula(tmp_path: Path, bend: str) -> None:
    x, h = rand(STEPS, BATCH, WIDTH), rand(BATCH, HIDDEN)
    w_ih, w_hh, bias = rand(HIDDEN, WIDTH), rand(HIDDEN, HIDDEN) / 3, rand(HIDDEN)

    def body(a: Any, b: Any) -> Any:
        return mb.rnn(
            x=a,
            initial_h=b,
            weight_ih=w_ih,
            weight_hh=w_hh,
            bias=bias,
            activation=bend,
            direction="reverse",
        )

    package = Package.open(mil_package(tmp_path, body, [x.shape, h.shape]))
    sequence, last = package.load()({"a": x, "b": h}).values()

    def wanted(added: np.ndarray) -> np.ndarray:
        state = h.astype(np.float64)
        for step in x[::-1].astype(np.float64):
            state = BENDS[bend](step @ w_ih.T + state @ w_hh.T + added)
        return state

    assert decibels(last, wanted(bias)) > LEAST
    assert decibels(sequence[0], wanted(bias)) > LEAST
    assert decibels(last, wanted(bias * 0.9)) < LEAST - 20


def test_unknown_activation_is_refused_by_name(tmp_path: Path) -> None:
    def body(a: Any, b: Any) -> Any:
        return mb.rnn(
            x=a,
            initial_h=b,
            weight_ih=rand(HIDDEN, WIDTH),
            weight_hh=rand(HIDDEN, HIDDEN),
            activation="cosine",
        )

    path = mil_package(tmp_path, body, [(STEPS, BATCH, WIDTH), (BATCH, HIDDEN)])
    with pytest.raises(ExecutionError, match=r"rnn .*unknown activation 'cosine'"):
        Package.open(path).load()
