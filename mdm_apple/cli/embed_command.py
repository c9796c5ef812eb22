"""`mdm embed`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import click

from mdm_apple.bundled_models import find_folder
from mdm_apple.cli.model_options import FILE, FOLDER
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
)
from mdm_apple.cli.progress import progress_bar
from mdm_apple.config.model import TextConfig
from mdm_apple.data.clips.check_clips import holds_clips
from mdm_apple.data.clips.open_clips import captions_of_clips
from mdm_apple.data.open import MOTION, SCENES, TWEMOJI, open_dataset
from mdm_apple.errors import MdmError, require
from mdm_apple.open_model import TrainingBackend, default_backend
from mdm_apple.storage.model_folder import load_model_config, with_encoder_hash
from mdm_apple.text.captions import as_text, check_text, read_captions
from mdm_apple.text.encoder_folder import ENCODER_FOLDER, read_encoder_folder
from mdm_apple.text.feature_cache import FeatureKey, embed_captions
from mdm_apple.text.unread import tokenizer_in_use, unread_remarks


@dataclass(frozen=True)
class EmbedRequest:
    """The options of `mdm embed`."""

    model: str
    prompts: tuple[str, ...]
    captions: Path | None
    data: str | None
    text_encoder: Path | None
    backend: TrainingBackend | None
    batch_size: int
    out: Path
    overwrite: bool


@click.command(
    epilog="""\b
Examples:
  mdm embed --model flickr64 --data photos --out photos.features
  mdm embed --model flickr64 --prompt "a corgi on a beach" --prompt "a tea cup" --out app.features
"""
)
@click.option("--model", metavar="NAME", required=True, help="Model whose text encoder is used.")
@click.option("--prompt", "prompts", multiple=True, help="May be repeated.")
@click.option("--captions", type=FILE, help="A file of prompts, one per line.")
@click.option(
    "--data", metavar="twemoji|scenes|motion|DIR", help="Use every caption of these pictures."
)
@click.option("--text-encoder", type=FOLDER, help="Folder of the frozen encoder.")
@click.option(
    "--backend",
    type=click.Choice(get_args(TrainingBackend)),
    help="Default: mlx on Apple silicon, else torch; the other if only that is installed.",
)
@click.option("--batch-size", type=click.IntRange(1, 1024), default=32, show_default=True)
@click.option("--out", type=FILE, required=True, help="File to make.")
@overwrite_option
@output_options
@filling(EmbedRequest)
def command(request: EmbedRequest, output: Output) -> None:
    """Compute text features once.

    Training then never holds the encoder in memory, and an app can ship prompts without it. The
    file records its encoder and tokenizer, and is refused with any others.
    """
    out, folder = request.out, find_folder(request.model).path
    refuse_existing(out, request.overwrite)
    config = with_encoder_hash(folder, load_model_config(folder))
    if config.text is None:
        raise MdmError(f"{request.model}: this model takes no text.")
    captions = _captions(request.prompts, request.captions, request.data)
    source = request.text_encoder or folder / ENCODER_FOLDER
    tokenizer = tokenizer_in_use(folder, config, request.text_encoder)
    for remark in unread_remarks("captions", captions, tokenizer, config.text.max_tokens):
        output.say(remark)
    key = FeatureKey.of(_named(config.text, source, folder))
    if (request.backend or default_backend()) == "mlx":
        require("mlx.core")
        from mdm_apple.mlx.text import open_frozen_text
    else:
        require("torch")
        from mdm_apple.torch.text import open_frozen_text

    encode = open_frozen_text(folder, config, encoder_folder=request.text_encoder)
    with progress_bar(output, "caption") as progress:
        count = embed_captions(
            captions, encode, out, key, batch_size=request.batch_size, progress=progress
        )
    size = out.stat().st_size
    output.result(
        {"out": str(out), "captions": count, "bytes": size},
        f"{out}: {count} captions, {size / 1e6:.1f} MB.",
    )


def _named(text: TextConfig, source: Path, folder: Path) -> TextConfig:
    """The text settings with the hashes of the encoder in `source`, if there is one.

    Refuses another encoder than the one whose hash the model has.
    """
    if not source.is_dir():
        return text
    found = read_encoder_folder(source)
    encoder, tokenizer = found.encoder_sha256(), found.tokenizer_sha256()
    if text.encoder_sha256 not in (None, encoder):
        raise MdmError(
            f"{source}: holds another text encoder than {folder} names, and its features would be "
            "mistaken for that encoder's. Fetch the one that config.json names."
        )
    tokenizer = text.tokenizer_sha256 or tokenizer
    return dataclasses.replace(text, encoder_sha256=encoder, tokenizer_sha256=tokenizer)


def _captions(prompts: tuple[str, ...], listed: Path | None, data: str | None) -> list[str]:
    if [bool(prompts), listed is not None, data is not None].count(True) != 1:
        raise MdmError("give one of --prompt, --captions and --data.")
    if listed is not None:
        return list(read_captions(listed))
    if data is None:
        texts = list(map(as_text, prompts))
        for text in texts:
            check_text("prompt", text)
        return texts
    if data not in (TWEMOJI, SCENES) and holds_clips(Path(data)):
        return captions_of_clips(Path(data))
    frames = 4 if data.partition(":")[0] == MOTION else 1  # captions depend on neither
    return list(open_dataset(data, side=8, frames=frames).captions())
