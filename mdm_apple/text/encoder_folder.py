"""Frozen T5 encoders as Hugging Face folders: fetching them, and reading such a folder.

Input: the name of a repository, or a folder with `config.json`, one or more .safetensors files
and `spiece.model`. Output: a T5Config, the file of each weight, and hashes. Needs neither torch nor
mlx; only `fetch_encoder` fetches anything.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mdm_apple.config.model import TextConfig
from mdm_apple.config.network import T5_LIMITS, T5Config
from mdm_apple.config.shapes import SHARED, encoder_shapes
from mdm_apple.config.strict_json import read_object
from mdm_apple.errors import ConfigError, MdmError, require
from mdm_apple.storage.files import file_sha256

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "spiece.model"
ENCODER_FOLDER = "encoder"  # inside a model folder, for its frozen encoder

MAX_JSON_BYTES = 16 << 20
IGNORED_PREFIXES = ("decoder.", "lm_head.")  # the unused half of a T5
SHARED_AGAIN = "encoder.embed_tokens.weight"  # the same table under another name
WEIGHT_DTYPES = ("F32", "F16", "BF16")

# Name in Hugging Face's file -> field here.
_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "d_kv": "d_kv",
    "d_ff": "d_ff",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "relative_attention_num_buckets": "relative_buckets",
    "relative_attention_max_distance": "relative_max_distance",
}
_SIZE_DEFAULTS = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}


class HubError(MdmError):
    """An encoder that cannot be fetched, or a folder that does not hold one."""


@dataclass(frozen=True)
class EncoderFolder:
    """A checked folder: its configuration, and the file that holds each weight."""

    folder: Path
    config: T5Config
    weights: dict[str, Path]  # name in our state dict -> file
    stored_names: dict[str, str]  # name in our state dict -> name in that file

    def encoder_sha256(self) -> str:
        """Hash over the names and hashes of config.json and the weight files in use."""
        names = {CONFIG_FILE, *(path.name for path in self.weights.values())}
        lines = [f"{file_sha256(self.folder / name)}  {name}\n" for name in sorted(names)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def tokenizer_sha256(self) -> str:
        """Hash of the tokenizer beside the weights. Raises HubError if there is none."""
        path = self.folder / TOKENIZER_FILE
        if not path.is_file():
            raise HubError(f"{path}: no such tokenizer.")
        return file_sha256(path)


@dataclass(frozen=True)
class _Repository:
    """A repository at a commit, with the size of each file in bytes."""

    source: str
    commit: str
    sizes: dict[str, int]


@dataclass(frozen=True)
class FetchedEncoder:
    """Facts about a fetched encoder for a model's text settings; `revision` is a commit."""

    files: EncoderFolder
    source: str
    revision: str
    encoder_sha256: str
    tokenizer_sha256: str


def fetch_encoder(
    source: str,
    revision: str | None,
    into: Path,
    announce: Callable[[int, int], None] = lambda size, free: None,
) -> FetchedEncoder:
    """Download a T5 encoder such as google/flan-t5-xl into a folder; reuses files already there.

    Only config.json, the tokenizer and the .safetensors files with encoder weights are fetched.

    Args:
        revision: a branch, tag or commit; None means the current main branch.
        announce: told the bytes of weights to download, and the bytes free on the disk.

    Raises HubError when there is no network, no such repository, no T5 in it, or no room.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", source):
        raise HubError(f"source: expected a repository such as google/flan-t5-xl, got {source!r}.")
    repository = _look_up(source, revision)
    _download(repository, into, (CONFIG_FILE, TOKENIZER_FILE, INDEX_FILE))
    names = [WEIGHTS_FILE]
    if (into / INDEX_FILE).is_file():
        shards = {
            file
            for name, file in _read_index(into).items()
            if not name.startswith(IGNORED_PREFIXES)
        }
        names = sorted(shards)
    size, free = _left_to_fetch(repository, into, names), shutil.disk_usage(into).free
    if size > free:
        raise HubError(
            f"{into}: {size / 1e6:,.1f} MB are to be downloaded, but only {free / 1e6:,.1f} MB are "
            "free; free some space."
        )
    announce(size, free)
    _download(repository, into, names)
    files = read_encoder_folder(into)
    return FetchedEncoder(
        files, source, repository.commit, files.encoder_sha256(), files.tokenizer_sha256()
    )


def require_encoder(folder: Path, text: TextConfig | None) -> None:
    """Refuse, with HubError, a model folder whose frozen encoder was not fetched into it."""
    if text is None or text.encoder is None or text.trainable:
        return
    if not (folder / ENCODER_FOLDER).is_dir():
        raise HubError(
            f"{folder}: the text encoder {text.source} is not here; fetch it with `mdm fetch "
            f"text-encoder --out {folder}`, or leave out --text-encoder yes."
        )


def _look_up(source: str, revision: str | None) -> _Repository:
    hub = require("huggingface_hub")
    with _refusing(source, revision):
        found = hub.HfApi().model_info(source, revision=revision, timeout=30, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
        return _Repository(source, str(found.sha), sizes)


def _left_to_fetch(repository: _Repository, into: Path, names: Iterable[str]) -> int:
    """Bytes of the files that the folder lacks."""
    return sum(repository.sizes.get(name, 0) for name in names if not (into / name).exists())


def _download(repository: _Repository, into: Path, names: Iterable[str]) -> None:
    """Fetch the files that the repository has."""
    hub = require("huggingface_hub")
    source, commit = repository.source, repository.commit
    with _refusing(source, commit):
        hub.snapshot_download(
            source, revision=commit, local_dir=into, allow_patterns=list(names), max_workers=4
        )


@contextmanager
def _refusing(source: str, revision: str | None) -> Generator[None]:
    """Turn the errors of the hub's client into sentences."""
    errors = require("huggingface_hub.errors")
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise HubError(
            f"{source}: Hugging Face has no such repository at revision {revision or 'main'!r}, "
            "or you have no access to it; check the name."
        ) from None
    except (
        Exception
    ) as error:  # the client raises its transport's errors, which have changed before
        if not _is_transport_error(error):
            raise
        raise HubError(
            f"{source}: cannot be fetched ({type(error).__name__}); check the network and run the "
            "command again, or give a folder that holds the encoder."
        ) from None


