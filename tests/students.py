"""A student of random weights: distilled in name, everything about it counts."""

from __future__ import annotations

from pathlib import Path

from small import CAPTIONS, random_weights, save_random_model, trainable_model

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.shapes import state_shapes
from mdm_apple.storage.model_folder import (
    load_model_config,
    load_tokenizer,
    load_weights,
    save_model,
)
from mdm_apple.text.captions import CAPTIONS as CAPTIONS_FILE
from mdm_apple.text.captions import write_captions
from mdm_apple.training.boot import BootConfig, student_config


def save_random_student(root: Path, flow_map: int = 2, model: ModelConfig | None = None) -> Path:
    """A folder of one below `root`, its extra inputs random too; weights 1 to 4."""
    teacher = save_random_model(root / "teacher", model or trainable_model())
    config = student_config(
        load_model_config(teacher), BootConfig(flow_map=flow_map, guidance=(1.0, 4.0))
    )
    folder = root / "student"
    save_model(
        folder,
        config,
        random_weights(state_shapes(config.model), 5),
        text_encoder=load_weights(teacher, "text_encoder"),
        tokenizer=load_tokenizer(teacher),
    )
    write_captions(folder / CAPTIONS_FILE, CAPTIONS)
    return folder
