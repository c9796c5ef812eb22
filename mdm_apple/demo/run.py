"""The work of `mdm demo`: train, sample, convert, palettize, verify, and report."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mdm_apple.config.model import ModelConfig, Provenance, TextConfig
from mdm_apple.config.network import T5Config, UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.types import Pixels, Say
from mdm_apple.data.open import open_dataset
from mdm_apple.demo.report import Proof, Report, Stage, Variant, read_metrics, write_report
from mdm_apple.errors import has_coreai
from mdm_apple.sampling.generate import Preview, Prompt, Runtime, finish, generate
from mdm_apple.sampling.pictures import tile_steps, to_pixels
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.training.metrics import METRICS
from mdm_apple.training.settings import TrainConfig

CAPTIONS = (
    "red heart",
    "green apple",
    "lemon",
    "basketball",
    "grinning face",
    "panda",
    "frog",
    "star",
    "blue heart",
    "strawberry",
    "watermelon",
    "cat face",
    "pig face",
    "soccer ball",
    "cookie",
    "stop sign",
)
SHOWN = CAPTIONS[:8]
IN_STEPS = ("grinning face", "frog")
BITS = (8, 6, 4, 2)
SAMPLER = SamplerConfig("dpmpp", num_steps=16, guidance_scale=2.0)

T = TypeVar("T")


@dataclass(frozen=True)
class DemoResult:
    report: Path
    seconds: float
    variants: list[Variant]


def demo_config() -> ModelConfig:
    """16 inside 32 inside 64 px, like the emoji preset but quick to train on a laptop."""
    core = UNetConfig(
        channels=(32, 64, 128),
        num_resnets=(1, 1, 1),
        num_attention_layers=(0, 1, 1),
        attention_ffn=True,
        temb_dim=128,
        num_groups=16,
        text_dim=128,
    )
    middle = _outer((32, 32), core)
    encoder = T5Config(vocab_size=512, d_model=128, d_kv=32, d_ff=320, num_layers=2, num_heads=4)
    diffusion = replace(
        preset("emoji").diffusion,
        loss_weighting="snr_plus_one",
        mixed_ratio=(1.0, 1.0, 2.0),
        high_noise_share=0.3,
        high_noise_start=0.7,
        threshold="clip",
    )
    return ModelConfig(
        model=_outer((16, 32), middle),
        side=64,
        diffusion=diffusion,
        text=TextConfig(max_tokens=16, encoder=encoder, lowercase=True, trainable=True),
        mixed_training=True,
        provenance=Provenance(
            license="CC-BY-4.0",
            source="Twemoji drawings, copyright Twitter, Inc. and other contributors",
        ),
    )


def _outer(channels: tuple[int, int], inner: UNetConfig) -> UNetConfig:
    return UNetConfig(
        channels=channels,
        num_resnets=(1, 1),
        num_attention_layers=(0, 0),
        mid_blocks=False,
        temb_dim=128,
        num_groups=16,
        inner=inner,
    )


def run_demo(out: Path, steps: int, quiet: bool, say: Say) -> DemoResult:
    """Run the whole pipeline in folders below `out`; ends with `out/report.html`."""
    began = time.perf_counter()
    stages: list[Stage] = []

    def timed(name: str, work: Callable[[], T], outcome: Callable[[T], str]) -> T:
        say(f"{name} ...")
        start = time.perf_counter()
        value = work()
        stages.append(Stage(name, time.perf_counter() - start, outcome(value)))
        say(f"{name}: {stages[-1].outcome} ({stages[-1].seconds:.0f} s)")
        return value

    model, bundle = out / "model", out / "bundle"
    timed(
        f"Training on {len(CAPTIONS)} emoji",
        lambda: _train(model, steps, quiet, say),
        lambda c: f"{c.side} px model folder",
    )
    previews = timed(
        "Sampling every scale",
        lambda: _sample(model),
        lambda p: f"{len(SHOWN)} prompts, {len(p)} steps",
    )
    timed("Converting", lambda: _convert(model, bundle), lambda b: f"{b:.1f} MB at fp16")
    bundles = {"fp16": bundle}
    for bits in BITS:
        bundles[f"{bits} bits"] = out / f"bundle_{bits}bit"

    def compress() -> float:
        return min(_palettize(bundle, bundles[f"{bits} bits"], bits) for bits in BITS)

    timed("Palettizing", compress, lambda mb: f"{len(BITS)} variants, the smallest {mb:.1f} MB")
    variants = timed(
        "Verifying without Core ML",
        lambda: [_variant(name, path, model, previews) for name, path in bundles.items()],
        lambda v: f"fp16 worst {min(v[0].psnr_by_side.values()):.1f} dB",
    )
    proofs: list[Proof] = []
    if has_coreai():
        proofs = timed(
            "Proving by Apple's runtime",
            lambda: _proofs(model, bundle, out / "bundle_coreai"),
            lambda p: f"{len(p)} packages, the lowest {min(one.apple for one in p):.1f} dB",
        )
    page = out / "report.html"
    write_report(_report(bundle, model, steps, stages, variants, previews, proofs), page)
    return DemoResult(page, time.perf_counter() - began, variants)


def _train(model: Path, steps: int, quiet: bool, say: Say) -> ModelConfig:
    from mdm_apple.torch.open_run import open_learner
    from mdm_apple.training.run import run_job
    from mdm_apple.training.start import Job

    train = TrainConfig(
        steps=steps,
        batch_size=24,
        lr=2e-3,
        embedding_lr_scale=3.0,
        warmup_steps=20,
        decay_share=0.5,
        ema_decay=0.95,
        save_every=max(1, steps // 4),
        log_every=max(1, steps // 60),
    )
    job = Job(demo_config(), train, "twemoji", model, captions=CAPTIONS, quiet=quiet)
    return run_job(job, open_learner, say).config


def _prompts() -> list[Prompt]:
    return [Prompt(text, seed=7) for text in SHOWN]


def _sample(model: Path) -> list[Preview]:
    from mdm_apple.torch.load import open_runtime

    return list(generate(open_runtime(model), _prompts(), SAMPLER))


def _convert(model: Path, bundle: Path) -> float:
    from mdm_apple.conversion.convert import ConvertOptions, convert
    from mdm_apple.conversion.source.model import load_source

    made = convert(load_source(model, "auto"), bundle, ConvertOptions(), overwrite=True)
    return _megabytes(made)


def _palettize(bundle: Path, out: Path, bits: int) -> float:
    from mdm_apple.conversion.bundle.folder import Bundle
    from mdm_apple.conversion.compress.palettize import palettize

    made, _ = palettize(Bundle.open(bundle), out, bits, overwrite=True)
    return _megabytes(made)


def _megabytes(bundle: Any) -> float:
    from mdm_apple.conversion.bundle.manifest import package_bytes

    return package_bytes(bundle.manifest.packages) / 1e6


def _variant(name: str, path: Path, model: Path, previews: Sequence[Preview]) -> Variant:
    """Fidelity of one bundle: its predictions, and one finished picture."""
    from mdm_apple.conversion.bundle.folder import Bundle
    from mdm_apple.conversion.psnr import picture_psnr
    from mdm_apple.conversion.run.runtime import open_bundle_runtime
    from mdm_apple.conversion.verify.verify import VerifyOptions, verify

    bundle = Bundle.open(path)
    report = verify(bundle, model, VerifyOptions(precision="fp16", prompts=2))
    psnr: dict[int, float] = {}
    for row in report.rows:
        psnr[row.side] = min(psnr.get(row.side, np.inf), row.psnr)
    runtime: Runtime = open_bundle_runtime(path, "fp16")[0]
    picture = finish(generate(runtime, _prompts()[:1], SAMPLER))[0]
    wanted = previews[-1].final
    assert wanted is not None
    return Variant(
        name=name,
        megabytes=_megabytes(bundle),
        packages={p.path: p.bytes / 1e6 for p in bundle.manifest.packages},
        psnr_by_side=psnr,
        picture_psnr=picture_psnr(wanted[0][:1], picture),
        picture=to_pixels(picture)[0],
    )


def _proofs(model: Path, bundle: Path, out: Path) -> list[Proof]:
    """The model once more as Core AI packages, and both formats package by package."""
    from mdm_apple.conversion.bundle.folder import Bundle
    from mdm_apple.conversion.bundle.golden import read_golden
    from mdm_apple.conversion.convert import ConvertOptions, convert
    from mdm_apple.conversion.coreai.runtime import AppleRuntime
    from mdm_apple.conversion.run.packages import executor
    from mdm_apple.conversion.source.model import load_source
    from mdm_apple.conversion.verify.formats import rows_of_formats
    from mdm_apple.conversion.verify.parts import rows_against_torch

    source, one = load_source(model, "auto"), Bundle.open(bundle)
    other = convert(source, out, ConvertOptions(format="coreai"), overwrite=True)
    ours, apple, golden = executor("fp16"), AppleRuntime(), one.manifest.golden
    text, record = read_golden(one.file(golden.path), golden, one.sides)
    rows = (
        rows_against_torch(one, source, ours, "fp16"),
        rows_against_torch(other, source, apple, "fp16"),
        rows_of_formats((one, ours), (other, apple), text, record, "fp16"),
    )
    apple.close()
    return [Proof(a.package, a.psnr, b.psnr, c.psnr) for a, b, c in zip(*rows, strict=True)]


def _report(
    bundle: Path,
    model: Path,
    steps: int,
    stages: list[Stage],
    variants: list[Variant],
    previews: Sequence[Preview],
    proofs: list[Proof],
) -> Report:
    from mdm_apple.config.shapes import encoder_shapes, parameter_count
    from mdm_apple.conversion.bundle.folder import Bundle

    config = demo_config()
    assert config.text is not None
    assert config.text.encoder is not None
    final = previews[-1].final
    assert final is not None
    real = open_dataset("twemoji", config.side)
    names = real.captions()
    levels = [to_pixels(level) for level in final]
    gallery = [
        [real.item(names.index(text)).image, *(level[k] for level in reversed(levels))]
        for k, text in enumerate(SHOWN)
    ]
    return Report(
        prompts=list(SHOWN),
        gallery=gallery,
        strips=[(text, _strip(previews, SHOWN.index(text))) for text in IN_STEPS],
        sides=list(reversed(config.sides)),
        stages=stages,
        metrics=read_metrics(model / METRICS),
        variants=variants,
        pictures=len(CAPTIONS),
        steps=steps,
        parameters=parameter_count(config.model)
        + sum(math.prod(s) for s in encoder_shapes(config.text.encoder).values()),
        provenance=Bundle.open(bundle).manifest.provenance,
        proofs=proofs,
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    )


def _strip(previews: Sequence[Preview], row: int) -> Pixels:
    """Every second step of one picture, ending with the finished picture."""
    shown = [p.x0 for p in previews[::2]] + [previews[-1].final or []]
    return tile_steps([[to_pixels(level)[row] for level in step] for step in shown])
