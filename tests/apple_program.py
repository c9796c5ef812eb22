"""Pictures made by Apple's own program: a small model that its trainer trained, sampled by prompts.

    MDM_REFERENCE=CHECKOUT python tests/apple_program.py FOLDER

writes what `golden/apple_pictures` holds. It needs a checkout of apple/ml-mdm, and the packages
that this imports: mlx-data, einops, dataclass-wizard before 0.30, simple-parsing and transformers.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

STEPS, SEED = 10, 11
TRAINED = ["a red circle", "two blue squares", "green", "", "a small yellow star on a hill"]
# prompt, negative prompt, guidance scale
PICTURES = [
    ("a red circle", "", 1.0),
    ("a red circle", "", 4.0),
    ("two blue squares on a red hill", "green star", 4.0),
    ("green", "a small yellow star on a hill", 4.0),
    ("", "", 1.0),
    ("", "", 4.0),
]
WORDS = "a red blue green yellow small two circle squares star hill on s".split()  # noqa: SIM905
YAML = """\
model: nested_unet
vision_model: nested_unet
sample_image_size: 32
unet_config:
  attention_levels: []
  conditioning_feature_proj_dim: -1
  masked_cross_attention: 1
  micro_conditioning: 'scale:32'
  num_attention_layers: [0, 0]
  num_resnets_per_resolution: [1, 1]
  resnet_config: {num_groups_norm: 8, use_attention_ffn: false}
  resolution_channels: [16, 16]
  skip_cond_emb: true
  skip_mid_blocks: true
  skip_normalization: true
  temporal_dim: 64
  inner_config:
    attention_levels: [1]
    conditioning_feature_proj_dim: 48
    masked_cross_attention: 0
    micro_conditioning: 'scale:16'
    nesting: true
    num_attention_layers: [0, 1]
    num_resnets_per_resolution: [1, 1]
    resnet_config: {num_groups_norm: 8, use_attention_ffn: true}
    resolution_channels: [32, 32]
    temporal_dim: 64
diffusion_config:
  use_double_loss: true
  no_use_residual: true
  use_vdm_loss_weights: false
  sampler_config:
    num_diffusion_steps: 1000
    prediction_type: V_PREDICTION
    loss_target_type: DDPM
    schedule_type: DEEPFLOYD
    schedule_shifted: true
    threshold_function: CLIP
reader_config:
  image_size: 32
  max_caption_length: 512
  max_token_length: 24
"""


def vocabulary() -> list[tuple[str, float]]:
    """Pieces and scores: T5's special ones, the space, words and letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(f"\u2581{word}", -3.0 - k / 10) for k, word in enumerate(WORDS)]
    return pieces + [(letter, -8.0 - k / 10) for k, letter in enumerate(letters)]


