"""Pictures whose denoiser is known in closed form: a mixture of Gaussians, seen at several scales.

The pictures are x = mean_k + B_k g with g standard normal, small enough to write matrices of. The
network's answer is the posterior mean of every level given the noisy states of all of them, which
is what a perfectly trained nest predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CHANNELS = 3


def pooling(side: int, factor: int) -> np.ndarray:
    """Average pooling of (3, side, side) pictures as a matrix."""
    small = side // factor
    one = np.zeros((small, small, side, side))
    for i in range(small):
        for j in range(small):
            one[i, j, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor] = 1 / factor**2
    return np.kron(np.eye(CHANNELS), one.reshape(small**2, side**2))


@dataclass(frozen=True)
class Mixture:
    """means: (K, D) of pictures (3, side, side) in rows. roots: (K, D, M) of their covariances."""

    sides: tuple[int, ...]
    weights: tuple[float, ...]
    means: np.ndarray
    roots: np.ndarray

    @classmethod
    def random(cls, sides: tuple[int, ...], parts: int, spread: float = 0.3) -> Mixture:
        """Smooth-ish pictures: a few random directions, and a little of every pixel."""
        random, size = np.random.RandomState(len(sides) + 10 * parts), CHANNELS * sides[0] ** 2
        means = random.uniform(-0.5, 0.5, (parts, size))
        directions = random.standard_normal((parts, size, 4)) * spread / 2
        roots = np.stack([np.hstack([d, 0.1 * spread * np.eye(size)]) for d in directions])
        weights = random.uniform(1, 2, parts)
        return cls(sides, tuple(weights / weights.sum()), means, roots)

    def spread(self) -> list[float]:
        """Standard deviation of the pixels of each level about their means, root mean square."""
        mean = sum(w * m for w, m in zip(self.weights, self.means, strict=True))
        covariance = sum(
            w * (b @ b.T + np.outer(m - mean, m - mean))
            for w, m, b in zip(self.weights, self.means, self.roots, strict=True)
        )
        pools = [pooling(self.sides[0], self.sides[0] // side) for side in self.sides]
        return [float(np.sqrt(np.trace(p @ covariance @ p.T) / len(p))) for p in pools]

    def clean(self, x_t: Sequence[np.ndarray], alpha_bar: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Posterior mean of every level: (B, 3, side, side) float64.

        Args:
            x_t: noisy states per level, (B, 3, side, side). alpha_bar: (B,) per level.
        """
        rows = len(x_t[0])
        pools = [pooling(self.sides[0], self.sides[0] // side) for side in self.sides]
        z = np.concatenate([np.asarray(x, np.float64).reshape(rows, -1) for x in x_t], axis=1)
        signal = np.concatenate(
            [np.repeat(a[:, None], len(p), axis=1) for p, a in zip(pools, alpha_bar, strict=True)],
            axis=1,
        )
        means, logs = [], []
        for w, mean, root in zip(self.weights, self.means, self.roots, strict=True):
            flat = np.concatenate(pools) @ np.column_stack([mean, root])
            seen = np.sqrt(signal)[:, :, None] * flat  # (rows, all pixels, 1 + M)
            covariance = seen[:, :, 1:] @ seen[:, :, 1:].transpose(0, 2, 1)
            covariance += (1 - signal)[:, :, None] * np.eye(signal.shape[1])
            gap = z - seen[:, :, 0]
            solved = np.linalg.solve(covariance, gap[:, :, None])
            volume = np.linalg.slogdet(covariance)[1]
            logs.append(np.log(w) - 0.5 * ((gap * solved[:, :, 0]).sum(axis=1) + volume))
            means.append(mean + (seen[:, :, 1:].transpose(0, 2, 1) @ solved)[:, :, 0] @ root.T)
        share = np.exp(np.array(logs) - np.max(logs, axis=0))[:, :, None]
        out = (share / share.sum(axis=0) * np.array(means)).sum(axis=0)
        return [
            (out @ p.T).reshape(rows, CHANNELS, side, side)
            for p, side in zip(pools, self.sides, strict=True)
        ]
