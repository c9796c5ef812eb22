"""Does a clip move as its caption says? Answered by the nearest real clip.

Real clips are every motion of every object in many variants, those that training never sees too.
"motion": among the clips of the object that was asked for, the nearest has the motion that was
asked for. "pair": the nearest among all clips has that object and that motion. Both compare all
frames at 8 px, by RGB. "track" decides like "motion", from the place and size of what is
not white in each frame alone; noise misleads it.

Input: canvases in [-1, 1] and what was asked. Output: hits, and numbers about steadiness.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.types import Images
from mdm_apple.data.motion.open_motion import VARIANTS, Clip, MovingDrawings
from mdm_apple.diffusion.canvas import unfolded
from mdm_apple.evaluation.distances import Features, frechet_distance, squared_distances
from mdm_apple.evaluation.evaluate import WHITE_TOLERANCE
from mdm_apple.evaluation.motion_captions import AskedClip, every_pair
from mdm_apple.evaluation.retrieval import as_images, pool

DRAWN_AT, COMPARED_AT = 16, 8  # pixels of a frame, at most
DRAWN_TOGETHER = 256
# Variants to compare with. Where the phase differs, few would leave gaps: of real clips in other
# phases, 8 variants recognise 91 %, 24 99 % and 48 100 %.
WITH_PHASE = ("spinning clockwise", "spinning counterclockwise", "bouncing", "swinging")
REPEATING, OTHERS = 48, 16
COMPONENTS, MOST_FITTED = 64, 1000
FAINT = 0.1  # of black, below which a pixel counts as white for a track

Hits = dict[str, NDArray[np.bool_]]
Rows = NDArray[np.float32]  # (clips, numbers)


@dataclass(frozen=True)
class Steadiness:
    """What some clips have in common with real ones beside the motion.

    change, flicker: mean magnitude of the first and second differences between frames, over those
    of the real clips of the same captions; 1 is right; None for key frames. white_share: of
    the pixels that are white in every real clip of the caption, those within 6/255 of it.
    """

    change: float | None
    flicker: float | None
    white_share: float


class MotionJudge:
    """Real clips to compare with; they are drawn here, once.

    Args:
        side: pixels of the canvas. frames: of a clip; 1 for key frames. objects: the first of the
            list. variants: of each caption in training.
    """

    def __init__(self, side: int, frames: int, objects: int, variants: int = VARIANTS) -> None:
        self._frames, self._grid, self._variants = frames, math.isqrt(frames), variants
        self._full = MovingDrawings(side, frames)
        self._side = self._grid * math.gcd(side // self._grid, DRAWN_AT)
        drawings = MovingDrawings(self._side, frames)
        self._pairs = every_pair(objects)
        clips = [
            (place, Clip(pair.thing, pair.motion, variant))
            for place, pair in enumerate(self._pairs)
            for variant in range(REPEATING if pair.motion in WITH_PHASE else OTHERS)
        ]
        self._owner = np.array([place for place, _ in clips])
        self._thing = np.array([clip.thing for _, clip in clips])
        parts: list[tuple[Rows, Features]] = []
        for start in range(0, len(clips), DRAWN_TOGETHER):
            some = clips[start : start + DRAWN_TOGETHER]
            canvases = as_images(np.stack([drawings.canvas(clip) for _, clip in some]))
            parts.append((self._row(canvases), _tracks(unfolded(canvases, self._grid))))
        self._rows = np.concatenate([rows for rows, _ in parts])
        self._tracks = np.concatenate([tracks for _, tracks in parts])
        self._squares = (self._rows**2).sum(axis=1)

    def hits(self, canvases: Images, asked: Sequence[AskedClip]) -> Hits:
        """For each clip whether its motion, its pair and its track are those that were asked for.

        A key frame shows no motion, so only its object is judged.

        Args:
            canvases: (N, 3, side, side) in [-1, 1].
        """
        places = np.array([self._pairs.index(one) for one in asked])
        own = self._thing[None, :] == np.array([one.thing for one in asked])[:, None]
        apart = self._squares[None, :] - 2 * (self._row(canvases) @ self._rows.T)
        if self._frames == 1:
            return {"object": own[np.arange(len(own)), apart.argmin(axis=1)]}
        tracks = _tracks(unfolded(pool(canvases, self._side), self._grid))
        lost = squared_distances(tracks, self._tracks)

        def nearest(distance: NDArray[np.floating]) -> NDArray[np.bool_]:
            return self._owner[distance.argmin(axis=1)] == places

        return {
            "motion": nearest(np.where(own, apart, np.inf)),
            "pair": nearest(apart),
            "track": nearest(np.where(own, lost, np.inf)),
        }

    def steadiness(self, canvases: Images, asked: Sequence[AskedClip]) -> Steadiness:
        """Args: canvases: (N, 3, side, side) in [-1, 1]."""
        real = {one: self._real(one) for one in dict.fromkeys(asked)}
        frames = unfolded(canvases, self._grid)
        white = np.stack([real[one].white for one in asked])
        nearly = np.asarray((frames >= 1 - WHITE_TOLERANCE - 1e-6).all(axis=2))
        white_share = float(nearly[white].mean())
        if self._frames == 1:
            return Steadiness(None, None, white_share)
        change = np.mean([real[one].change for one in asked])
        flicker = np.mean([real[one].flicker for one in asked])
        return Steadiness(
            float(_change(frames) / change), float(_flicker(frames) / flicker), white_share
        )

    def frechet(self, canvases: Images) -> float:
        """FD-pca64: Fréchet distance in 64 principal components of frames and their differences.

        The components are those of the real clips, at 8 px. It does not see a reversal, because
        the motions reversed are motions as well. It is no FVD and must not be compared with one.
        """
        real = _with_differences(self._rows, self._frames)[:: len(self._rows) // MOST_FITTED + 1]
        made = _with_differences(self._row(canvases), self._frames)
        middle = real.mean(axis=0)
        values, vectors = np.linalg.eigh((real - middle) @ (real - middle).T)
        kept = min(COMPONENTS, len(real) - 1)
        lengths = np.sqrt(np.maximum(values[-kept:], 1e-12))
        basis = (real - middle).T @ (vectors[:, -kept:] / lengths)
        return frechet_distance((real - middle) @ basis, (made - middle) @ basis)

    def _real(self, pair: AskedClip) -> _Real:
        """The clips of a caption that training sees, or would see."""
        clips = [Clip(pair.thing, pair.motion, variant) for variant in range(self._variants)]
        canvases = as_images(np.stack([self._full.canvas(clip) for clip in clips]))
        frames = unfolded(canvases, self._grid)
        white = np.asarray((frames >= 1 - 1e-6).all(axis=(0, 2)))
        return _Real(_change(frames), _flicker(frames), white)

    def _row(self, canvases: Images) -> Rows:
        """The clips as they are compared, one row each: frame after frame."""
        side = canvases.shape[-1] // self._grid
        pooled = pool(canvases, self._grid * math.gcd(side, COMPARED_AT))
        frames = unfolded(pooled, self._grid)
        return frames.reshape(len(frames), -1)


@dataclass(frozen=True)
class _Real:
    """white: (frames, S, S), pixels that are white in all real clips of a caption."""

    change: float
    flicker: float
    white: NDArray[np.bool_]


def _with_differences(rows: Rows, frames: int) -> Features:
    """Rows of frames with the differences between neighbouring frames behind them."""
    flat = rows.reshape(len(rows), frames, -1).astype(np.float64)
    return np.concatenate([flat, np.diff(flat, axis=1)], axis=1).reshape(len(rows), -1)


def _change(frames: Images) -> float:
    return _magnitude(np.diff(frames, axis=1))


def _flicker(frames: Images) -> float:
    return _magnitude(np.diff(frames, n=2, axis=1))


def _magnitude(differences: Images) -> float:
    """Their mean, without a sign; 0 if a clip has too few frames for any."""
    return float(np.abs(differences).mean(dtype=np.float64)) if differences.size else 0.0


def _tracks(frames: Images) -> Features:
    """Center and size of what is not white, per frame, in sides of a frame: (N, frames x 3)."""
    dark = (1 - frames.astype(np.float64)).mean(axis=2) / 2
    weight = np.maximum(dark - FAINT, 0)
    total = weight.sum(axis=(2, 3)) + 1e-6
    places = (np.arange(frames.shape[-1]) + 0.5) / frames.shape[-1] - 0.5
    x = (weight.sum(axis=2) * places).sum(axis=2) / total
    y = (weight.sum(axis=3) * places).sum(axis=2) / total
    spread = (weight.sum(axis=2) * places**2 + weight.sum(axis=3) * places**2).sum(axis=2) / total
    size = np.sqrt(np.maximum(spread - x**2 - y**2, 0))
    return np.concatenate([x, y, size], axis=1)
