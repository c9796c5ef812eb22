"""`mdm embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from mdm_apple.cli.model_options import (
    FILE,
    FOLDER,
    backend_option,
    default_backend,
    require_backend,
)
from mdm_apple.cli.output import Output, output_options, overwrite_option, refuse_existing
from mdm_apple.errors import MdmError
from mdm_apple.storage.model_folder import load_model_config, with_encoder_hash
from mdm_apple.text.captions import read_captions
from mdm_apple.text.encoder_folder import ENCODER_FOLDER, read_encoder_folder
from mdm_apple.text.feature_cache import FeatureKey, embed_captions


@click.command(
    epilog="""\b
Examples:
  mdm embed --model flickr64 --data photos --out photos.features
  mdm embed --model flickr64 --prompt "a corgi on a beach" --prompt "a tea cup" --out app.features
"""
)
@click.option("--model", type=FOLDER, required=True, help="Model folder whose encoder is used.")
@click.option("--prompt", "prompts", multiple=True, help="Repeat for several.")
@click.option("--captions", "captions_file", type=FILE, help="A file of prompts, one a line.")
@click.option("--data", metavar="twemoji|DIR", help="Every caption of these pictures.")
@click.option("--text-encoder", type=FOLDER, help="Folder of the frozen encoder.")
@backend_option
@click.option("--batch-size", type=click.IntRange(1, 1024), default=32, show_default=True)
@click.option("--out", type=FILE, required=True, help="File to make.")
@overwrite_option
@output_options
def command(**options: Any) -> None:
    """Compute text features once.

    Training then never holds the encoder in memory, and an app can ship prompts without it. The
    file remembers encoder and tokenizer and is refused for any other.
    """
    output = Output(options["as_json"], options["quiet"])
    out, folder = options["out"], options["model"]
    refuse_existing(out, options["overwrite"])
    config = with_encoder_hash(folder, load_model_config(folder))
    if config.text is None:
        raise MdmError(f"{folder}: this model takes no text.")
    captions = _captions(options["prompts"], options["captions_file"], options["data"])
    key = FeatureKey.of(config.text)
    source = options["text_encoder"] or folder / ENCODER_FOLDER
    if source.is_dir() and read_encoder_folder(source).encoder_sha256() != key.encoder_sha256:
        raise MdmError(
            f"{source}: holds another text encoder than {folder} names; its features would be "
            "taken for that one's. Fetch the one that config.json names."
        )
    backend = options["backend"] or default_backend()
    require_backend(backend)
    if backend == "mlx":
        from mdm_apple.mlx.text import open_frozen_text
    else:
        from mdm_apple.torch.text import open_frozen_text

    encode = open_frozen_text(folder, config, encoder_folder=options["text_encoder"])
    with tqdm(unit="caption", disable=output.quiet) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        count = embed_captions(
            captions, encode, out, key, batch_size=options["batch_size"], progress=progress
        )
    size = Path(out).stat().st_size
    output.result(
        {"out": str(out), "captions": count, "bytes": size},
        f"{out}: {count} captions, {size / 1e6:.1f} MB.",
    )


def _captions(prompts: tuple[str, ...], listed: Path | None, data: str | None) -> list[str]:
    if [bool(prompts), listed is not None, data is not None].count(True) != 1:
        raise MdmError("give one of --prompt, --captions and --data.")
    if listed is not None:
        return list(read_captions(listed))
    if data is None:
        return list(prompts)
    from mdm_apple.data.open import open_dataset

    return list(open_dataset(data, side=8).captions())
