"""`mdm import`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import click

from mdm_apple.apple_checkpoints.checkpoint import as_apple_reads, import_apple
from mdm_apple.apple_checkpoints.yaml_file import read_apple_yaml
from mdm_apple.cli.model_options import FILE, FOLDER, preset_option
from mdm_apple.cli.output import Output, filling, output_options, overwrite_option, refuse_existing
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.shapes import parameter_count
from mdm_apple.errors import MdmError
from mdm_apple.sampling.settings import forget_sampling
from mdm_apple.storage.model_folder import save_model
from mdm_apple.text.encoder_folder import read_encoder_folder

# all we know about the published weights; the checkpoints carry no licence of their own
PUBLISHED = (
    "published by Apple beside github.com/apple/ml-mdm; no licence file comes with the weights"
)


@dataclass(frozen=True)
class ImportRequest:
    """The options of `mdm import`."""

    checkpoint: Path
    preset_name: str | None
    yaml: Path | None
    text_encoder: Path | None
    out: Path
    overwrite: bool


@click.command(
    epilog="""\b
Examples:
  mdm import vis_model.pth --preset mdm64 --out flickr64
  mdm import vis_model.pth --yaml configs/models/cc12m_256x256.yaml --out flickr256
"""
)
@click.argument("checkpoint", type=FILE, metavar="FILE.pth")
@preset_option
@click.option("--yaml", type=FILE, metavar="F", help="Apple's configuration file.")
@click.option(
    "--text-encoder",
    type=FOLDER,
    metavar="DIR",
    help="Folder of another T5 than the file's text_model, with --yaml; give it to other commands "
    "as well.",
)
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="Model folder to make.")
@overwrite_option
@output_options
@filling(ImportRequest)
def command(request: ImportRequest, output: Output) -> None:
    """Turn an Apple checkpoint into a model folder.

    Nothing in the file is executed: a parser that knows no classes reads the tensors, and they
    must be exactly those that the configuration names.
    """
    config, notices = _config(request)
    refuse_existing(request.out, request.overwrite)
    for notice in notices:
        output.say(notice)
    import_checkpoint(request.checkpoint, config, request.out, license_note=None)
    count = parameter_count(config.model)
    output.result(
        {"out": str(request.out), "parameters": count, "notices": notices},
        f"{request.out}: {count:,} parameters, {config.side} px.",
    )


def import_checkpoint(
    checkpoint: Path, config: ModelConfig, out: Path, license_note: str | None
) -> None:
    """Check the checkpoint against the configuration and write the model folder."""
    weights = import_apple(checkpoint, config)
    provenance = dataclasses.replace(config.provenance, license=license_note)
    save_model(out, dataclasses.replace(config, provenance=provenance), weights)
    forget_sampling(out)


def _config(request: ImportRequest) -> tuple[ModelConfig, list[str]]:
    """The named configuration, and notices about what reading it left out."""
    if (request.preset_name is None) == (request.yaml is None):
        raise MdmError("give either --preset or --yaml.")
    if request.yaml is None:
        if request.text_encoder is not None:
            raise MdmError("--text-encoder: works with --yaml; a preset has its own encoder.")
        return as_apple_reads(preset(str(request.preset_name))), []
    encoder = None if request.text_encoder is None else read_encoder_folder(request.text_encoder)
    read = read_apple_yaml(request.yaml, None if encoder is None else encoder.config)
    config, text = read.config, read.config.text
    if encoder is not None and text is not None:
        text = dataclasses.replace(
            text,
            source=encoder.folder.name,
            encoder_sha256=encoder.encoder_sha256(),
            tokenizer_sha256=encoder.tokenizer_sha256(),
        )
    provenance = dataclasses.replace(config.provenance, notes=request.yaml.name)
    return dataclasses.replace(config, text=text, provenance=provenance), list(read.notices)
