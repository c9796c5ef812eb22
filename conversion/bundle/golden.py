"""The golden record of a bundle: the torch network's answers at the time of conversion.

With `golden.safetensors` a bundle can be checked without its model. It holds `times` (3,); for each
side `x_t_<side>` and `prediction_<side>` (3, P, 3, side, side) at those table indices, and
`picture_<side>` (P, 3, side, side) at the end of the same trajectory; and the text used. A student
adds `targets`, the indices it jumped to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.types import Floats
from mdm_apple.storage.tensorfile import read_tensors, write_tensors

from ..errors import BundleError
from ..layouts.names import TEXT_FEATURES, TEXT_MASK, TEXT_SEEN, TOKEN_IDS
from ..source.model import ModelSource
from ..source.trajectory import (
    PROMPTS,
    SEED,
    Probe,
    TextInputs,
    Trajectory,
    record_trajectory,
    text_inputs,
    trajectory_grid,
)
from .manifest import GoldenInfo

GOLDEN = "golden.safetensors"
LARGE_SIDE = 512  # from here on, one prompt takes tens of megabytes and a trajectory takes minutes


def write_golden(folder: Path, source: ModelSource) -> GoldenInfo:
    """Run the network along a short trajectory and record its inputs and predictions."""
    prompts = PROMPTS[: 1 if source.config.side >= LARGE_SIDE else 2]
    text = text_inputs(source, prompts)
    record = record_trajectory(source, text, len(prompts))
    times = tuple(probe.t for probe in record.probes)
    tensors: dict[str, NDArray[Any]] = {"times": np.array(times, np.int64)}
    if source.config.distilled is not None:
        tensors["targets"] = np.array([probe.target for probe in record.probes], np.int64)
    for i, side in enumerate(source.config.sides):
        tensors[f"x_t_{side}"] = np.stack([p.x_t[i] for p in record.probes])
        tensors[f"prediction_{side}"] = np.stack([p.prediction[i] for p in record.probes])
        tensors[f"picture_{side}"] = record.pictures[i]
    if text is not None:
        tensors |= {TEXT_MASK: text.mask, TEXT_FEATURES: text.features}
        if text.ids is not None:
            tensors[TOKEN_IDS] = text.ids
        if text.seen is not None:
            tensors[TEXT_SEEN] = text.seen
    write_tensors(folder / GOLDEN, tensors)
    steps = len(trajectory_grid(source.config)) - 1
    sampler = "student" if source.config.distilled is not None else "ddim"
    kind = None if text is None else text.source
    return GoldenInfo(GOLDEN, prompts, kind, SEED, sampler, steps, times)


def read_golden(
    path: Path, info: GoldenInfo, sides: tuple[int, ...]
) -> tuple[TextInputs | None, Trajectory]:
    """The record, as `text_inputs` and `record_trajectory` produced it.

    Raises TensorFileError for a damaged file, BundleError for unexpected content.
    """
    tensors = read_tensors(path)
    steps, prompts = len(info.times), len(info.prompts)

    def take(name: str, *shape: int) -> NDArray[Any]:
        found = tensors.get(name)
        if found is None or found.shape[: len(shape)] != shape:
            raise BundleError(
                f"{path}: expected the golden record to hold {name} of shape {shape}, got "
                f"{'nothing' if found is None else found.shape}."
            )
        return np.array(found)

    targets: list[int | None] = [None] * steps
    if info.sampler == "student":
        targets = [int(target) for target in take("targets", steps)]
    x_t = [take(f"x_t_{s}", steps, prompts, 3, s, s) for s in sides]
    predictions = [take(f"prediction_{s}", steps, prompts, 3, s, s) for s in sides]
    probes = [
        Probe(int(t), [x[k] for x in x_t], [p[k] for p in predictions], targets[k])
        for k, t in enumerate(info.times)
    ]
    text = None
    if info.text is not None:
        mask, features = take(TEXT_MASK, prompts), take(TEXT_FEATURES, prompts)
        ids = take(TOKEN_IDS, prompts) if TOKEN_IDS in tensors else None
        seen = take(TEXT_SEEN, prompts) if TEXT_SEEN in tensors else None
        text = TextInputs(info.text, mask, features, ids, seen)
    pictures: list[Floats] = [take(f"picture_{s}", prompts, 3, s, s) for s in sides]
    return text, Trajectory(probes, pictures)
