"""What a model does not see of its captions: the ends that are cut, characters without a token.

Input: captions and the tokenizer in use. Output: sentences for whoever wrote the captions.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from mdm_apple.config.model import ModelConfig
from mdm_apple.errors import MdmError
from mdm_apple.text.encoder_folder import ENCODER_FOLDER, TOKENIZER_FILE
from mdm_apple.text.tokenizer import Tokenizer

MAX_SHOWN = 60  # characters of a text in a remark


def unread_remarks(
    name: Literal["prompt", "captions"],
    captions: Iterable[str],
    tokenizer: Tokenizer | None,
    max_tokens: int,
) -> list[str]:
    """At most a sentence on what is cut and one on unknown characters; none if all is read.

    Args:
        name: what the sentences begin with.
        tokenizer: None where captions become features elsewhere, so that nothing is known.
        max_tokens: that the model reads of a caption.
    """
    if tokenizer is None:
        return []
    texts = list(dict.fromkeys(captions))
    found = [(text, tokenizer.unread(text, max_tokens)) for text in texts]
    cut = [(text, unread.cut) for text, unread in found if unread.cut]
    unknown = [(text, unread.unknown) for text, unread in found if unread.unknown]
    remarks = list[str]()
    if cut and len(cut) == 1 and name == "prompt":
        end = cut[0][1]
        remarks.append(f"prompt: the model reads {max_tokens} tokens, so it does not see {end!r}.")
    elif cut:
        text, end = cut[0]
        remarks.append(
            f"{name}: {len(cut)} of {len(texts)} are longer than the {max_tokens} tokens that the "
            f"model reads; of {_short(text)} it does not see {_short(end)}."
        )
    if unknown and len(unknown) == 1 and name == "prompt":
        remarks.append(f"prompt: the model knows no token for {unknown[0][1]!r}.")
    elif unknown:
        every = "".join(dict.fromkeys("".join(characters for _, characters in unknown)))
        remarks.append(
            f"{name}: {len(unknown)} of {len(texts)} hold characters that the model knows no "
            f"token for: {_short(every)}."
        )
    return remarks


def tokenizer_in_use(
    folder: Path, config: ModelConfig, encoder_folder: Path | None = None
) -> Tokenizer | None:
    """The tokenizer that reads the captions of a model folder or a bundle.

    None if it takes no text, or if captions become features elsewhere.

    Args:
        encoder_folder: the frozen encoder in use, if it does not lie in the model folder.
    """
    if config.text is None:
        return None
    places = [folder / "tokenizer.model", folder / ENCODER_FOLDER / TOKENIZER_FILE]
    if encoder_folder is not None and not config.text.trainable:
        places.insert(0, encoder_folder / TOKENIZER_FILE)
    for place in places:
        if place.is_file():
            with suppress(MdmError):  # a damaged one is refused where it is loaded
                return Tokenizer.load(
                    place, lowercase=config.text.lowercase, null_prompt=config.text.null_prompt
                )
    return None


def _short(text: str) -> str:
    return repr(text[:MAX_SHOWN])
