"""The torch network as a bundle's reference: predictions on noisy images of real trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mdm_apple.config.model import ModelConfig, TextConfig
from mdm_apple.config.types import Floats
from mdm_apple.diffusion.noise import NoiseStream, draw_batch
from mdm_apple.diffusion.ops import Ops
from mdm_apple.diffusion.prediction import image_scale, limit_output
from mdm_apple.diffusion.schedule import Schedule, build_schedule, timestep_grid
from mdm_apple.sampling.walk import SamplerConfig, Step, sample, sample_student, student_grid
from mdm_apple.text.tokenizer import Tokenizer
from mdm_apple.torch.ops import TorchOps
from mdm_apple.torch.unet import Conditioning, UNet

from .model import ModelSource

PROMPTS = (
    "red heart",
    "",
    "cat face",
    "pizza",
    "green apple",
    "sun behind cloud",
    "woman running",
    "flag",
)
TRAJECTORY_STEPS = 5  # evaluations in the trajectory that provides the noisy images
SEED = 7


@dataclass(frozen=True)
class TextInputs:
    """Text of several prompts in the form the packages take. `source` says where it comes from.

    ids (P, L) int32 if there is an encoder; features (P, L, text_dim); mask (P, L); seen (P, L) for
    a network that is told how far padding goes, as if all prompts belonged to one picture.
    """

    source: str
    mask: Floats
    features: Floats
    ids: NDArray[np.int32] | None
    seen: Floats | None = None


@dataclass(frozen=True)
class Probe:
    """Network input and output at table index t: per level (P, 3, side, side), highest first.

    target: the index a student jumped to, with the smallest weight; None for other models.
    """

    t: int
    x_t: list[Floats]
    prediction: list[Floats]
    target: int | None = None


@dataclass(frozen=True)
class Trajectory:
    """Probes at high, middle and low noise, and the final pictures in [-1, 1]."""

    probes: list[Probe]
    pictures: list[Floats]


def trajectory_sampler(num_steps: int) -> SamplerConfig:
    """The sampler of every reference trajectory: deterministic, unguided."""
    return SamplerConfig("ddim", min(TRAJECTORY_STEPS, num_steps))


def trajectory_grid(config: ModelConfig) -> list[int]:
    """Table indices of every reference trajectory, noisiest first; the last is 0."""
    if config.distilled is not None:
        return student_grid(config.distilled, len(config.distilled.starts))
    schedule = _schedule(config)
    return timestep_grid(schedule, trajectory_sampler(schedule.num_steps).num_steps)


def probe_times(grid: Sequence[int]) -> tuple[int, ...]:
    """Table indices at high, middle and low noise among those a sampler visits."""
    visited = grid[:-1]
    return tuple(dict.fromkeys((visited[0], visited[len(visited) // 2], visited[-1])))


def text_inputs(source: ModelSource, prompts: Sequence[str]) -> TextInputs | None:
    """Text for the prompts, with seeded stand-ins for what the source lacks. None without text."""
    text = source.config.text
    if text is None:
        return None
    count = len(prompts)
    if source.encoder is None:
        mask = _stand_in_mask(count, text)
        width = source.config.model.innermost.text_dim or 0
        values = np.random.RandomState(SEED).standard_normal((count, text.max_tokens, width))
        features = (values * mask[:, :, None]).astype(np.float32)
        return TextInputs("random features", mask, features, None, _seen(source.config, mask))
    if source.tokenizer is not None:
        tokenizer = Tokenizer(
            source.tokenizer, lowercase=text.lowercase, null_prompt=text.null_prompt
        )
        batch = tokenizer.encode(prompts, text.max_tokens, pad_to_max=True)
        ids, mask, kind = batch.ids, batch.mask, "prompts"
    else:
        mask, kind = _stand_in_mask(count, text), "random tokens"
        vocabulary = source.encoder.config.vocab_size
        drawn = np.random.RandomState(SEED).randint(0, vocabulary, mask.shape)
        ids = (drawn * mask).astype(np.int32)
    with torch.inference_mode():
        ids_tensor, mask_tensor = torch.from_numpy(ids).long(), torch.from_numpy(mask)
        encoded = source.encoder(ids_tensor, mask_tensor).float().numpy()
    return TextInputs(kind, mask, encoded, ids, _seen(source.config, mask))


def _seen(config: ModelConfig, mask: Floats) -> Floats | None:
    """The positions up to the longest of the prompts, for each of them."""
    if not config.shares_padding:
        return None
    return np.broadcast_to(mask.max(axis=0), mask.shape).astype(np.float32)


def condition_on(net: UNet, text: TextInputs | None, rows: slice | None = None) -> Conditioning:
    """A network's conditioning on some of the prompts; on all by default."""
    if text is None:
        return net.condition(None)
    parts = (text.features, text.mask, text.seen)
    return net.condition(
        *(None if p is None else torch.from_numpy(p[rows or slice(None)]) for p in parts)
    )


