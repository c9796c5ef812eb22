"""FID and CLIP score; their networks are downloaded from their makers on first use.

Input: real and generated pictures, batch by batch, with their captions. Output: one number each,
over all pictures. Both networks were trained on photographs and say little about drawings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mdm_apple.config.types import Images
from mdm_apple.errors import MdmError, require

CLIP = "openai/clip-vit-base-patch16"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # mean and deviation of CLIP's training pictures
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class FrechetInception:
    """Fréchet distance of Inception features (Heusel et al. 2017, arXiv:1706.08500).

    It falls as the number of pictures grows: compare equal counts only.

    Args:
        network: maps pictures (N, 3, H, W) in [0, 1] to features (N, F), and has `num_features`;
            None: the 2,048 pooled features of the usual Inception, whose weights are downloaded.
    """

    name = "fid_inception"

    def __init__(self, network: nn.Module | None = None) -> None:
        metrics = require("torchmetrics.image.fid")
        if network is None:
            require("torch_fidelity")
        try:
            feature = 2048 if network is None else network
            self._metric: Any = metrics.FrechetInceptionDistance(feature, normalize=True)
        except OSError as error:
            raise MdmError(f"inception: its weights could not be fetched: {error}.") from error

    def add(self, real: Images, made: Images, captions: Sequence[str]) -> None:
        """Add pictures, (N, 3, side, side) in [-1, 1]."""
        del captions  # captions play no part
        for pictures, is_real in ((real, True), (made, False)):
            self._metric.update(_unit(pictures), real=is_real)

    def value(self) -> float:
        return float(self._metric.compute())


class ClipScore:
    """Mean of 100 max(cos, 0) between picture and caption (Hessel et al. 2021, arXiv:2104.08718).

    Args:
        model, tokenizer: a CLIP from the package transformers, and its tokenizer.
    """

    name = "clip_score"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model.eval(), tokenizer
        self._total, self._count = 0.0, 0

    @classmethod
    def fetched(cls) -> ClipScore:
        """With the network `CLIP`, from the Hugging Face hub or its cache."""
        library = require("transformers")
        try:
            model = library.CLIPModel.from_pretrained(CLIP, use_safetensors=True)
            return cls(model, library.CLIPTokenizer.from_pretrained(CLIP))
        except OSError as error:
            raise MdmError(f"clip: {CLIP} could not be fetched: {error}.") from error

    @torch.no_grad()
    def add(self, real: Images, made: Images, captions: Sequence[str]) -> None:
        """Add generated pictures, (N, 3, side, side) in [-1, 1], and their captions."""
        del real
        side = self._model.config.vision_config.image_size
        words = self._tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
        size = (side, side)
        pictures = functional.interpolate(_unit(made), size, mode="bicubic", antialias=True)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        found = self._model(
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
            pixel_values=(pictures.clamp(0, 1) - mean) / std,
        )
        cosine = functional.cosine_similarity(found.image_embeds, found.text_embeds)
        self._total += float((100 * cosine).clamp(min=0).sum())
        self._count += len(captions)

    def value(self) -> float:
        return self._total / max(self._count, 1)


def _unit(pictures: Images) -> torch.Tensor:
    """Map [-1, 1] to [0, 1]."""
    return (torch.from_numpy(np.ascontiguousarray(pictures)).clamp(-1, 1) + 1) / 2
