"""README.md of a bundle: what the folder is and how to use it, from its manifest alone."""

from __future__ import annotations

from .clips import frames_and_sides
from .manifest import Manifest, PackageInfo, package_bytes

README = "README.md"

_SYSTEMS = {
    "iOS17": "iOS 17 or macOS 14",
    "iOS18": "iOS 18 or macOS 15",
    "iOS26": "iOS 26 or macOS 26",
    "iOS27": "iOS 27 or macOS 27",
}
_EXTRAS = {"coreml": "convert", "coreai": "coreai"}
_OFTEN = {"text": "once per prompt", "prompt": "once per prompt", "step": "once per step"}


def readme(manifest: Manifest) -> str:
    """The text for whoever finds the folder, in plain words."""
    kind, made = (
        ("clips", _clips(manifest)) if manifest.video else ("pictures", _pictures(manifest))
    )
    out = "clip.png" if manifest.video else "picture.png"
    packages = {p.path: p for p in manifest.packages}
    return "\n".join(
        (
            f"# A model that makes {kind}, for Apple devices",
            "",
            f"This folder makes {made}. It needs "
            f"{_SYSTEMS[manifest.target]} or later, and about "
            f"{_megabytes(manifest.peak_memory.minimal)} MB of memory at least "
            f"({_megabytes(manifest.peak_memory.resident)} MB if all of it stays loaded; both are "
            "predicted).",
            "",
            _text(manifest),
            "",
            "## Try it",
            "",
            f"    pip install 'mdm-apple[{_EXTRAS[manifest.format]}]'",
            f"    mdm sample --model THIS_FOLDER {_request(manifest)}--out {out}",
            "    mdm verify THIS_FOLDER",
            "",
            f"On a Mac add `--backend {manifest.format}` to the first. In an app: the Swift "
            "package MatryoshkaDiffusion of mdm-apple takes the folder as it is.",
            "",
            "## What is inside",
            "",
            f"Variant `{manifest.variant}`, layout `{manifest.layout}`, "
            f"{_megabytes(package_bytes(manifest.packages))} MB of packages.",
            "",
            "| package | MB | weights | runs | made for |",
            "|---|---:|---|---|---|",
            *map(_row, packages.values()),
            "",
            "`manifest.json` says how they fit together. It holds the SHA-256 of every file: a "
            "file that is changed, missing or added makes the whole folder be refused.",
            f"`{manifest.tables}` holds the noise and time tables, `{manifest.golden.path}` "
            "what the model answered before it was converted, for `mdm verify`.",
            "",
            "## Licence",
            "",
            f"- Licence of the weights: {manifest.provenance.license or 'not stated'}",
            f"- Source: {manifest.provenance.source or 'not stated'}",
            f"- Made from: {manifest.provenance.base_model or 'not stated'}",
            "",
        )
    )


def _pictures(manifest: Manifest) -> str:
    sides = [f"{level.side} x {level.side}" for level in manifest.levels]
    inside = f", and the same picture at {', '.join(sides[1:])} on the way" if sides[1:] else ""
    return f"pictures of {sides[0]} pixels{inside}"


def _clips(manifest: Manifest) -> str:
    assert manifest.video is not None
    (frames, side), *inner = frames_and_sides(manifest)
    shown = [f"{n} of {s} x {s}" for n, s in inner]
    inside = f", and on the way {', '.join(shown)}" if shown else ""
    return (
        f"clips of {frames} frames of {side} x {side} pixels, {manifest.video.fps} a second{inside}"
    )


def _row(package: PackageInfo) -> str:
    made_for = "Neural Engine" if package.compute == "cpuAndNeuralEngine" else "GPU"
    bits = "16 bits" if package.weight_bits == 16 else f"from {package.weight_bits} bits"
    return (
        f"| `{package.path}` | {package.bytes / 1e6:.1f} | {bits} | {_OFTEN[package.phase]} | "
        f"{made_for} |"
    )


def _text(manifest: Manifest) -> str:
    if manifest.text is None:
        return "It takes no prompts."
    if manifest.text.encoder and manifest.text.tokenizer:
        return f"It takes prompts of up to {manifest.text.max_tokens} tokens."
    return (
        "It has no text encoder of its own: prompts are turned into features beforehand, by "
        "`mdm embed`, and these go with the app."
    )


def _request(manifest: Manifest) -> str:
    """Options for a first picture, each with a space behind it."""
    prompt = "red heart moving up" if manifest.video else "red heart"
    options = '--prompt "" ' if manifest.text is None else f'--prompt "{prompt}" '
    if manifest.text is not None and not (manifest.text.encoder and manifest.text.tokenizer):
        options += "--features FILE "
    if manifest.student is not None:
        options += "--sampler student --steps 1 "
    return options


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f}" if size >= 10e6 else f"{size / 1e6:.1f}"