class Predict(Protocol):
    """Predicts from noisy images and the table index minus one; target: where a student jumps."""

    def __call__(self, x_t: list[Any], time: int, target: int | None = None) -> Sequence[Any]: ...


def record_trajectory(source: ModelSource, text: TextInputs | None, prompts: int) -> Trajectory:
    """One deterministic trajectory per prompt, seeds SEED, SEED + 1, ..."""
    config = source.config
    wanted = set(probe_times(trajectory_grid(config)))
    streams = [NoiseStream(SEED + p, config.sides) for p in range(prompts)]

    def draw() -> list[torch.Tensor]:
        return [torch.from_numpy(level) for level in draw_batch(streams)]

    probes: list[Probe] = []

    def noted(steps: Iterator[Step]) -> Iterator[Step]:
        for step in steps:
            if step.t in wanted:
                target = step.t_next if config.distilled else None
                probes.append(Probe(step.t, _arrays(step.x_t), _arrays(step.prediction), target))
            yield step

    with torch.inference_mode():
        conditioning = condition_on(source.net, text)

        def predict(x_t: list[Any], time: int, target: int | None = None) -> list[torch.Tensor]:
            return network_predictions(source, source.net, x_t, time, target, conditioning)

        steps = trajectory_steps(config, predict, draw, TorchOps())
        pictures = pictures_of(config, noted(steps))
    return Trajectory(probes, pictures)


def network_predictions(
    source: ModelSource,
    net: UNet,
    x_t: list[torch.Tensor],
    time: int,
    target: int | None,
    conditioning: Conditioning,
) -> list[torch.Tensor]:
    """Predictions per level of a source's network, or of `net` made from it, at one time."""
    config = source.config
    tembs = [t.expand(len(x_t[0]), -1) for t in embed_probe(source, time, target)]
    out = net.denoise(x_t, tembs, conditioning)
    return [limit_output(o, config.diffusion, len(out), TorchOps()) for o in out]


def trajectory_steps(
    config: ModelConfig,
    predict: Predict,
    draw: Callable[[], Sequence[Any]],
    ops: Ops,
    num_steps: int | None = None,
) -> Iterator[Step]:
    """The steps of a reference trajectory from noise to a picture; a student jumps between starts.

    Args:
        draw: the next normals per level. num_steps: evaluations, if not as many as in records.
    """
    schedule, diffusion = _schedule(config), config.diffusion
    if config.distilled is not None:
        grid = student_grid(config.distilled, num_steps) if num_steps else trajectory_grid(config)
        return sample_student(predict, draw(), schedule, diffusion, grid, ops)
    sampler = trajectory_sampler(schedule.num_steps)
    if num_steps is not None:
        sampler = replace(sampler, num_steps=num_steps)
    scales = config.model.scales
    return sample(predict, draw(), draw, schedule, diffusion, sampler, scales, ops)


def pictures_of(config: ModelConfig, steps: Iterator[Step]) -> list[Floats]:
    """The final pictures of a trajectory per level, nominally in [-1, 1] but not clipped."""
    last: list[Any] = []
    for step in steps:
        last = step.x_next
    signal = [image_scale(config.diffusion, config.model.scales, i) for i in range(len(last))]
    return [a * np.float32(q) for a, q in zip(_arrays(last), signal, strict=True)]


def embed_probe(source: ModelSource, time: int, target: int | None) -> list[torch.Tensor]:
    """Embedding (1, D) per level of a table index minus one; a student gets its least weight."""
    distilled = source.config.distilled
    if distilled is None or target is None:
        return source.net.embed(torch.full((1,), time))
    weight = torch.tensor([distilled.guidance[0]]) if distilled.guidance else None
    return source.net.embed(torch.tensor([time]), None, torch.tensor([target]), weight)


def _schedule(config: ModelConfig) -> Schedule:
    return build_schedule(config.diffusion.schedule, config.model.scales)


def _arrays(images: Sequence[Any]) -> list[Floats]:
    """Copies of tensors or arrays, as arrays."""
    return [np.array(image, np.float32) for image in images]


def _stand_in_mask(count: int, text: TextConfig) -> Floats:
    """Prompts of different lengths; the second is eos alone."""
    lengths = [text.max_tokens if p % 2 == 0 else 1 + p // 2 for p in range(count)]
    capped = np.minimum(lengths, text.max_tokens)
    return (np.arange(text.max_tokens)[None, :] < capped[:, None]).astype(np.float32)
