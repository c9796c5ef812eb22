"""Remarks on requests that are not wrong but may surprise."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.presets import PUBLISHED_AT
from mdm_apple.sampling.generate import Prompt
from mdm_apple.sampling.inner_model import level_of_side
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.text.captions import CAPTIONS, clean_caption, read_captions
from mdm_apple.text.unread import tokenizer_in_use, unread_remarks

MAX_LISTED_BYTES = 4 << 20  # bytes; prompts are not compared with a longer list of captions


def remarks(
    folder: Path,
    config: ModelConfig,
    sampler: SamplerConfig,
    prompts: Sequence[Prompt],
    stop_at: int | None,
    encoder_folder: Path | None = None,
) -> list[str]:
    """Remarks on a request to the model in `folder`.

    Args:
        stop_at: the highest side to run.
        encoder_folder: the frozen text encoder, if it does not lie in the model folder.
    """
    out: list[str] = []
    if any(p.negative for p in prompts) and sampler.guidance_scale == 1:
        out.append("negative: has no effect at guidance 1; give --guidance, such as 4.")
    if level_of_side(config, stop_at) and not config.mixed_training:
        out.append(
            "stop-at: this model was not trained with mixed resolutions, so its inner levels alone "
            "may make worse pictures."
        )
    return (
        out
        + _padding(folder, config)
        + unread(folder, config, prompts, encoder_folder)
        + _unlearned(folder, prompts)
    )


def _padding(folder: Path, config: ModelConfig) -> list[str]:
    """A remark on an import of Apple's weights that is older than its way to pad text."""
    text, made_here = config.text, ("training.json", "manifest.json")
    if text is None or config.provenance.source != PUBLISHED_AT:
        return []
    if (text.padding, text.null_prompt) != ("max_tokens", "end"):
        return []
    if any((folder / name).exists() for name in made_here):
        return []
    return [
        f"text: {folder} pads prompts to {text.max_tokens} tokens, and Apple's programs do not; "
        "import the checkpoint again to get their pictures."
    ]


def unread(
    folder: Path, config: ModelConfig, prompts: Sequence[Prompt], encoder_folder: Path | None
) -> list[str]:
    """Remarks on what the model in `folder` does not see of the prompts."""
    if config.text is None:
        return []
    tokenizer = tokenizer_in_use(folder, config, encoder_folder)
    texts = [text for prompt in prompts for text in prompt.texts]
    return unread_remarks("prompt", filter(None, texts), tokenizer, config.text.max_tokens)


def _unlearned(folder: Path, prompts: Sequence[Prompt]) -> list[str]:
    """A remark on prompts that the model has no caption for, with the nearest caption."""
    path = folder / CAPTIONS
    if not path.is_file() or path.stat().st_size > MAX_LISTED_BYTES:
        return []
    learned = read_captions(path)
    known = {caption.casefold() for caption in learned}
    texts = [text for p in prompts for text in (p.text, p.to_text or "")]
    asked = dict.fromkeys(filter(None, map(clean_caption, texts)))
    unknown = [text for text in asked if text.casefold() not in known]
    if not unknown:
        return []
    near = difflib.get_close_matches(unknown[0].casefold(), sorted(known), n=1, cutoff=0.0)
    more = f" (and {len(unknown) - 1} more prompts)" if len(unknown) > 1 else ""
    return [
        f"prompt: this model learned {len(learned):,} captions, and {unknown[0]!r}{more} is not "
        f"one of them; the nearest is {near[0]!r}."
    ]
