"""A trained model, slim enough to ship: averaged weights alone, in 16 bits.

Enters: a model folder as a training run leaves it. Leaves: a model folder without optimiser, raw
weights and history, that samples, converts, and starts new runs by --init. What suits the model
when it samples lies beside it in sampling.json.
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
        precision: of the weights on disk.
        sampling: what suits the model; fields that are None are taken from `source`.

    Raises ConfigError where the model cannot be sampled like this, CheckpointError where a weight
    does not fit the number type or the folder is damaged.
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
    if (source / CAPTIONS).is_file():  # a distillation of the new folder starts from them
        write_captions(out / CAPTIONS, read_captions(source / CAPTIONS))
    if suits == NOTHING_SAID:
        (out / SAMPLING).unlink(missing_ok=True)  # of a model that was here before
    else:
        write_sampling(out, suits)
    return config


def suitable_sampling(
    source: Path, config: ModelConfig, asked: SamplingDefaults
) -> SamplingDefaults:
    """What was asked for, completed by what lies beside `source` or suits a student.

    Raises ConfigError where the model cannot be sampled like this.
    """
    known = read_sampling(source, config.distilled)
    sampler = asked.sampler or known.sampler
    # a number of steps suits the sampler that it was chosen for
    steps = asked.steps or (known.steps if sampler == known.sampler else None)
    if asked.steps is not None and sampler is None:
        sampler = SampleSettings().sampler_config(known).kind
    guidance = known.guidance if asked.guidance is None else asked.guidance
    suits = SamplingDefaults(sampler, steps, guidance)
    settings = SampleSettings(full_table=suits.steps is None)
    check_request(config, (), settings.sampler_config(suits), None)
    return suits
