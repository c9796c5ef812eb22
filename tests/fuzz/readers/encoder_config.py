"""config.json of a text encoder, as the Hugging Face hub has it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mdm_apple.config.shapes import encoder_shapes
from mdm_apple.config.strict_json import read_object
from mdm_apple.errors import MdmError
from mdm_apple.text.encoder_folder import (
    CONFIG_FILE,
    INDEX_FILE,
    read_encoder_folder,
    t5_config_from_hf,
)


def read(folder: Path, data: bytes) -> None:
    (folder / CONFIG_FILE).write_bytes(data)
    (folder / INDEX_FILE).write_bytes(data)  # one file that is both: either reads its own keys
    encoder_shapes(t5_config_from_hf(read_object(folder / CONFIG_FILE, 1 << 20)))
    with suppress(MdmError):  # its weights are not there
        read_encoder_folder(folder)
