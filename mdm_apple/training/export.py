"""A trained model, slim enough to ship: averaged weights alone, in 16 bits.

Enters: a model folder as a training run leaves it. Leaves: a model folder without optimiser, raw
weights and history, that samples, converts, and starts new runs by --init.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mdm_apple.config.model import ModelConfig, Provenance
from mdm_apple.sampling.settings import SamplingDefaults, read_sampling, write_sampling
from mdm_apple.storage import model_folder
from mdm_apple.storage.tensorfile import Storage
from mdm_apple.text.captions import CAPTIONS, read_captions, write_captions


def export_model(
    source: Path,
    out: Path,
    provenance: Provenance,
    storage: Storage = "float16",
    suited: SamplingDefaults | None = None,
) -> ModelConfig:
    """Write the model of `source` to `out`; fields of `provenance` that are None are kept.

    Args:
        suited: sampler, steps and guidance for `sampling.json`; what is None comes from the source.

    Raises CheckpointError where a weight does not fit the number type or the folder is damaged.
    """
    config = model_folder.load_model_config(source)
    said = {k: v for k, v in dataclasses.asdict(provenance).items() if v is not None}
    config = dataclasses.replace(config, provenance=dataclasses.replace(config.provenance, **said))
    encoder = model_folder.averaged_encoder(source)
    tokenizer = None if encoder is None else model_folder.load_tokenizer(source)
    model_folder.save_model(
        out,
        config,
        model_folder.load_weights(source, model_folder.averaged(source, "model")),
        text_encoder=encoder,
        tokenizer=tokenizer,
        storage=storage,
    )
    if (source / CAPTIONS).is_file():  # what a distillation of it starts from
        write_captions(out / CAPTIONS, read_captions(source / CAPTIONS))
    known = read_sampling(source, config.distilled).updated(suited or SamplingDefaults())
    if known != SamplingDefaults():
        write_sampling(out, known)
    return config
