"""Pictures that `mdm-generate` makes, and how far they are from those of Python."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import numpy as np

from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.run.runtime import BundleRuntime
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.storage.tensorfile import read_tensors
from mdm_apple.text.feature_cache import FeatureCache


def run(program: list[str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [*program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)


def made(program: list[str], bundle: Bundle, folder: Path, *words: object) -> dict[str, np.ndarray]:
    raw = folder / f"{random.randrange(10**9)}.safetensors"
    done = run(program, bundle.path, "--prompt", "red heart", "--raw", raw, *words)
    assert done.returncode == 0, done.stderr
    return {name: np.array(value) for name, value in read_tensors(raw).items()}


def psnr(
    ours: dict[str, np.ndarray],
    bundle: Bundle,
    sampler: SamplerConfig,
    seed: int,
    stop_at: int | None = None,
    negative: str = "",
    features: FeatureCache | None = None,
) -> float:
    """Of the worst level against `mdm sample --backend reference`, before rounding, peak 2."""
    prompts = [Prompt("red heart", seed, negative)]
    runtime = BundleRuntime(bundle, features=features)
    theirs = finish(generate(runtime, prompts, sampler, stop_at))
    assert {f"picture_{x.shape[-1]}" for x in theirs} == set(ours)
    errors = [np.mean((ours[f"picture_{x.shape[-1]}"] - x.astype(np.float64)) ** 2) for x in theirs]
    return float(20 * np.log10(2 / max(1e-10, np.sqrt(max(errors)))))