def tokenizer_model() -> bytes:
    """The vocabulary as a SentencePiece model, with the normaliser of T5's."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS),
        model_writer=trained,
        vocab_size=30,
        hard_vocab_limit=False,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(trained.getvalue())
    del proto.pieces[:]
    for index, (piece, score) in enumerate(vocabulary()):
        kind = {0: 3, 1: 3, 2: 2}.get(index, 1)  # control, control, unknown, normal
        proto.pieces.add(piece=piece, score=score, type=kind)
    return proto.SerializeToString()


def encoder(folder: Path) -> None:
    """A small T5 with random weights, in fp16 numbers, as a Hugging Face folder."""
    import transformers

    torch.manual_seed(SEED)
    config = transformers.T5Config(
        vocab_size=len(vocabulary()),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    model.save_pretrained(folder)


def keep_encoder(source: Path, folder: Path) -> None:
    """What a text encoder needs of such a folder; fp32, because it computes in what it has."""
    folder.mkdir(exist_ok=True)
    weights = load_file(source / "model.safetensors")
    kept = {k: v for k, v in weights.items() if k.startswith(("encoder.", "shared."))}
    save_file(kept, folder / "model.safetensors")
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    (folder / "spiece.model").write_bytes(tokenizer_model())


class Program:
    """Apple's program with a small model."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        sys.path.insert(0, str(checkout / "ml-mdm-matryoshka"))
        from ml_mdm.config import get_arguments, get_model, get_pipeline
        from ml_mdm.language_models import factory

        vocab = folder / "t5.vocab"
        vocab.write_text("".join(f"{p}\t{s}\n" for p, s in vocabulary()), encoding="utf-8")
        (folder / "model.yaml").write_text(YAML)
        encoder(folder / "t5")
        self.args = get_arguments(
            [
                "--model",
                "nested_unet",
                "--vocab_file",
                str(vocab),
                "--text-model",
                str(folder / "t5"),
            ],
            mode="demo",
            additional_config_paths=[str(folder / "model.yaml")],
        )
        self.tokenizer, self.language = factory.create_lm(self.args, device=torch.device("cpu"))
        self.args.unet_config.conditioning_feature_dim = self.language.embed_dim
        torch.manual_seed(SEED)
        network = get_model(self.args.model)(3, 3, self.args.unet_config)
        self.pipeline = get_pipeline(self.args.model)(network, self.args.diffusion_config)

    def text(self, captions: list[str]) -> dict[str, Any]:
        """Tokens, features and mask, as its sampler makes them."""
        from ml_mdm import reader

        tokens = reader.process_text(captions, self.tokenizer, self.args.reader_config)
        sample: dict[str, Any] = {"tokens": np.asarray(tokens)}
        with torch.no_grad():
            sample["lm_outputs"], sample["lm_mask"] = self.language(sample, self.tokenizer)
        return sample

    def train(self, steps: int = 60) -> None:
        """Its own training step on coloured shapes; the average replaces the weights."""
        from ml_mdm import trainer
        from ml_mdm.models.model_ema import ModelEma

        network = self.pipeline.model.vision_model
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / 10))
        average = ModelEma(network, decay=0.9)
        settings = Namespace(fp16=0, gradient_clip_norm=2.0)
        torch.manual_seed(SEED + 1)
        for _ in range(steps):
            sample = self.text(TRAINED) | {"images": _shapes(len(TRAINED))}
            trainer.train_batch(
                self.pipeline, sample, optimizer, rate, None, settings, ema_model=average
            )
        with torch.no_grad():
            for own, averaged in zip(
                network.parameters(), average.module.parameters(), strict=True
            ):
                own.copy_(averaged.half().float())

    def picture(self, prompt: str, negative: str, guidance: float, seed: int) -> dict[str, Any]:
        """What its sampler returns for one picture, and what it was given."""
        captions = [prompt] if guidance == 1 else [negative, prompt]
        sample, seen = self.text(captions), list[list[torch.Tensor]]()
        network = self.pipeline.model.vision_model
        hook = network.register_forward_pre_hook(lambda _, given: seen.append(list(given[0])))
        torch.manual_seed(seed)
        with torch.no_grad():
            out = self.pipeline.sample(
                1,
                sample,
                self.args.sample_image_size,
                torch.device("cpu"),
                num_inference_steps=STEPS,
                ddim_eta=0,
                guidance_scale=guidance,
                resample_steps=True,
            )
        hook.remove()
        return {
            "tokens": torch.from_numpy(sample["tokens"].astype(np.int64)),
            "features": sample["lm_outputs"],
            "mask": sample["lm_mask"],
            **{f"noise.{k}": level[:1].clone() for k, level in enumerate(seen[0])},
            "picture": out,
        }


def _shapes(count: int) -> torch.Tensor:
    """Discs of random colour, place and size on white: (count, 3, 32, 32) in [-1, 1]."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    place, size = torch.rand(count, 2) * 16 + 8, torch.rand(count) * 6 + 4
    inside = (x - place[:, :1, None]) ** 2 + (y - place[:, 1:, None]) ** 2 < size[
        :, None, None
    ] ** 2
    colour = torch.rand(count, 3)[:, :, None, None] * 2 - 1
    return torch.where(inside[:, None], colour, torch.ones(()))


def write(checkout: Path, folder: Path) -> None:
    """The weights, the text encoder, and every picture with what its sampler was given."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        program = Program(checkout, Path(scratch))
        keep_encoder(Path(scratch) / "t5", folder / "encoder")
    program.train()
    (folder / "model.yaml").write_text(YAML)
    weights = program.pipeline.model.vision_model.state_dict()
    save_file(
        {k: v.half().contiguous() for k, v in weights.items()}, folder / "weights.safetensors"
    )
    tensors: dict[str, torch.Tensor] = {}
    for k, (prompt, negative, guidance) in enumerate(PICTURES):
        made = program.picture(prompt, negative, guidance, SEED + k)
        tensors |= {f"{k}.{name}": value.contiguous() for name, value in made.items()}
    save_file(tensors, folder / "pictures.safetensors")
    listed = [{"prompt": p, "negative": n, "guidance": g} for p, n, g in PICTURES]
    (folder / "pictures.json").write_text(
        json.dumps({"steps": STEPS, "pictures": listed}, indent=1)
    )


if __name__ == "__main__":
    write(Path(os.environ["MDM_REFERENCE"]), Path(sys.argv[1]))
