"""Opening a training run in MLX: network and encoder."""

from __future__ import annotations

import mlx.core as mx

from mdm_apple.config.model import ModelConfig
from mdm_apple.mlx.learner import MlxPictureLearner
from mdm_apple.mlx.nested_unet import build_unet
from mdm_apple.mlx.t5 import T5Encoder
from mdm_apple.mlx.text import EncodeText, ThroughEncoder, open_text
from mdm_apple.mlx.weights import load_weights
from mdm_apple.text.tokenizer import Tokenizer
from mdm_apple.training.start import Job, Start, common_prefix


def open_learner(
    config: ModelConfig, job: Job, tokenizer: Tokenizer | None, start: Start
) -> MlxPictureLearner:
    """A learner with fresh weights or the weights of `start`; `run.OpenLearner` for MLX.

    Every process of a launch draws the same fresh weights, from the seed.
    """
    mx.random.seed(job.train.seed)
    net = build_unet(config.model)
    if start.weights is not None:
        load_weights(net, start.weights, common_prefix(start.weights))
    encoder, encode = _text(config, job, tokenizer, start)
    return MlxPictureLearner(
        net, config, job.train, encode, encoder, dropout_by_row=start.dropout_by_row
    )


def _text(
    config: ModelConfig, job: Job, tokenizer: Tokenizer | None, start: Start
) -> tuple[T5Encoder | None, EncodeText | None]:
    text = config.text
    if text is None:
        return None, None
    if tokenizer is None or text.encoder is None:
        folder = job.init or job.out
        encode = open_text(folder, config, features=job.features, encoder_folder=job.text_encoder)
        return None, encode
    encoder = T5Encoder(text.encoder)
    if start.encoder is not None:
        load_weights(encoder, start.encoder)
    return encoder, ThroughEncoder(encoder, tokenizer, text)
