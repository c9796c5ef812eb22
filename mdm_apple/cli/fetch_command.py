"""`mdm fetch`."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import click
from tqdm import tqdm

from mdm_apple.apple.download import (
    BASE_URL,
    CheckpointName,
    Fetched,
    download_size,
    fetch,
    record_of,
)
from mdm_apple.cli.import_command import PUBLISHED, import_checkpoint
from mdm_apple.cli.model_options import FOLDER
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
)
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
TEXT_ENCODER = "text-encoder"


@dataclass(frozen=True)
class FetchRequest:
    """The options of `mdm fetch`."""

    name: str
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
@click.argument("name", type=click.Choice([*PRESET_OF, TEXT_ENCODER]))
@click.option("--out", type=FOLDER, required=True, help="Model folder.")
@click.option("--accept", is_flag=True, help="Go ahead with what is known of the licence.")
@click.option("--base-url", default=BASE_URL, help="Where the checkpoints are.")
@click.option("--keep-pth", is_flag=True, help="Keep the downloaded .pth after the import.")
@overwrite_option
@output_options
@filling(FetchRequest)
def command(request: FetchRequest, output: Output) -> None:
    """Download one of Apple's checkpoints and import it, or the text encoder of a model folder.

    An interrupted download continues where it stopped.
    """
    if request.name == TEXT_ENCODER:
        _fetch_encoder(request.out, output)
        return
    for known, preset_name in PRESET_OF.items():
        if known == request.name:
            _fetch_checkpoint(known, preset_name, request, output)


def _fetch_checkpoint(
    name: CheckpointName, preset_name: str, request: FetchRequest, output: Output
) -> None:
    out = request.out
    downloads = out.with_name(f"{out.name}.download")
    refuse_existing(out, request.overwrite)
    output.say(f"{name}: {PUBLISHED}.")
    if not request.accept:
        _ask(_size(name, request.base_url, out))
    try:
        fetched = _download(name, downloads, request.base_url, output)
        import_checkpoint(fetched.path, preset(preset_name), out, license_note=PUBLISHED)
        if not request.keep_pth:
            for file in (fetched.path, record_of(fetched.path)):
                file.unlink(missing_ok=True)
    finally:
        remove_empty([downloads])
    output.result(
        {"out": str(out), "url": fetched.url, "sha256": fetched.sha256, "bytes": fetched.size},
        f"{out}: imported from {fetched.url}, SHA-256 {fetched.sha256}.",
    )


def _size(name: CheckpointName, base_url: str, out: Path) -> str:
    """What the download takes and what the disk has."""
    there = next(p for p in (out, *out.absolute().parents) if p.is_dir())
    free = f"{shutil.disk_usage(there).free / 1e9:.1f} GB are free"
    size = download_size(name, base_url)
    if size is None:
        return f"The server does not say how large it is; {free}."
    return f"It is {size / 1e9:.2f} GB; {free}."


def _ask(size: str) -> None:
    """Raises MdmError where the answer is no, or nobody is there to answer."""
    click.echo(size, err=True)
    refusal = MdmError("nothing was downloaded; add --accept to agree beforehand.")
    if not sys.stdin.isatty():
        raise refusal
    if not click.confirm("Download it?", err=True):
        raise refusal


def _download(name: CheckpointName, folder: Path, base_url: str, output: Output) -> Fetched:
    with tqdm(unit="B", unit_scale=True, disable=output.quiet) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return fetch(name, folder, base_url, progress=progress)


def _fetch_encoder(folder: Path, output: Output) -> None:
    """Fetch the frozen encoder that the model folder names, and note its hashes there."""
    config = load_model_config(folder)
    text = config.text
    if text is None or text.source is None:
        raise MdmError(f"{folder}: names no text encoder to fetch.")
    require("huggingface_hub")
    from mdm_apple.text.encoder_folder import fetch_encoder

    fetched = fetch_encoder(text.source, text.revision, folder / ENCODER_FOLDER)
    found = fetched.files.config
    if text.encoder and dataclasses.replace(found, dropout=text.encoder.dropout) != text.encoder:
        raise MdmError(
            f"{fetched.source}: is another text encoder than {folder} was trained with; correct "
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
