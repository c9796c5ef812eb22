"""Malformed things that a user hands in: checkpoints, YAML, configurations, pictures, captions."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from malformed import Case, Command, Room, config_text, png, spoiled
from small import APPLE_YAML as YAML
from small import around, plain

# --- Apple's checkpoints ------------------------------------------------------------------------


class Malicious:
    """Runs a command in whatever unpickles it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


def import_pth(room: Room, path: Path) -> Command:
    return "import", path, "--preset", "tiny", "--out", room.out


def raw_pth(data: bytes) -> Callable[[Room], Command]:
    return lambda room: import_pth(room, room.file("model.pth", data))


def cut_pth(change: Callable[[bytes], bytes]) -> Callable[[Room], Command]:
    return lambda room: import_pth(room, spoiled(room.copy(room.good.pth), change))


def state_pth(change: Callable[[dict[str, Any]], object]) -> Callable[[Room], Command]:
    """The state dict, changed in place or replaced by what `change` returns."""

    def build(room: Room) -> Command:
        state = torch.load(room.good.pth, weights_only=True)
        changed = change(state)
        path = room.at / "model.pth"
        torch.save(state if changed is None else changed, path)
        return import_pth(room, path)

    return build


def rezipped(room: Room, change: Callable[[str, bytes], bytes | None], packed: bool) -> Command:
    """The archive with the contents of its entries changed, or left out."""
    written = io.BytesIO()
    with zipfile.ZipFile(room.good.pth) as before, zipfile.ZipFile(written, "w") as after:
        for name in before.namelist():
            data = change(name, before.read(name))
            if data is not None:
                kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
                after.writestr(name, data, kind)
    return import_pth(room, room.file("model.pth", written.getvalue()))


def malicious_whole(room: Room) -> Command:
    evil = pickle.dumps(Malicious(room.at / "canary"), protocol=2)
    return rezipped(room, lambda n, d: evil if n.endswith("data.pkl") else d, False)


def malicious_weight(room: Room) -> Command:
    state = torch.load(room.good.pth, weights_only=True)
    path = room.at / "model.pth"
    torch.save(state | {"conv_in.bias": Malicious(room.at / "canary")}, path)
    return import_pth(room, path)


def nan_pth(state: dict[str, Any]) -> None:
    state["conv_in.bias"][3] = float("nan")


def old_format(room: Room) -> Command:
    path = room.at / "model.pth"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    return import_pth(room, path)


NO_PICKLE = partial(rezipped, change=lambda n, d: None if "data.pkl" in n else d, packed=False)
NO_STORAGE = partial(rezipped, change=lambda n, d: None if n.endswith("/3") else d, packed=False)
SHORT = partial(rezipped, change=lambda n, d: d[:8] if n.endswith("/3") else d, packed=False)
DEEP = partial(
    rezipped, change=lambda n, d: b"(" * 10**5 if n.endswith("data.pkl") else d, packed=False
)
PACKED = partial(rezipped, change=lambda n, d: d, packed=True)

