"""What cases of malformed input are made of, and the good files that they spoil."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small import CAPTIONS, random_state, random_weights, trainable_model

from mdm_apple.config.network import T5Config
from mdm_apple.config.shapes import encoder_shapes
from mdm_apple.config.strict_json import to_json
from mdm_apple.storage.model_folder import save_model
from mdm_apple.storage.tensorfile import write_tensors
from mdm_apple.text.encoder_folder import read_encoder_folder
from mdm_apple.text.tokenizer import train_tokenizer

Command = Sequence[str | Path]


@dataclass(frozen=True)
class Good:
    """Sound files, made once. Cases copy what they change.

    model, run, frozen: folders of small models: one with random weights, one that was trained for
    two steps, and one whose text encoder lies in encoder. features: a cache for the last one.
    pth: the weights of the tiny preset. photo: a picture with its recipe.
    """

    model: Path
    run: Path
    frozen: Path
    encoder: Path
    features: Path
    pictures: Path
    pth: Path
    photo: Path
    bundle: Path


@dataclass(frozen=True)
class Room:
    """The folder of one case. Nothing in it may change while the command runs."""

    at: Path
    good: Good

    def file(self, name: str, data: bytes | str) -> Path:
        path = self.at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def copy(self, source: Path) -> Path:
        target = self.at / f"copy_of_{source.name}"
        return Path((shutil.copytree if source.is_dir() else shutil.copyfile)(source, target))

    @property
    def out(self) -> Path:
        """Where commands are told to write."""
        return self.at / "out"


@dataclass(frozen=True)
class Case:
    """`build` spoils something and names the command; `says` must be in its one sentence."""

    name: str
    says: str
    build: Callable[[Room], Command]
    file_bytes: int | None = None  # the largest file that the system lets the command write
    code: int = 1  # 2: click refuses the call


def spoiled(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


def edited(path: Path, changes: dict[str, Any]) -> Path:
    """A JSON file with values replaced; dots lead into it, `...` removes."""
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(with_changes(data, changes)), encoding="utf-8")
    return path


def with_changes(data: Any, changes: dict[str, Any]) -> Any:
    for name, value in changes.items():
        *parents, last = name.split(".")
        place = data
        for key in parents:
            place = place[int(key) if isinstance(place, list) else key]
        if value is ...:
            del place[last]
        else:
            place[int(last) if isinstance(place, list) else last] = value
    return data


def config_text(changes: dict[str, Any]) -> str:
    """The configuration of the small training run with changes, as JSON."""
    return json.dumps(with_changes(json.loads(to_json(trainable_model())), changes))


def frozen_text(encoder_sha256: str, tokenizer_sha256: str) -> Any:
    """The small model with an encoder that is not trained along."""
    config = trainable_model()
    assert config.text is not None
    text = dataclasses.replace(
        config.text,
        trainable=False,
        source="example/encoder",
        encoder_sha256=encoder_sha256,
        tokenizer_sha256=tokenizer_sha256,
    )
    return dataclasses.replace(config, text=text)


def frozen_model(folder: Path, encoder: Path) -> Path:
    """A model whose text encoder is a folder as Hugging Face has them."""
    text = trainable_model().text
    assert text is not None
    assert text.encoder is not None
    sizes: T5Config = text.encoder
    encoder.mkdir()
    write_tensors(encoder / "model.safetensors", random_weights(encoder_shapes(sizes), 1))
    (encoder / "spiece.model").write_bytes(
        train_tokenizer(CAPTIONS, sizes.vocab_size, lowercase=True).model
    )
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    described: dict[str, Any] = {name: getattr(sizes, name) for name in names}
    described |= {"model_type": "t5", "feed_forward_proj": "gated-gelu"}
    (encoder / "config.json").write_text(json.dumps(described))
    found = read_encoder_folder(encoder)
    config = frozen_text(found.encoder_sha256(), found.tokenizer_sha256())
    save_model(folder, config, random_state(config.model))
    return folder


def png(width: int, height: int, rows: bytes) -> bytes:
    """A gray PNG of the size it claims, with the compressed rows that are given."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def safetensors(
    header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None
) -> bytes:
    """A safetensors file with any header, and any claim of its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data
