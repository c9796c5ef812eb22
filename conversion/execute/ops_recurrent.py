"""Operations over a sequence, one step after the other: LSTM, GRU and the plain recurrent network.

Each function is the MIL operation of its name and takes the operation's parameters by name. The
formulas are those of coremltools' descriptions and of the references in its tests. Sequences are
(S, B, I), states (B, H); H is the hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All hidden states or the last one, then the last hidden and cell states.

    weight_ih (4 H, I), weight_hh (4 H, H), bias (4 H): gates in the order input, forget, output,
    cell. peephole (3 H): input, forget, output. clip bounds the cell state. Both directions of
    "bidirectional" lie side by side on the last axis, forward first.
    """
    bend, bend_cell, bend_out = map(
        _activation, (recurrent_activation, cell_activation, activation)
    )

    def one_way(
        steps: Tensor,
        h: Tensor,
        c: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        added: Tensor | None,
        peep: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        known = torch.nn.functional.linear(steps, w_ih, added)  # all steps at once
        p_i, p_f, p_o = (0, 0, 0) if peep is None else peep.chunk(3)
        states: list[Tensor] = []
        for step in known:
            i, f, o, z = (step + h @ w_hh.T).chunk(4, dim=-1)
            c = bend(f + p_f * c) * c + bend(i + p_i * c) * bend_cell(z)
            c = c if clip is None else c.clamp(-clip, clip)
            h = bend(o + p_o * c) * bend_out(c)
            states.append(h)
        return torch.stack(states), h, c

    if direction != "bidirectional":
        sequence, h, c = one_way(
            _turned(x, direction), initial_h, initial_c, weight_ih, weight_hh, bias, peephole
        )
        return _sequence(sequence, direction, output_sequence), h, c
    if weight_ih_back is None or weight_hh_back is None:
        raise ValueError("a bidirectional LSTM needs weight_ih_back and weight_hh_back")
    (h_there, h_back), (c_there, c_back) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
    there = one_way(x, h_there, c_there, weight_ih, weight_hh, bias, peephole)
    back = one_way(
        x.flip(0), h_back, c_back, weight_ih_back, weight_hh_back, bias_back, peephole_back
    )
    sequences = (
        _sequence(there[0], "forward", output_sequence),
        _sequence(back[0], "reverse", output_sequence),
    )
    both = (sequences, (there[1], back[1]), (there[2], back[2]))
    sequence, h, c = (torch.cat(pair, -1) for pair in both)
    return sequence, h, c


def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All hidden states or the last one, then the last one.

    weight_ih (3 H, I), weight_hh (3 H, H), biases (3 H): gates in the order reset, output, update.
    reset_after: the reset gate scales the product with the hidden state, `bias` included, as in
    torch; otherwise it scales the hidden state before that product.
    """
    bend, bend_out = _activation(recurrent_activation), _activation(activation)
    size = weight_hh.shape[1]
    added = torch.zeros(3 * size, device=x.device) if bias is None else bias
    h, states = initial_h, list[Tensor]()
    for step in torch.nn.functional.linear(_turned(x, direction), weight_ih, input_bias):
        x_r, x_o, x_z = step.chunk(3, dim=-1)
        if reset_after:
            h_r, h_o, h_z = (h @ weight_hh.T + added).chunk(3, dim=-1)
            r, z = bend(x_r + h_r), bend(x_z + h_z)
            o = bend_out(x_o + r * h_o)
        else:
            w_r, w_o, w_z = weight_hh.chunk(3)
            b_r, b_o, b_z = added.chunk(3)
            r, z = bend(x_r + h @ w_r.T + b_r), bend(x_z + h @ w_z.T + b_z)
            o = bend_out(x_o + (r * h) @ w_o.T + b_o)
        h = (1 - z) * o + z * h
        states.append(h)
    return _sequence(torch.stack(states), direction, output_sequence), h


def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """All hidden states or the last one, then the last one: act(W_ih x + W_hh h + bias)."""
    bend = _activation(activation)
    h, states = initial_h, list[Tensor]()
    for step in torch.nn.functional.linear(_turned(x, direction), weight_ih, bias):
        h = bend(step + h @ weight_hh.T)
        states.append(h)
    return _sequence(torch.stack(states), direction, output_sequence), h


def _turned(x: Tensor, direction: str) -> Tensor:
    """The steps in the order in which they are read."""
    if direction not in ("forward", "reverse"):
        raise ValueError(f"unknown direction {direction!r}")
    return x.flip(0) if direction == "reverse" else x


def _sequence(states: Tensor, direction: str, whole: bool) -> Tensor:
    """The states in the order of the input, or the last that was computed as (1, B, H)."""
    if not whole:
        return states[-1:]
    return states.flip(0) if direction == "reverse" else states


def _activation(name: str) -> Activation:
    """Of the two that take numbers, Core ML uses 0.2 x + 0.5 and 1 tanh(1 x) here."""
    functions: dict[str, Activation] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "scaled_tanh": torch.tanh,
        "relu": torch.relu,
        "linear": lambda x: x,
        "hard_sigmoid": _hard_sigmoid,
        "sigmoid_hard": _hard_sigmoid,
    }
    if name.lower() not in functions:
        raise ValueError(f"unknown activation {name!r}")
    return functions[name.lower()]


def _hard_sigmoid(x: Tensor) -> Tensor:
    return (0.2 * x + 0.5).clamp(0, 1)
