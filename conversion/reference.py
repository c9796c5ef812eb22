"""The torch network as judge of a bundle: predictions on noisy images of real trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from conversion.source import ModelSource
from mdm_apple.config import ModelConfig, TextConfig
from mdm_apple.loss import image_scale, limit_output
from mdm_apple.noise import NoiseStream, draw_batch
from mdm_apple.sampling import SamplerConfig, sample, sample_student, student_grid
from mdm_apple.schedule import build_schedule, timestep_grid
from mdm_apple.text import Tokenizer
from mdm_apple.torch.ops import TorchOps

Floats = NDArray[np.float32]

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
WALK_STEPS = 5  # evaluations of the trajectory that the noisy images come from
SEED = 7


@dataclass(frozen=True)
class TextInputs:
    """Text of several prompts, as the packages take it. `source` says where it comes from.

    ids (P, L) int32 where there is an encoder; features (P, L, text_dim); mask (P, L).
    """

    source: str
    mask: Floats
    features: Floats
    ids: NDArray[np.int32] | None


@dataclass(frozen=True)
class Probe:
    """Network input and output at table index t: per level (P, 3, side, side), highest first.

    target: index to which a student was told to jump, with the smallest weight; None for others.
    """

    t: int
    x_t: list[Floats]
    prediction: list[Floats]
    target: int | None = None


@dataclass(frozen=True)
class Walk:
    """Probes at high, middle and low noise, and the pictures at the end, in [-1, 1]."""

    probes: list[Probe]
    pictures: list[Floats]


def walk_sampler(num_steps: int) -> SamplerConfig:
    """The sampler of every reference trajectory: deterministic, unguided."""
    return SamplerConfig("ddim", min(WALK_STEPS, num_steps))


def walk_grid(config: ModelConfig) -> list[int]:
    """Table indices of every reference trajectory, noisiest first; the last is 0."""
    if config.distilled is not None:
        return student_grid(config.distilled, len(config.distilled.starts))
    schedule = build_schedule(config.diffusion.schedule, config.model.scales)
    return timestep_grid(schedule, walk_sampler(schedule.num_steps).num_steps)


def probe_times(grid: Sequence[int]) -> tuple[int, ...]:
    """Table indices at high, middle and low noise among those that a sampler visits."""
    visited = grid[:-1]
    return tuple(dict.fromkeys((visited[0], visited[len(visited) // 2], visited[-1])))


def text_inputs(source: ModelSource, prompts: Sequence[str]) -> TextInputs | None:
    """Text for the prompts; stand-ins by seed for whatever the source lacks. None without text."""
    text = source.config.text
    if text is None:
        return None
    count = len(prompts)
    if source.encoder is None:
        mask = _stand_in_mask(count, text)
        width = source.config.model.innermost.text_dim or 0
        values = np.random.RandomState(SEED).standard_normal((count, text.max_tokens, width))
        features = (values * mask[:, :, None]).astype(np.float32)
        return TextInputs("random features", mask, features, None)
    if source.tokenizer is not None:
        tokenizer = Tokenizer(source.tokenizer, lowercase=text.lowercase)
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
    return TextInputs(kind, mask, encoded, ids)


def walk(source: ModelSource, text: TextInputs | None, prompts: int) -> Walk:
    """One deterministic trajectory per prompt, seeds SEED, SEED + 1, ..."""
    config, net, ops = source.config, source.net, TorchOps()
    scales, sides = config.model.scales, config.sides
    schedule = build_schedule(config.diffusion.schedule, scales)
    sampler = walk_sampler(schedule.num_steps)
    grid = walk_grid(config)
    wanted = set(probe_times(grid))
    streams = [NoiseStream(SEED + p, sides) for p in range(prompts)]

    def draw() -> list[torch.Tensor]:
        return [torch.from_numpy(level) for level in draw_batch(streams)]

    with torch.inference_mode():
        features = None if text is None else torch.from_numpy(text.features)
        mask = None if text is None else torch.from_numpy(text.mask)
        conditioning = net.condition(features, mask)

        def predict(x_t: list[torch.Tensor], time: int, target: int | None) -> list[torch.Tensor]:
            tembs = [t.expand(prompts, -1) for t in embed_probe(source, time, target)]
            out = net.denoise(x_t, tembs, conditioning)
            return [limit_output(o, config.diffusion, len(sides), ops) for o in out]

        if config.distilled is not None:
            steps = sample_student(predict, draw(), schedule, config.diffusion, grid)
        else:
            steps = sample(
                lambda x_t, time: predict(x_t, time, None),
                draw(),
                draw,
                schedule,
                config.diffusion,
                sampler,
                scales,
                ops,
            )
        probes: list[Probe] = []
        last: list[torch.Tensor] = []
        for step in steps:
            last = step.x_next
            if step.t in wanted:
                target = step.t_next if config.distilled else None
                probes.append(Probe(step.t, _arrays(step.x_t), _arrays(step.prediction), target))
    signal = [image_scale(config.diffusion, scales, i) for i in range(len(sides))]
    return Walk(probes, [a * np.float32(q) for a, q in zip(_arrays(last), signal, strict=True)])


def embed_probe(source: ModelSource, time: int, target: int | None) -> list[torch.Tensor]:
    """Embedding (1, D) per level of a table index less one; a student's has its least weight."""
    distilled = source.config.distilled
    if distilled is None or target is None:
        return source.net.embed(torch.full((1,), time))
    weight = torch.tensor([distilled.guidance[0]]) if distilled.guidance else None
    return source.net.embed(torch.tensor([time]), None, torch.tensor([target]), weight)


def _arrays(tensors: Sequence[torch.Tensor]) -> list[Floats]:
    return [t.numpy().astype(np.float32) for t in tensors]


def _stand_in_mask(count: int, text: TextConfig) -> Floats:
    """Prompts of different lengths, the second one eos alone."""
    lengths = [text.max_tokens if p % 2 == 0 else 1 + p // 2 for p in range(count)]
    capped = np.minimum(lengths, text.max_tokens)
    return (np.arange(text.max_tokens)[None, :] < capped[:, None]).astype(np.float32)
