"""`mdm fetch`."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import click

from mdm_apple.apple_checkpoints.checkpoint import as_apple_reads
from mdm_apple.apple_checkpoints.download import (
    BASE_URL,
    CheckpointName,
    Fetched,
    Outlook,
    fetch,
    look_ahead,
    record_of,
)
from mdm_apple.bundled_models import find_folder
from mdm_apple.cli.import_command import PUBLISHED, import_checkpoint
from mdm_apple.cli.model_options import FOLDER
from mdm_apple.cli.output import Output, filling, output_options, overwrite_option, refuse_existing
from mdm_apple.cli.progress import progress_bar
from mdm_apple.config.presets import preset
from mdm_apple.errors import MdmError, require
from mdm_apple.storage.files import remove_empty
from mdm_apple.storage.model_folder import load_model_config, save_config
from mdm_apple.text.encoder_folder import ENCODER_FOLDER

PRESET_OF: dict[CheckpointName, str] = {
    "flickr64": "mdm64",
    "flickr256": "mdm256",
    "flickr1024": "mdm1024",
}


@dataclass(frozen=True)
class FetchRequest:
    """The options of `mdm fetch`."""

    name: CheckpointName | Literal["text-encoder"]
    out: Path
    accept: bool
    base_url: str
    keep_pth: bool
    overwrite: bool


@click.command(
    epilog="""\b
Examples:
  mdm fetch flickr64 --out flickr64 --accept
  mdm fetch text-encoder --out flickr64
"""
)
@click.argument("name", type=click.Choice([*get_args(CheckpointName), "text-encoder"]))
@click.option(
    "--out",
    type=FOLDER,
    required=True,
    metavar="DIR",
    help="Model folder to make, or the one to add its text encoder to.",
)
@click.option(
    "--accept", is_flag=True, help="Agree in advance to the licence and the size of a checkpoint."
)
@click.option(
    "--base-url", default=BASE_URL, metavar="URL", help="Address of Apple's checkpoints or a copy."
)
@click.option("--keep-pth", is_flag=True, help="Keep the .pth of a checkpoint after the import.")
@overwrite_option
@output_options
@filling(FetchRequest)
def command(request: FetchRequest, output: Output) -> None:
    """Download one of Apple's checkpoints and import it, or the text encoder of a model folder.

    For a checkpoint, shows the size of the download and asks first; a text encoder is downloaded
    without a question. An interrupted download continues where it stopped.
    """
    if request.name == "text-encoder":
        _refuse_options_of_checkpoints(request)
        _fetch_encoder(request.out, output)
    else:
        _fetch_checkpoint(request.name, request, output)


def _refuse_options_of_checkpoints(request: FetchRequest) -> None:
    """A text encoder comes from Hugging Face into an existing folder, and nobody is asked."""
    given = {
        "--accept": request.accept,
        "--base-url": request.base_url != BASE_URL,
        "--keep-pth": request.keep_pth,
        "--overwrite": request.overwrite,
    }
    for option, is_given in given.items():
        if is_given:
            raise MdmError(f"{option} is for checkpoints only; leave it out for text-encoder.")


def _fetch_checkpoint(name: CheckpointName, request: FetchRequest, output: Output) -> None:
    out = request.out
    downloads = out.with_name(f"{out.name}.download")
    refuse_existing(out, request.overwrite)
    output.say(f"{name}: {PUBLISHED}.")
    if not (request.accept or sys.stdin.isatty()):
        raise MdmError("nothing was downloaded; add --accept to agree in advance.")
    ahead = look_ahead(name, downloads, request.base_url)
    output.say(f"{name}: {_amounts(ahead)}.")
    if not (request.accept or click.confirm("Download it?", err=True)):
        raise MdmError("nothing was downloaded, because you declined.")
    try:
        fetched = _download(name, downloads, request.base_url, output)
        config = as_apple_reads(preset(PRESET_OF[name]))
        import_checkpoint(fetched.path, config, out, license_note=PUBLISHED)
        if not request.keep_pth:
            for file in (fetched.path, record_of(fetched.path)):
                file.unlink(missing_ok=True)
    finally:
        remove_empty([downloads])
    output.result(
        {"out": str(out), "url": fetched.url, "sha256": fetched.sha256, "bytes": fetched.size},
        f"{out}: imported from {fetched.url}, SHA-256 {fetched.sha256}.",
    )


def _amounts(ahead: Outlook) -> str:
    """How much will be downloaded, and how much room there is."""
    room = f"{ahead.free / 1e9:.1f} GB are free on the disk"
    if ahead.size is None:
        return f"the server does not say how large the download is; {room}"
    left = f"{(ahead.size - ahead.present) / 1e6:,.1f} MB to download"
    if ahead.present:
        left += f", {ahead.present / 1e6:,.1f} MB of it are on the disk"
    return f"{left}; {room}"


def _download(name: CheckpointName, folder: Path, base_url: str, output: Output) -> Fetched:
    with progress_bar(output, "B", unit_scale=True) as progress:
        return fetch(name, folder, base_url, progress=progress)


def _fetch_encoder(folder: Path, output: Output) -> None:
    """Fetch the frozen encoder that the model folder names, and note its hashes there."""
    named = find_folder(folder)
    config = load_model_config(named.path)
    text = config.text
    if text is None or text.source is None:
        raise MdmError(f"{folder}: names no text encoder to fetch.")
    require("huggingface_hub")
    from mdm_apple.text.encoder_folder import fetch_encoder

    def announce(size: int, free: int) -> None:
        output.say(
            f"{text.source}: {size / 1e6:,.1f} MB to download; {free / 1e9:.1f} GB are free on "
            "the disk."
        )

    fetched = fetch_encoder(text.source, text.revision, folder / ENCODER_FOLDER, announce)
    found = fetched.files.config
    if text.encoder and dataclasses.replace(found, dropout=text.encoder.dropout) != text.encoder:
        raise MdmError(
            f"{fetched.source}: is not the text encoder that {folder} was trained with; correct "
            "text.source in its config.json."
        )
    noted = dataclasses.replace(
        text,
        revision=fetched.revision,
        encoder_sha256=fetched.encoder_sha256,
        tokenizer_sha256=fetched.tokenizer_sha256,
    )
    save_config(folder, dataclasses.replace(config, text=noted))
    output.result(
        {"out": str(folder), "source": fetched.source, "revision": fetched.revision},
        f"{folder}: {fetched.source} at {fetched.revision}.",
    )
