"""The rungs of the ladder from the network to a compressed bundle on a device.

Each rung compares one candidate with one reference at every level and noise level, and by pictures:

    rewritten network   against  network        70 dB, fp32
    fp16 packages       against  network        60 dB; see verify
    compressed packages against  fp16 packages  a floor by their bits
    guided trajectory   against  network or fp16 packages
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.types import Floats
from mdm_apple.diffusion.arithmetic import guide
from mdm_apple.diffusion.noise import NoiseStream, draw_batch
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.torch.unet import Conditioning, UNet

from ..bundle.folder import Bundle
from ..execute import Watch
from ..layouts.names import TEXT_FEATURES, TEXT_MASK, TEXT_SEEN, TOKEN_IDS
from ..layouts.parts import MASKED
from ..neural_engine import for_neural_engine
from ..neural_engine.attention import engine_keys_values, engine_mask
from ..psnr import Closeness, closeness, picture_psnr
from ..run.packages import Denoiser, Jump, Values
from ..source.model import ModelSource
from ..source.trajectory import (
    SEED,
    Predict,
    TextInputs,
    Trajectory,
    condition_on,
    network_predictions,
    pictures_of,
    trajectory_steps,
)
from .parts import PartRow

FLOOR_REWRITE = 70.0  # dB; fp32 rounding in a different order gives about 110
FLOOR_FP16 = 60.0  # reached by trained fp16 packages in fp16-storage execution
# Apple's interpreter rounds between operations that the executor fuses, and adds up products of
# matrices in fp16: the text encoder of the student of the box then leaves 52.7 dB at pure noise.
FLOOR_COREAI = 50.0
FLOOR_PICTURES = 40.0  # for an fp16 bundle's guided pictures
GUIDANCE = 3.0

# Below these floors something is broken. How coarse a variant may be is a separate question: it
# depends on the model, and only its pictures can tell.
FLOORS = {16: FLOOR_FP16, 8: 30.0, 6: 20.0, 4: 8.0, 3: 4.0, 2: 0.0}

Answers = list[list[list[Floats]]]  # by prompt, noise level and level


@dataclass(frozen=True)
class Row:
    """The worst prompt at one level and table index t."""

    side: int
    t: int
    psnr: float
    snr: float


@dataclass(frozen=True)
class Rung:
    """One comparison. floor, picture_floor: in dB; None if numbers only need to be finite.

    parts: package by package, each with its own floor.
    """

    candidate: str
    reference: str
    floor: float | None
    rows: tuple[Row, ...]
    picture_floor: float | None
    picture_psnr: dict[int, float]
    parts: tuple[PartRow, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every number is finite and every floor is reached."""
        predictions = _reach([r.psnr for r in self.rows], self.floor)
        pictures = _reach(list(self.picture_psnr.values()), self.picture_floor)
        return predictions and pictures and all(part.passed for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def _reach(values: list[float], floor: float | None) -> bool:
    return all(value > -math.inf and (floor is None or value >= floor) for value in values)


def floor_of(bundle: Bundle) -> float:
    """The floor for a bundle, from the fewest bits in its packages, and at 16 from its format."""
    if is_fp16(bundle) and bundle.manifest.format == "coreai":
        return FLOOR_COREAI
    return FLOORS[min(p.weight_bits for p in bundle.manifest.packages)]


def is_fp16(bundle: Bundle) -> bool:
    """Whether no weight of a bundle is compressed."""
    return all(p.weight_bits == 16 for p in bundle.manifest.packages)


def worst_rows(
    sides: Sequence[int], record: Trajectory, wanted: Answers, got: Answers
) -> list[Row]:
    """One row per level and noise level."""
    worst: dict[tuple[int, int], Closeness] = {}
    for by_probe, candidate in zip(wanted, got, strict=True):
        for probe, levels, answer in zip(record.probes, by_probe, candidate, strict=True):
            for side, reference, value in zip(sides, levels, answer, strict=True):
                found, before = closeness(reference, value), worst.get((side, probe.t))
                if before is None or found.psnr < before.psnr:
                    worst[side, probe.t] = found
    return [Row(side, t, c.psnr, c.snr) for (side, t), c in sorted(worst.items())]


def recorded_answers(record: Trajectory) -> Answers:
    """The network's predictions from the record."""
    prompts = len(record.pictures[0])
    return [
        [[level[p : p + 1] for level in probe.prediction] for probe in record.probes]
        for p in range(prompts)
    ]


def answers_of(predict: Predict, record: Trajectory, p: int) -> list[list[Floats]]:
    """Predictions for the noisy images of prompt `p`, by noise level and level."""
    return [
        list(predict([x[p : p + 1] for x in probe.x_t], probe.t - 1, probe.target))
        for probe in record.probes
    ]


def rewritten_rung(source: ModelSource, text: TextInputs | None, record: Trajectory) -> Rung:
    """The network rewritten for the Neural Engine against the original, in torch and fp32."""
    net, answers = for_neural_engine(source.net), []
    for p in range(len(record.pictures[0])):
        answers.append(answers_of(network_predict(source, net, text, p), record, p))
    sides = source.config.sides
    rows = worst_rows(sides, record, recorded_answers(record), answers)
    return Rung("rewritten network", "network", FLOOR_REWRITE, tuple(rows), None, {})


def network_predict(source: ModelSource, net: UNet, text: TextInputs | None, p: int) -> Predict:
    """Predictions of a source's network, or of `net` rewritten from it, for one prompt."""
    with torch.inference_mode():
        conditioning = condition_on(source.net, text, slice(p, p + 1))
        if net is not source.net:
            conditioning = _for_engine(conditioning)

    def predict(x_t: list[Floats], time: int, target: int | None = None) -> list[Floats]:
        tensors = [torch.from_numpy(x) for x in x_t]
        with torch.inference_mode():
            out = network_predictions(source, net, tensors, time, target, conditioning)
        return [o.numpy().astype(np.float32) for o in out]

    return predict


def _for_engine(given: Conditioning) -> Conditioning:
    keys_values = tuple(
        tuple(tuple(engine_keys_values(*layer) for layer in block) for block in level)
        for level in given.keys_values
    )
    additive = None if given.mask is None else engine_mask((~given.mask).float() * MASKED)
    return Conditioning(given.pooled, additive, keys_values)


def text_of(bundle: Bundle, text: TextInputs | None, p: int) -> dict[str, NDArray[Any]] | None:
    """Text of one prompt: tokens if the bundle encodes them itself, else features."""
    if text is None:
        return None
    masks = {TEXT_MASK: text.mask[p : p + 1]}
    if text.seen is not None:
        masks[TEXT_SEEN] = text.seen[p : p + 1]
    info = bundle.manifest.text
    if info and info.encoder and text.ids is not None:
        return masks | {TOKEN_IDS: text.ids[p : p + 1]}
    return masks | {TEXT_FEATURES: text.features[p : p + 1]}


def bundle_predict(
    denoiser: Denoiser, conditioning: Values, watches: dict[str, Watch] | None = None
) -> Predict:
    """Predictions of a bundle for a result of `Denoiser.condition`. watches: see `Chain.run`."""

    def predict(x_t: list[Floats], time: int, target: int | None = None) -> list[Floats]:
        jump = None if target is None else Jump(target)
        return denoiser.predict(x_t, time, conditioning, watches, jump=jump)

    return predict


def pictures(config: ModelConfig, predict: Predict, num_steps: int | None = None) -> list[Floats]:
    """Pictures of the reference trajectory, per level (1, 3, side, side); see `trajectory`."""
    stream = NoiseStream(SEED, config.sides)
    steps = trajectory_steps(config, predict, lambda: draw_batch([stream]), NumpyOps(), num_steps)
    return pictures_of(config, steps)


def guided_pictures(
    config: ModelConfig, given: Predict, null: Predict, num_steps: int | None = None
) -> list[Floats]:
    """Pictures of a guided trajectory, per level (1, 3, side, side). Students are not guided."""

    def predict(x_t: list[Floats], time: int, target: int | None = None) -> list[Floats]:
        pairs = zip(given(x_t, time, target), null(x_t, time, target), strict=True)
        return [guide(with_text, without, GUIDANCE) for with_text, without in pairs]

    return pictures(config, predict, num_steps)


def picture_rows(sides: Sequence[int], wanted: list[Floats], got: list[Floats]) -> dict[int, float]:
    """PSNR of pictures per level."""
    return {s: picture_psnr(w, g) for s, w, g in zip(sides, wanted, got, strict=True)}
