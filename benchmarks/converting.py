"""Time to make and to open a bundle of the embedded model."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness import Row, in_turn
from mdm_apple.bundled_models import EMOJI
from mdm_apple.config.types import Format, Layout
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.convert import ConvertOptions, convert
from mdm_apple.conversion.source.model import load_source
from mdm_apple.storage.model_folder import weights_sha256


def convert_emoji(layout: Layout, repetitions: int, work: Path) -> Row:
    """From a loaded model to a whole bundle, including its golden record."""
    source = load_source(EMOJI)
    out = work / f"emoji-{layout}.bundle"

    def run() -> None:
        convert(source, out, ConvertOptions(layout, compute="ane"), overwrite=True)

    (mine,) = in_turn(run, repetitions=repetitions)
    sha256 = weights_sha256(EMOJI)
    return Row(f"convert the emoji model, {layout}", mine, model_sha256=sha256)


def convert_emoji_to_coreai(repetitions: int, work: Path) -> Row:
    """The same model in Core AI's format, beside Core ML's."""
    source = load_source(EMOJI)

    def run(form: Format) -> None:
        out = work / f"emoji-{form}.bundle"
        convert(source, out, ConvertOptions(format=form), overwrite=True)

    mine, other = in_turn(lambda: run("coreai"), lambda: run("coreml"), repetitions=repetitions)
    return Row(
        "convert the emoji model to Core AI",
        mine,
        "to Core ML",
        other,
        model_sha256=weights_sha256(EMOJI),
    )


def open_emoji(repetitions: int, work: Path) -> Row:
    """Opening a bundle, which checks its schema and the hash of every file."""
    out = work / "emoji-opened.bundle"
    if not out.exists():
        convert(load_source(EMOJI), out, ConvertOptions("nested", compute="ane"))
    (mine,) = in_turn(lambda: Bundle.open(out), repetitions=repetitions)
    return Row("open and check the emoji bundle", mine, model_sha256=weights_sha256(EMOJI))
