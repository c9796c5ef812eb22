"""Which clips of `--data motion` a model was trained on: it is judged by pairs that it never saw.

Input: a model's folder and what is asked. Output: the data to judge by, or a refusal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mdm_apple.data.motion.objects import OBJECTS
from mdm_apple.data.motion.open_motion import VARIANTS
from mdm_apple.data.open import MOTION, motion_counts
from mdm_apple.errors import MdmError
from mdm_apple.evaluation.motion_captions import every_pair
from mdm_apple.storage.model_folder import load_training_meta
from mdm_apple.text.captions import CAPTIONS, read_captions

USUAL = {"objects": len(OBJECTS), "variants": VARIANTS}


def judged_by(model: Path, asked: str) -> str:
    """The data to judge a model by: what it was trained on, or what is asked if nobody knows.

    Args:
        model: a model folder or a bundle. asked: "motion[:OBJECTS[:VARIANTS]]".

    Raises MdmError where a trained pair would count as held out: that depends on the objects.
    """
    wanted, data = _counts(asked), _trained_on(model)
    if data is None:
        _refuse_trained(model, asked, wanted["objects"])
        return asked
    named = motion_counts(asked)
    trained = _counts(data)
    if any(trained[name] != count for name, count in named.items()):
        raise MdmError(
            f"data: {model} was trained on {data}, not on {asked}, so other pairs are held out; "
            f"give --data {data}."
        )
    return data


def _counts(data: str) -> dict[str, int]:
    return USUAL | motion_counts(data)


def _trained_on(model: Path) -> str | None:
    """The data of a run on moving drawings; None where nothing says it."""
    if not (model / "training.json").is_file():
        return None
    data: Any = load_training_meta(model).get("data")
    return data if isinstance(data, str) and data.partition(":")[0] == MOTION else None


def _refuse_trained(model: Path, asked: str, objects: int) -> None:
    """Refuse a model with captions that would be held out; a student has those of its teacher."""
    if not (model / CAPTIONS).is_file():
        return
    known = set(read_captions(model / CAPTIONS))
    for pair in every_pair(objects) if known else ():
        if pair.held_out and pair.caption in known:
            raise MdmError(
                f'data: {model} was trained on "{pair.caption}", which {asked} holds out; give as '
                f"many objects as it was trained with, such as {MOTION}:8."
            )
