"""A trained model, small enough to ship: averaged weights only, in 16 bits.

Input: a model folder as a training run leaves it. Output: a model folder without optimiser state,
raw weights and history, for sampling, converting, and starting new runs with --init. Its
sampling.json holds the sampling settings that suit the model.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mdm_apple.config.model import ModelConfig, Provenance
from mdm_apple.sampling.generate import check_request
from mdm_apple.sampling.pictures import Precision
from mdm_apple.sampling.settings import (
    SAMPLING,
    SampleSettings,
    SamplingDefaults,
    read_sampling,
    write_sampling,
)
from mdm_apple.storage import model_folder
from mdm_apple.storage.tensorfile import Storage
from mdm_apple.text.captions import CAPTIONS, read_captions, write_captions

STORAGE: dict[Precision, Storage] = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
NOTHING_SAID = SamplingDefaults()


def export_model(
    source: Path,
    out: Path,
    provenance: Provenance,
    precision: Precision = "fp16",
    sampling: SamplingDefaults = NOTHING_SAID,
) -> ModelConfig:
    """Write the model of `source` to `out`; fields of `provenance` that are None are kept.

    Args:
        precision: number type of the weights on disk.
        sampling: settings that suit the model; fields that are None are taken from `source`.

        Raises ConfigError if the model cannot be sampled with these settings, CheckpointError if a
        weight does not fit the number type or the folder is damaged.
    """
    config = model_folder.load_model_config(source)
    suits = suitable_sampling(source, config, sampling)
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
        storage=STORAGE[precision],
    )
    if (source / CAPTIONS).is_file():  # a distillation from the new folder uses them
        write_captions(out / CAPTIONS, read_captions(source / CAPTIONS))
    if suits == NOTHING_SAID:
        (out / SAMPLING).unlink(missing_ok=True)  # left by a previous model
    else:
        write_sampling(out, suits)
    return config


def suitable_sampling(
    source: Path, config: ModelConfig, asked: SamplingDefaults
) -> SamplingDefaults:
    """The requested settings, completed from the file beside `source` or for a student.

    Raises ConfigError if the model cannot be sampled with these settings.
    """
    known = read_sampling(source, config.distilled)
    sampler = asked.sampler or known.sampler
    # a default step count belongs to its own sampler
    steps = asked.steps or (known.steps if sampler == known.sampler else None)
    if asked.steps is not None and sampler is None:
        sampler = SampleSettings().sampler_config(known).kind
    guidance = known.guidance if asked.guidance is None else asked.guidance
    suits = SamplingDefaults(sampler, steps, guidance)
    settings = SampleSettings(full_table=suits.steps is None)
    check_request(config, (), settings.sampler_config(suits), None)
    return suits