def _is_transport_error(error: Exception) -> bool:
    """Whether it is an error of the system, the hub client, or the HTTP client under it."""
    origins = tuple(kind.__module__ for kind in type(error).__mro__)
    clients = ("huggingface_hub", "httpx", "requests", "urllib3")
    return isinstance(error, OSError) or any(origin.startswith(clients) for origin in origins)


def read_encoder_folder(folder: Path) -> EncoderFolder:
    """Check that a folder holds exactly one T5 encoder, without reading its weights.

    Decoder weights are ignored; any other weight that is unknown, missing or of a wrong shape is
    refused with HubError.
    """
    config = t5_config_from_hf(_object(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    places = _weight_files(folder)
    if SHARED not in places and SHARED_AGAIN in places:
        stored = {SHARED: SHARED_AGAIN}
    else:
        stored = {}
    found = {name: path for name, path in places.items() if name != SHARED_AGAIN}
    if stored:
        found[SHARED] = places[SHARED_AGAIN]
    expected = encoder_shapes(config)
    for name in sorted(expected.keys() ^ found.keys()):
        state = "is missing" if name in expected else "is not part of such an encoder"
        raise HubError(f"{folder}: weight {name} {state}; expected a T5 as in its config.json.")
    names = {name: stored.get(name, name) for name in expected}
    _check_shapes(found, names, expected)
    return EncoderFolder(folder, config, {name: found[name] for name in expected}, names)


def t5_config_from_hf(data: dict[str, Any], where: str = CONFIG_FILE) -> T5Config:
    """The encoder that a Hugging Face T5 configuration describes; raises HubError.

    Its dropout is ignored, because a fetched encoder stays frozen.
    """
    if data.get("model_type") != "t5":
        raise HubError(f"{where}: expected model_type t5, got {data.get('model_type')!r}.")
    sizes: dict[str, int] = {}
    for name, field in _SIZES.items():
        value = data.get(name, _SIZE_DEFAULTS.get(name))
        if type(value) is not int:
            raise HubError(f"{where}: {name}: expected 1 to {T5_LIMITS[field]}, got {value!r}.")
        sizes[field] = value
    kind = data.get("feed_forward_proj", "relu")
    if kind not in ("relu", "gated-gelu"):
        raise HubError(f"{where}: feed_forward_proj: expected relu or gated-gelu, got {kind!r}.")
    eps = data.get("layer_norm_epsilon", 1e-6)
    if not isinstance(eps, float):
        raise HubError(f"{where}: layer_norm_epsilon: expected a number, got {eps!r}.")
    try:
        return T5Config(**sizes, norm_eps=eps, feed_forward=kind)
    except ConfigError as error:
        raise HubError(f"{where}: {error}") from None


def _weight_files(folder: Path) -> dict[str, Path]:
    """File of every weight, except the decoder's."""
    if (folder / INDEX_FILE).is_file():
        places = {name: folder / file for name, file in _read_index(folder).items()}
    elif (folder / WEIGHTS_FILE).is_file():
        path = folder / WEIGHTS_FILE
        places = dict.fromkeys(_shapes_in(path), path)
    else:
        raise HubError(f"{folder}: holds no {WEIGHTS_FILE}; only .safetensors weights are read.")
    return {name: path for name, path in places.items() if not name.startswith(IGNORED_PREFIXES)}


def _read_index(folder: Path) -> dict[str, str]:
    """Weight name to the name of a file in the same folder."""
    path = folder / INDEX_FILE
    table = _object(path).get("weight_map")
    if not isinstance(table, dict):
        raise HubError(f"{path}: expected a weight_map.")
    files = cast(dict[str, object], table)
    for file in files.values():
        if not isinstance(file, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", file):
            raise HubError(f"{path}: expected names of .safetensors files beside it, got {file!r}.")
    return cast(dict[str, str], files)


def _check_shapes(
    found: dict[str, Path], names: dict[str, str], expected: dict[str, tuple[int, ...]]
) -> None:
    by_file = {path: _shapes_in(path) for path in set(found.values())}
    for name, shape in expected.items():
        got = by_file[found[name]].get(names[name])
        if got is None:
            raise HubError(f"{found[name]}: weight {names[name]} is listed but missing.")
        if got[0] not in WEIGHT_DTYPES or got[1] != shape:
            raise HubError(
                f"{found[name]}: {names[name]}: expected shape {shape} in "
                f"{', '.join(WEIGHT_DTYPES)}, got {got[1]} in {got[0]}."
            )


def _shapes_in(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor of a safetensors file, from its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except (OSError, SafetensorError) as error:
        raise HubError(f"{path}: cannot be read as safetensors ({error}).") from None


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, MAX_JSON_BYTES)
    except ConfigError as error:
        raise HubError(str(error)) from None
