"""The arithmetic of diffusion: only + - * / **, which work the same in torch, MLX and NumPy.

alpha_bar is the variance of the signal: x_t = alpha_bar**.5 x0 + (1 - alpha_bar)**.5 eps. It is a
Python float in sampling and an array (B, 1, 1, 1) in training. It must not be a NumPy scalar, which
would turn the arrays of other frameworks into NumPy arrays.
Sources: Ho et al. 2020 (arXiv:2006.11239), Song et al. 2021 (DDIM, arXiv:2010.02502), Salimans & Ho
2022 (v, arXiv:2202.00512), Lu et al. 2022 (DPM-Solver++ 2M, arXiv:2211.01095), Ho & Salimans 2022
(guidance, arXiv:2207.12598).
"""

from __future__ import annotations

from typing import Any

from mdm_apple.config.types import Array


def add_noise(x0: Array, eps: Array, alpha_bar: Any) -> Array:
    """x_t from a clean image and its noise."""
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps


def noise_back(x_s: Array, noise: Array, alpha_bar_next: float, alpha_bar: float) -> Array:
    """A draw from q(x_t | x_s): from the cleaner alpha_bar_next back to the noisier alpha_bar."""
    kept = alpha_bar / alpha_bar_next
    return kept**0.5 * x_s + (1 - kept) ** 0.5 * noise


def x0_from_eps(x_t: Array, eps: Array, alpha_bar: Any) -> Array:
    return (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5


def x0_from_v(x_t: Array, v: Array, alpha_bar: Any) -> Array:
    return alpha_bar**0.5 * x_t - (1 - alpha_bar) ** 0.5 * v


def eps_from_x0(x_t: Array, x0: Array, alpha_bar: Any) -> Array:
    return (x_t - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5


def v_from_x0(x_t: Array, x0: Array, alpha_bar: Any) -> Array:
    return (alpha_bar**0.5 * x_t - x0) / (1 - alpha_bar) ** 0.5


def velocity(x0: Array, eps: Array, alpha_bar: Any) -> Array:
    """v, the target of v-prediction."""
    return alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x0


def guide(conditional: Array, unconditional: Array, guidance_scale: Any) -> Array:
    """Classifier-free guidance; scale 1 is the conditional prediction."""
    return unconditional + guidance_scale * (conditional - unconditional)


def ddpm_step(
    x_t: Array, x0: Array, noise: Array, alpha_bar: float, alpha_bar_next: float
) -> Array:
    """A draw from q(x_s | x_t, x0): the ancestral step to the cleaner alpha_bar_next."""
    alpha = alpha_bar / alpha_bar_next
    signal = (1 - alpha) * alpha_bar_next**0.5 / (1 - alpha_bar)
    state = alpha**0.5 * (1 - alpha_bar_next) / (1 - alpha_bar)
    return signal * x0 + state * x_t + posterior_variance(alpha_bar, alpha_bar_next) ** 0.5 * noise


def ddim_step(
    x_t: Array, x0: Array, noise: Array, alpha_bar: float, alpha_bar_next: float, eta: float
) -> Array:
    """The DDIM step; eta 0 is deterministic, eta 1 has the variance of the ancestral step."""
    eps = eps_from_x0(x_t, x0, alpha_bar)
    variance = eta**2 * posterior_variance(alpha_bar, alpha_bar_next)
    direction = max(1 - alpha_bar_next - variance, 0.0) ** 0.5
    x_s = alpha_bar_next**0.5 * x0 + direction * eps
    return x_s + variance**0.5 * noise if eta else x_s


def posterior_variance(alpha_bar: float, alpha_bar_next: float) -> float:
    """Variance of q(x_s | x_t, x0)."""
    return (1 - alpha_bar / alpha_bar_next) * (1 - alpha_bar_next) / (1 - alpha_bar)


def dpmpp_step(x_t: Array, x0: Array, alpha_bar: Any, alpha_bar_next: Any) -> Array:
    """First-order DPM-Solver++ step to a (possibly extrapolated) x0; equals DDIM at eta 0.

    Given the mean of the clean estimates along a path (see `schedule.mean_share`), one step lands
    where all the steps of the path do.
    """
    keep = ((1 - alpha_bar_next) / (1 - alpha_bar)) ** 0.5
    return keep * x_t + (alpha_bar_next**0.5 - keep * alpha_bar**0.5) * x0


def move_toward(mean: Array, x0: Array, share: Any) -> Array:
    """A running mean of clean estimates, moved by the fraction `share` to the next estimate."""
    return mean + share * (x0 - mean)


def dpmpp_extrapolate(x0: Array, x0_before: Array, step: float, step_before: float) -> Array:
    """Second-order multistep estimate from two x0 and the last two steps in half log-SNR."""
    weight = step / (2 * step_before)
    return (1 + weight) * x0 - weight * x0_before


def snr(alpha_bar: Any) -> Any:
    """Signal-to-noise ratio alpha_bar / (1 - alpha_bar)."""
    return alpha_bar / (1 - alpha_bar)