CHECKPOINTS = [
    Case("empty", "the file is empty", raw_pth(b"")),
    Case("html", "is a web page", raw_pth(b"<!DOCTYPE html><html>404</html>")),
    Case("noise", "expected a zip archive", raw_pth(bytes(range(256)) * 9)),
    Case("safetensors", "looks like a safetensors file", raw_pth(b"\x02" + bytes(7) + b"{}")),
    Case("half", "the file is cut off", cut_pth(lambda d: d[: len(d) // 2])),
    Case("without its last bytes", "the file is cut off", cut_pth(lambda d: d[:-30])),
    Case("without its start", "expected a zip archive", cut_pth(lambda d: d[1000:])),
    Case("before PyTorch 1.6", "written in the format before PyTorch 1.6", old_format),
    Case("compressed", "is compressed or encrypted", lambda room: PACKED(room)),
    Case("without its pickle", "exactly one data.pkl", lambda room: NO_PICKLE(room)),
    Case("without a storage", "is missing", lambda room: NO_STORAGE(room)),
    Case("short storage", "its storage should be", lambda room: SHORT(room)),
    Case("deep pickle", "the description of the tensors is damaged", lambda room: DEEP(room)),
    Case("malicious pickle", "expected a dictionary of tensors", malicious_whole),
    Case("malicious weight", "1 missing (first 'conv_in.bias')", malicious_weight),
    Case("a list", "expected a dictionary", state_pth(lambda s: list(s.values()))),
    Case("no weights", "holds no tensors", state_pth(lambda s: {"step": 3})),
    Case("wrong shape", "1 of another shape", state_pth(lambda s: s.update({"conv_in.bias": torch.zeros(3)}))),
    Case("missing weight", "1 missing", state_pth(lambda s: {k: s[k] for k in list(s)[1:]})),
    Case("unexpected weight", "1 unexpected", state_pth(lambda s: s.update(extra=torch.zeros(2)))),
    Case("whole numbers", "floating-point", state_pth(lambda s: {k: v.int() for k, v in s.items()})),
    Case("not a number", "NaN or infinite", state_pth(nan_pth)),
    Case("absent", "no such file", lambda room: import_pth(room, room.at / "absent.pth")),
    Case("a folder", "is a directory", lambda room: import_pth(room, room.at), code=2),
    Case("no configuration", "either --preset or --yaml", lambda room: ("import", room.good.pth, "--out", room.out)),
]  # fmt: skip

# --- Apple's configuration files ----------------------------------------------------------------

ALIASES = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


def yaml_case(name: str, says: str, text: str | bytes) -> Case:
    def build(room: Room) -> Command:
        path = room.file("model.yaml", text)
        return "import", room.good.pth, "--yaml", path, "--out", room.out

    return Case(f"yaml {name}", says, build)


CALL = "a: !!python/object/apply:os.system ['touch canary']\n"
CONFIGURATION_FILES = [
    yaml_case("empty", "expected a list of 'key: value' settings", ""),
    yaml_case("no mapping", "expected a list of 'key: value' settings", "- 1\n- 2\n"),
    yaml_case("no YAML", "not plain YAML", "unet_config: [1\n"),
    yaml_case("not UTF-8", "expected UTF-8 text", b"\xff\xfe\x00model"),
    yaml_case("huge", "at most 256 KiB", YAML + "#" * 300_000),
    yaml_case("deep", "levels of nesting", "a: " + "[" * 500 + "]" * 500),
    yaml_case("calling", "not plain YAML", CALL + YAML),
    yaml_case("alias bomb", "aliases (*name) are not supported", ALIASES + YAML),
    yaml_case("unknown key", "Did you mean 'attention_levels'?", YAML.replace("attention_levels", "attention_level")),
    yaml_case("duplicate key", "unet_config: attention_levels appears twice", YAML.replace("  attention_levels: [1]\n", "  attention_levels: [1]\n  attention_levels: [0]\n")),
    yaml_case("wrong type", "expected a whole number, got 'many'", YAML.replace("num_diffusion_steps: 1000", "num_diffusion_steps: many")),
    yaml_case("number with two signs", "whole numbers separated by commas, got '--1'", YAML.replace("[1]", '"--1"')),
    yaml_case("raised digit", "whole numbers separated by commas, got '32,\u00b2'", YAML.replace("[1]", '"32,\u00b2"')),
    yaml_case("list for a section", "unet_config: expected a group of fields", "unet_config: [1]\n"),
    yaml_case("without a section", "'unet_config' is missing", "lr: 1.0\n"),
    yaml_case("unknown text model", "Did you mean 'google/flan-t5-small'?", YAML.replace("t5-small", "t5-smal")),
    yaml_case("a million resnets", "num_resnets_per_resolution: expected 1 to 64", YAML.replace("[1, 1]", "[1, 1000000]")),
    yaml_case("weights of another model", "does not hold this network's", YAML),
]  # fmt: skip

# --- our configurations -------------------------------------------------------------------------


def train_with(room: Room, config: Path, *more: str | Path) -> Command:
    common = ("--data", room.good.pictures, "--out", room.out, "--steps", "2", "--batch-size", "4")
    return "train", "--config", config, *common, "--quiet", *more


def config_case(name: str, says: str, text: str | bytes) -> Case:
    return Case(f"config {name}", says, lambda room: train_with(room, room.file("c.json", text)))


def changed_config(name: str, says: str, **changes: Any) -> Case:
    return config_case(
        name, says, config_text({k.replace("__", "."): v for k, v in changes.items()})
    )


def nested(times: int) -> dict[str, Any]:
    """A level inside a level inside ..."""
    level = plain(channels=(32,), num_resnets=(1,), num_attention_layers=(0,), text_dim=32)
    data = dataclasses.asdict(level)
    for _ in range(times):
        data = dataclasses.asdict(around(plain())) | {"inner": data}
    return data


GOOD_TEXT = config_text({})
CONFIGURATIONS = [
    config_case("empty", "not valid JSON", ""),
    config_case("not UTF-8", "cannot be read as UTF-8", b"\xff\xfe"),
    config_case("too large", "at most 1 MiB", " " * (2 << 20)),
    config_case("a list", "expected an object", "[]"),
    config_case("deep", "not valid JSON", "[" * 50_000 + "]" * 50_000),
    config_case("levels without end", "nested too deeply", config_text({"model.inner": nested(260)})),
    config_case("NaN", "NaN is not a number that JSON allows", GOOD_TEXT.replace("0.0001", "NaN", 1)),
    config_case("infinity", "expected a finite number", GOOD_TEXT.replace("0.0001", "1e999", 1)),
    config_case("duplicate key", "'side' appears twice", GOOD_TEXT.replace('"side"', '"side": 8, "side"')),
    changed_config("unknown key", "unknown key 'sides'. Did you mean 'side'?", sides=8),
    changed_config("missing key", "key 'side' is missing", side=...),
    changed_config("text for a number", "expected a whole number, got '8'", side="8"),
    changed_config("huge number", "expected a whole number, got 1000", side=10**400),
    changed_config("newer format", "Install a newer mdm-apple", format=2),
    changed_config("no stages", "expected 1 to 14 stages", model__inner__channels=[]),
    changed_config("many stages", "expected 1 to 14 stages", model__inner__channels=[32] * 5000),
    changed_config("indivisible channels", "expected a divisor", model__inner__channels=[33]),
    changed_config("negative channels", "expected 1 to 8192", model__inner__channels=[-32]),
    changed_config("side", "expected a multiple of 2", side=9),
    changed_config("time widths that differ", "all levels of a nest need the same", model__temb_dim=64),
    changed_config("nested too deep", "at most 5 levels", model__inner=nested(6)),
    changed_config("a billion layers", "expected 1 to 256, got 1000000000", text__encoder__num_layers=10**9),
    changed_config("a huge vocabulary", "vocab_size: expected 1 to", text__encoder__vocab_size=10**12),
    changed_config("too many parameters", "at most 20 billion parameters", text__encoder__d_ff=1 << 17, text__encoder__num_layers=256, text__encoder__num_heads=1024, text__encoder__d_kv=1024, text__encoder__d_model=1 << 13, model__inner__text_dim=1 << 13),
    changed_config("text without a network for it", "expected settings exactly when", model__inner__text_dim=None),
    changed_config("unknown schedule", "expected one of cosine", diffusion__schedule__kind="cosin"),
    Case("config absent", "no such file", lambda room: train_with(room, room.at / "absent.json")),
    Case("fetch without a yes", "add --accept to agree in advance", lambda room: ("fetch", "flickr64", "--quiet", "--out", room.out)),
    Case("fetch from nonsense", "expected an address that starts with https://", lambda room: ("fetch", "flickr64", "--quiet", "--accept", "--base-url", "nonsense", "--out", room.out)),
    Case("config unknown preset", "is not one of", lambda room: ("train", "--preset", "mdm65", "--data", "twemoji", "--steps", "1", "--out", room.out), code=2),
]  # fmt: skip

# --- pictures and captions ----------------------------------------------------------------------


def data_case(name: str, says: str, files: dict[str, str | bytes | None], *more: str) -> Case:
    """Training on the sound pictures with some files added, changed, or (None) gone."""

    def build(room: Room) -> Command:
        folder = room.copy(room.good.pictures)
        for file, data in files.items():
            if data is None:
                (folder / file).unlink()
            else:
                room.file(f"{folder.name}/{file}", data)
        config = room.file("c.json", GOOD_TEXT)
        return "train", "--config", config, "--data", folder, "--out", room.out, *steps, *more

    steps = ("--steps", "4", "--batch-size", "16", "--quiet")
    return Case(f"data {name}", says, build)


def only(name: str, says: str, files: dict[str, str | bytes]) -> Case:
    """Training on a folder with these files."""

    def build(room: Room) -> Command:
        (room.at / "data").mkdir()
        for file, data in files.items():
            room.file(f"data/{file}", data)
        config = room.file("c.json", GOOD_TEXT)
        place = ("--data", room.at / "data", "--out", room.out)
        return "train", "--config", config, *place, "--steps", "1", "--quiet"

    return Case(f"data {name}", says, build)


def linked(room: Room) -> Command:
    folder = room.copy(room.good.pictures)
    (folder / "03.png").unlink()
    outside = room.file("outside.png", (room.good.pictures / "03.png").read_bytes())
    (folder / "03.png").symlink_to(outside)
    return train_with(room, room.file("c.json", GOOD_TEXT), "--data", folder)


def captions_file(text: str | bytes, *more: str) -> Callable[[Room], Command]:
    def build(room: Room) -> Command:
        config = room.file("c.json", GOOD_TEXT)
        return train_with(room, config, "--captions", room.file("captions.txt", text), *more)

    return build


BOMB = png(30_000, 30_000, zlib.compress(bytes(2_000_000)))
LIAR = png(9_000, 9_000, zlib.compress(bytes(100)))  # few enough pixels, but its rows end early
LINE = '{{"file_name": "{}", "text": "a"}}\n'
PICTURE = png(8, 8, zlib.compress(bytes(9 * 8)))
DATA = [
    data_case("corrupt picture", "05.png: cannot be read", {"05.png": b"\x89PNG\r\n\x1a\nrest"}),
    data_case("text as picture", "05.png: cannot be read", {"05.png": "a picture, honestly"}),
    data_case("truncated picture", "05.png: cannot be read", {"05.png": PICTURE[:-30]}),
    data_case("empty picture", "05.png: cannot be read", {"05.png": b""}),
    data_case("picture of a zip bomb", "more than 89 million pixels", {"05.png": BOMB}),
    data_case("picture that ends early", "05.png: cannot be read", {"05.png": LIAR}),
    data_case("caption not UTF-8", "05.txt: expected UTF-8 text", {"05.txt": b"\xff\xfe\xfd"}),
    data_case("endless caption", "at most 64 KiB", {"05.txt": "a" * 100_000}),
    data_case("two layouts", "unclear where captions come from", {"metadata.jsonl": "{}\n"}),
    only("empty folder", "no captioned picture found", {}),
    only("no pictures", "no captioned picture found", {"a.txt": "a", "b.md": "b"}),
    only("broken line", "line 1: expected one JSON object", {"metadata.jsonl": "{broken\n"}),
    only("deep line", "line 1: expected one JSON object", {"metadata.jsonl": "[" * 100_000}),
    only("line without keys", 'expected the keys "file_name" and "text"', {"metadata.jsonl": "3\n"}),
    only("line that leaves", "leads out of the folder", {"metadata.jsonl": LINE.format("../x.png")}),
    only("absolute line", "leads out of the folder", {"metadata.jsonl": LINE.format("/etc/x.png")}),
    only("line with no file", "no such file", {"metadata.jsonl": LINE.format("x.png")}),
    only("line with NUL", "not a possible file name", {"metadata.jsonl": LINE.format("\\u0000.png")}),
    only("name that breaks the line", "cannot be read", {"a\nb\x1b[31m.png": b"x", "a\nb\x1b[31m.txt": "a"}),
    Case("data missing", "no such folder", lambda room: train_with(room, room.file("c.json", GOOD_TEXT), "--data", room.at / "none")),
    Case("data a file", "no such folder", lambda room: train_with(room, room.file("c.json", GOOD_TEXT), "--data", room.good.photo)),
    Case("data linked from outside", "leads out of the folder", linked),
    Case("captions unknown", "no picture has the caption", captions_file("red heart\nno such thing\x07\n")),
    Case("captions empty", "captions", captions_file("\n\n")),
    Case("captions not UTF-8", "cannot be read as UTF-8", captions_file(b"\xff\xff")),
]  # fmt: skip

CASES = [
    *(Case(f"pth {c.name}", c.says, c.build, c.file_bytes, c.code) for c in CHECKPOINTS),
    *CONFIGURATION_FILES,
    *CONFIGURATIONS,
    *DATA,
]
