"""Pictures beside clips in one batch: its last rows, which only the levels of pictures see.

A still becomes a clip of equal frames. The levels of pictures make the first frame, and with a
mixed ratio the levels of time are not shown the last rows of a batch, so what they would make of a
clip that stands still is never learned.

Input: a data set of clips and one of pictures. Output: one `Dataset`, and what of it a row sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.types import Indices
from mdm_apple.data.batches import BatchPlan
from mdm_apple.data.dataset import Dataset, Item, hash_fields
from mdm_apple.diffusion.canvas import tiled
from mdm_apple.errors import ConfigError


def clip_rows(config: ModelConfig, batch_size: int) -> int:
    """Rows of a batch that some level of time sees. Raises ConfigError for all, or for none."""
    fractions = config.diffusion.mixed_fractions
    grids = [level.frame_grid for level in config.model.levels]
    if config.frames == 1 or fractions is None or grids[-1] > 1:
        raise ConfigError(
            "pictures: learns beside clips at the levels of pictures, so the model needs levels of "
            "clips around them and a mixed_ratio; leave out --pictures."
        )
    innermost = max(place for place, grid in enumerate(grids) if grid > 1)
    rows = int(fractions[innermost] * batch_size)
    if not 0 < rows < batch_size:
        raise ConfigError(
            f"pictures: a batch of {batch_size} has {rows} rows for clips by this mixed_ratio; "
            "choose a larger --batch-size, or leave out --pictures."
        )
    return rows


class MixedPlan:
    """Which clips and pictures each step sees.

    Args:
        clips: plan of the first rows, for as many rows as it has. stills: of the others; its
            indices count from `first_still` on.
    """

    def __init__(self, clips: BatchPlan, stills: BatchPlan, first_still: int) -> None:
        self._clips, self._stills, self._first_still = clips, stills, first_still
        self.batch_size = clips.batch_size + stills.batch_size

    def indices(self, step: int, rows: Sequence[int] | Indices | None = None) -> Indices:
        """Data set indices (int64) of some rows of `step`, by default all."""
        wanted = np.arange(self.batch_size) if rows is None else np.asarray(rows, np.int64)
        of_clips = wanted < self._clips.batch_size
        found = np.empty(len(wanted), np.int64)
        found[of_clips] = self._clips.indices(step, wanted[of_clips])
        others = wanted[~of_clips] - self._clips.batch_size
        found[~of_clips] = self._first_still + self._stills.indices(step, others)
        return found


def with_stills(clips: Dataset, pictures: Dataset, frames: int) -> Dataset:
    """The clips, and behind them the pictures as clips that stand still.

    pictures: of the side of a frame.
    """
    count = len(clips)

    def still(item: Item) -> Item:
        canvas = tiled(np.stack([item.image] * frames))
        return Item(canvas, item.caption, item.scale * (clips.side // pictures.side))

    def read(index: int) -> tuple[np.ndarray, float]:
        item = clips.item(index) if index < count else still(pictures.item(index - count))
        return item.image, item.scale

    def draw(index: int, random: np.random.Generator) -> Item:
        if index < count:
            return clips.drawn(index, random)
        return still(pictures.drawn(index - count, random))

    return Dataset(
        clips.side,
        [*clips.captions(), *pictures.captions()],
        read,
        hash_fields([clips.fingerprint, pictures.fingerprint]),
        draw=draw,
    )
