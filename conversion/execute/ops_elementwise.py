"""Arithmetic, comparisons and activations: element by element, with broadcasting.

Each function is the MIL operation of its name and takes the operation's parameters by name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def sub(x: Tensor, y: Tensor) -> Tensor:
    return x - y


def mul(x: Tensor, y: Tensor) -> Tensor:
    return x * y


def real_div(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


def mod(x: Tensor, y: Tensor) -> Tensor:
    return torch.remainder(x, y)


def pow(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x, y)


def maximum(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y)


def minimum(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(x, y)


def equal(x: Tensor, y: Tensor) -> Tensor:
    return x == y


def not_equal(x: Tensor, y: Tensor) -> Tensor:
    return x != y


def less(x: Tensor, y: Tensor) -> Tensor:
    return x < y


def less_equal(x: Tensor, y: Tensor) -> Tensor:
    return x <= y


def greater(x: Tensor, y: Tensor) -> Tensor:
    return x > y


def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    return x >= y


def logical_and(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_and(x, y)


def logical_or(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_or(x, y)


def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_xor(x, y)


def logical_not(x: Tensor) -> Tensor:
    return torch.logical_not(x)


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


def identity(x: Tensor) -> Tensor:
    return x


def cast(x: Tensor, dtype: str) -> Tensor:
    """Floats become integers by truncation; the interpreter does the rounding to fp16."""
    if dtype == "bool":
        return x != 0
    if dtype.startswith("fp"):
        return x.to(torch.float32)
    return x.to(torch.int64)


def abs(x: Tensor) -> Tensor:
    return torch.abs(x)


def sign(x: Tensor) -> Tensor:
    return torch.sign(x)


def square(x: Tensor) -> Tensor:
    return x * x


def sqrt(x: Tensor) -> Tensor:
    return torch.sqrt(x)


def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return 1 / (x + epsilon)


def exp(x: Tensor) -> Tensor:
    return torch.exp(x)


def exp2(x: Tensor) -> Tensor:
    return torch.exp2(x).to(x.dtype)


def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


def sin(x: Tensor) -> Tensor:
    return torch.sin(x)


def cos(x: Tensor) -> Tensor:
    return torch.cos(x)


def tan(x: Tensor) -> Tensor:
    return torch.tan(x)


def asin(x: Tensor) -> Tensor:
    return torch.asin(x)


def acos(x: Tensor) -> Tensor:
    return torch.acos(x)


def atan(x: Tensor) -> Tensor:
    return torch.atan(x)


def sinh(x: Tensor) -> Tensor:
    return torch.sinh(x)


def cosh(x: Tensor) -> Tensor:
    return torch.cosh(x)


def tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


def atanh(x: Tensor) -> Tensor:
    return torch.atanh(x)


def erf(x: Tensor) -> Tensor:
    return torch.erf(x)


def floor(x: Tensor) -> Tensor:
    return torch.floor(x)


def ceil(x: Tensor) -> Tensor:
    return torch.ceil(x)


def round(x: Tensor) -> Tensor:
    return torch.round(x)


def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x, alpha, beta)


def threshold(x: Tensor, alpha: float) -> Tensor:
    return torch.clamp(x, min=alpha)


def relu(x: Tensor) -> Tensor:
    return torch.relu(x)


def relu6(x: Tensor) -> Tensor:
    return torch.clamp(x, 0, 6)


def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x >= 0, x, alpha * x)


def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(torch.where(x >= 0, x, alpha * x), max=beta)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x >= alpha, x, torch.zeros_like(x))


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, x, per_channel(alpha, x) * x)


def elu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(x))


def silu(x: Tensor) -> Tensor:
    return F.silu(x)


def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"unknown mode {mode!r}")


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return per_channel(alpha, x) * softplus(per_channel(beta, x) * x)


def softsign(x: Tensor) -> Tensor:
    return F.softsign(x)


def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * torch.tanh(beta * x)


def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * x + beta


def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """clip(round(input / scale) + zero_point) to the range of int8 or uint8."""
    low, high = (-128, 127) if output_dtype == "int8" else (0, 255)
    q = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        q = q + _along(zero_point, input, axis)
    return torch.clamp(q, low, high).to(torch.int64)


def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """scale * (input - zero_point)."""
    if zero_point is not None:
        input = input - _along(zero_point, input, axis)
    return input * _along(scale, input, axis)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1 ...), to broadcast against x (B, C, ...)."""
    return values.reshape(-1, *[1] * (x.ndim - 2))


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    if values.ndim == 0 or axis is None:
        return values
    return values.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)
