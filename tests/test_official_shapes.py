"""The published networks at their real size: one guided evaluation for captions of any length.

Random weights stand in for the published ones, and the original's own network is the judge.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_cache import converted
from numpy.typing import NDArray

from benchmarks.original import build_original, run_original
from mdm_apple.apple_checkpoints.checkpoint import as_apple_reads
from mdm_apple.config.presets import preset
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.layouts.names import TEXT_FEATURES, TEXT_MASK, TEXT_SEEN
from mdm_apple.conversion.psnr import closeness
from mdm_apple.conversion.run.packages import Denoiser
from mdm_apple.conversion.source.model import ModelSource, random_source
from mdm_apple.diffusion.arithmetic import guide

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "MDM_REFERENCE" not in os.environ, reason="needs a checkout of apple/ml-mdm"
    ),
]
NULL_TOKENS, GUIDANCE, TIME = 2, 4.0, 600
Arrays = list[NDArray[np.float32]]


def source_of(name: str) -> ModelSource:
    return random_source(as_apple_reads(preset(name)), seed=3, with_encoder=False)


def text(tokens: int, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features and mask of the null prompt and of a prompt, padded to `length`."""
    mask = (np.arange(length) < np.array([[NULL_TOKENS], [tokens]])).astype(np.float32)
    features = np.random.RandomState(5).standard_normal((2, 128, 2048)).astype(np.float32)
    return features[:, :length] * mask[:, :, None], mask


def noisy(sides: Sequence[int]) -> Arrays:
    random = np.random.RandomState(6)
    return [random.standard_normal((1, 3, side, side)).astype(np.float32) for side in sides]


def by_the_original(source: ModelSource, tokens: int) -> Arrays:
    net = build_original(Path(os.environ["MDM_REFERENCE"]), source.config.model).eval()
    net.load_state_dict(source.net.state_dict())
    features, mask = (torch.from_numpy(part) for part in text(tokens, tokens))
    x = [torch.from_numpy(level).repeat(2, 1, 1, 1) for level in noisy(source.config.sides)]
    with torch.inference_mode():
        out = run_original(net, x, torch.full((2,), TIME), features, mask)
    return [guide(o[1:], o[:1], GUIDANCE).numpy() for o in out]


def padded(tokens: int) -> tuple[NDArray[np.float32], ...]:
    features, mask = text(tokens, 128)
    seen = np.broadcast_to(np.arange(128) < tokens, (2, 128)).astype(np.float32)
    return features, mask, np.ascontiguousarray(seen)


def worst(wanted: Arrays, got: Sequence[Any]) -> float:
    pairs = zip(wanted, got, strict=True)
    return min(closeness(w, np.asarray(g, np.float32)).psnr for w, g in pairs)


@pytest.mark.parametrize("name", ["mdm64", "mdm256", "mdm1024"])
def test_torch_predicts_what_the_original_predicts(name: str) -> None:
    source = source_of(name)
    x = [torch.from_numpy(level).repeat(2, 1, 1, 1) for level in noisy(source.config.sides)]
    for tokens in (9, 40, 128):
        wanted = by_the_original(source, tokens)
        parts = [torch.from_numpy(part) for part in padded(tokens)]

        def predict(*given: torch.Tensor) -> list[torch.Tensor]:
            tembs = [t.expand(2, -1) for t in source.net.embed(torch.full((1,), TIME))]
            out = source.net.denoise(x, tembs, source.net.condition(*given))
            return [guide(o[1:], o[:1], GUIDANCE) for o in out]

        with torch.inference_mode():
            found, unaware = worst(wanted, predict(*parts)), worst(wanted, predict(*parts[:2]))
        print(f"{name}, {tokens} tokens: {found:.1f} dB; seeing all padding {unaware:.1f} dB")
        assert found >= 80
        assert tokens == 128 or unaware < 60


def test_mlx_and_the_executor_predict_it_at_64_px(tmp_path: Path) -> None:
    import mlx.core as mx
    from backends import MlxBackend

    source, backend = source_of("mdm64"), MlxBackend()
    state = {name: value.numpy() for name, value in source.net.state_dict().items()}
    net = backend.network(source.config.model, state)
    bundle = converted(source, tmp_path / "bundle", ConvertOptions(layout="nested"))
    denoiser, (x,) = Denoiser(bundle, "fp16"), noisy(source.config.sides)
    for tokens in (9, 128):
        wanted = by_the_original(source, tokens)
        parts = padded(tokens)
        conditioning = net.condition(*(mx.array(part) for part in parts))
        tembs = [mx.broadcast_to(t, (2, t.shape[1])) for t in net.embed(mx.array([TIME]))]
        (out,) = net.denoise([backend.image(np.repeat(x, 2, 0))], tembs, conditioning)
        in_mlx = worst(wanted, [backend.numpy(guide(out[1:], out[:1], GUIDANCE))])
        rows = []
        for k in range(2):
            named = zip((TEXT_FEATURES, TEXT_MASK, TEXT_SEEN), parts, strict=True)
            given = denoiser.condition({name: part[k : k + 1] for name, part in named})
            rows.append(denoiser.predict([x], TIME, given)[0])
        by_packages = worst(wanted, [guide(rows[1], rows[0], GUIDANCE)])
        print(f"{tokens} tokens: MLX {in_mlx:.1f} dB, fp16 packages {by_packages:.1f} dB")
        assert in_mlx >= 60
        assert by_packages >= 40
