"""Reading .pth files: what torch writes, what is damaged, and what is meant to do harm."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import enum
import io
import os
import pickle
import random
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mdm_apple.apple_checkpoints.checkpoint import import_apple
from mdm_apple.apple_checkpoints.pickle_walk import PthError
from mdm_apple.apple_checkpoints.pth import read_pth
from mdm_apple.config.presets import preset
from mdm_apple.config.shapes import state_shapes
from mdm_apple.storage.model_folder import Weights


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Settings:
    depth: int = 3
    colour: Colour = Colour.RED


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=generator)
    return {
        "float": base,
        "double": base.double(),
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "long": torch.tensor([1 << 40, -3]),
        "int": torch.tensor([1, -2], dtype=torch.int32),
        "short": torch.tensor([1, -2], dtype=torch.int16),
        "char": torch.tensor([1, -2], dtype=torch.int8),
        "byte": torch.tensor([1, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "view": base.t()[1:3, 2:],
        "tied": base,
        "parameter": torch.nn.Parameter(base * 2),
    }


def values(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


# --- what torch writes ------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("wrapped", [True, False])
def test_every_kind_of_tensor_is_read_bit_for_bit(
    protocol: int, wrapped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"
    state = collections.OrderedDict(tensors())
    torch.save({"state_dict": state} if wrapped else state, path, pickle_protocol=protocol)
    report = read_pth(path)
    assert list(report.state_dict) == list(state)
    assert (report.skipped, report.other) == ((), {})
    for name, tensor in state.items():
        read, expected = report.state_dict[name].numpy(), values(tensor)
        assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
        assert read.tobytes() == expected.tobytes(), name


def test_what_lies_beside_the_weights_is_kept_or_skipped_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    state = torch.nn.Linear(2, 3).state_dict()
    args = argparse.Namespace(model=Settings(), colour=Colour.RED, tree=[{1: ({2},)}])
    extra = {"batch_num": 7, "loss": 0.5, "note": "n", "best": None, "args": args, "list": [1]}
    torch.save({"state_dict": {**state, "odd": Colour.RED}, **extra}, path)
    report = read_pth(path)
    assert list(report.state_dict) == ["weight", "bias"]
    assert report.other == {"batch_num": 7, "loss": 0.5, "note": "n", "best": None}
    assert len(report.skipped) == 3
    assert report.skipped[0] == "state_dict.odd"
    assert set(report.skipped[1:]) == {"args (argparse.Namespace)", "list"}


def test_big_endian_files_are_turned_round(tmp_path: Path) -> None:
    pickled = describe("w", count=3, shape=(3,), strides=(1,))
    data = np.arange(3, dtype=">f4").tobytes()
    path = archive(tmp_path, pickled, {"0": data}, byteorder=b"big")
    assert read_pth(path).state_dict["w"].numpy().tolist() == [0, 1, 2]


def test_import_gives_float32_weights_in_the_order_of_the_state_dict(tmp_path: Path) -> None:
    config = preset("tiny")
    weights = random_weights()
    path = tmp_path / "model.pth"
    reordered = {k: torch.from_numpy(weights[k]).bfloat16() for k in sorted(weights)}
    torch.save({"state_dict": reordered}, path)
    read = import_apple(path, config)
    assert list(read) == list(state_shapes(config.model))
    for name, value in read.items():
        assert value.dtype == np.float32
        assert np.array_equal(value, reordered[name].float().numpy())


def rename_one(weights: Weights) -> None:
    weights["conv_in.wait"] = weights.pop("conv_in.weight")


def reshape_one(weights: Weights) -> None:
    weights["conv_in.bias"] = weights["conv_in.bias"][:, None]


def poison_one(weights: Weights) -> None:
    weights["conv_in.bias"][3] = np.nan


def round_one(weights: Weights) -> None:
    weights["conv_in.bias"] = weights["conv_in.bias"].astype(np.int64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            rename_one,
            r"1 missing \(first 'conv_in.weight'\), 1 unexpected \(first 'conv_in.wait'\)",
        ),
        (reshape_one, r"1 of another shape \(first 'conv_in.bias'\); check --preset"),
        (poison_one, "conv_in.bias holds NaN or infinite values"),
        (round_one, "conv_in.bias should hold floating-point numbers, but holds int64"),
    ],
)
def test_import_refuses_weights_that_do_not_fit(
    damage: Callable[[Weights], None], message: str, tmp_path: Path
) -> None:
    weights = random_weights()
    damage(weights)
    path = tmp_path / "model.pth"
    torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, path)
    with pytest.raises(PthError, match=message):
        import_apple(path, preset("tiny"))


def test_import_names_the_preset_that_would_fit(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({k: torch.from_numpy(v) for k, v in random_weights().items()}, path)
    with pytest.raises(PthError, match="its weights are those of --preset tiny"):
        import_apple(path, preset("emoji"))


def random_weights() -> Weights:
    rng = np.random.default_rng(0)
    shapes = state_shapes(preset("tiny").model)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


# --- files that are something else --------------------------------------------------------------


def old_format() -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.zeros(3), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<!doctype html><html>", "is a web page"),
        (b"\x10\0\0\0\0\0\0\0{}", "looks like a safetensors file"),
        (b"hello", "expected a zip archive"),
        (b"\0" * 257 + b"ustar" + b"\0" * 250, "before PyTorch 1.6"),
        (b"PK\x03\x04", "cut off"),
        (b"PK\x03\x04" + b"\xff" * 3000, "cut off"),
        (b"PK\x03\x04PK\x05\x06" + b"\xff" * 18, "does not fit the file"),
        (b"PK\x03\x04PK\x05\x06" + b"\0" * 18, "exactly one data.pkl"),
    ],
)
def test_other_files_are_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(PthError, match=message):
        read_pth(path)


def test_the_format_before_1_6_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(old_format())
    with pytest.raises(PthError, match=r"before PyTorch 1\.6.*torch\.save\(torch\.load"):
        read_pth(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PthError, match="no such file"):
        read_pth(tmp_path / "absent.pth")
    with pytest.raises(PthError, match="cannot be read"):
        read_pth(tmp_path)


# --- archives made by hand ----------------------------------------------------------------------


def archive(
    folder: Path,
    pickled: bytes,
    storages: dict[str, bytes] | None = None,
    byteorder: bytes = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    path = folder / "model.pth"
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", byteorder)
        for key, data in (storages or {}).items():
            file.writestr(f"archive/data/{key}", data)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def whole(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def sequence(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def describe(
    name: str,
    count: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    storage: bytes = b"ctorch\nFloatStorage\n",
    key: str = "0",
) -> bytes:
    """The pickle of a dictionary with one tensor."""
    place = b"(" + text("storage") + storage + text(key) + text("cpu") + whole(count) + b"tQ"
    arguments = b"(" + place + whole(offset) + sequence(shape) + sequence(strides)
    arguments += b"\x89ccollections\nOrderedDict\n)Rt"
    return b"\x80\x02}" + text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def test_a_tensor_described_by_hand_is_read(tmp_path: Path) -> None:
    path = archive(
        tmp_path, describe("w", 4, (2, 2), (1, 2)), {"0": np.arange(4.0, dtype="f4").tobytes()}
    )
    assert read_pth(path).state_dict["w"].numpy().tolist() == [[0, 2], [1, 3]]


BIG = 1 << 40


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (describe("w", 4, (5,), (1,)), "reaches outside its storage"),
        (describe("w", 4, (2, 2), (2, 2)), "reaches outside its storage"),
        (describe("w", 4, (4,), (1,), offset=1), "reaches outside its storage"),
        (describe("w", 4, (1,), (1,), offset=4), "reaches outside its storage"),
        (describe("w", 4, (BIG,), (0,)), "reaches outside its storage"),
        (describe("w", 4, (2,), (-1,), offset=1), "an impossible shape or strides"),
        (describe("w", 4, (-2,), (1,)), "an impossible shape or strides"),
        (describe("w", 4, (2,), (1, 1)), "do not match"),
        (describe("w", 4, (1,) * 17, (1,) * 17), "an impossible shape or strides"),
        (describe("w", 4, (0, BIG), (1, 1)), "impossible shape"),
        (describe("w", 4, (0, 1 << 20, 1 << 20, 1 << 20), (1,) * 4), "impossible shape"),
        (describe("w", 4, (2,), (1,), offset=-1), "without a storage and an offset"),
        (describe("w", 5, (2,), (1,)), "should be 20 bytes, but the archive holds 16"),
        (describe("w", BIG, (2,), (1,)), "but the archive holds 16"),
        (describe("w", 1 << 60, (2,), (1,)), "in a way that torch.save never does"),
        (describe("w", 4, (2,), (1,), key="1"), "'data/1' is missing"),
        (describe("w", 4, (2,), (1,), key="../../data/0"), "is missing"),
        (describe("w", 4, (2,), (1,), storage=b"cos\nsystem\n"), "has the type 'os.system'"),
        (describe("w", 4, (2,), (1,), storage=b"ctorch\nComplexFloatStorage\n"), "has the type"),
        (describe("w", 4, (2,), (1,), storage=b"N"), "in a way that torch.save never does"),
    ],
)
def test_tensors_outside_their_storage_are_refused(
    pickled: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(PthError, match=message):
        read_pth(archive(tmp_path, pickled, {"0": b"\0" * 16}))


def test_compressed_entries_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    pickled = describe("w", 1 << 24, (1 << 24,), (1,))
    path = archive(tmp_path, pickled, {"0": bytes(1 << 26)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(PthError, match="compressed or encrypted"):
        read_pth(path)


def test_an_endless_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PthError, match="expected at most"):
        read_pth(archive(tmp_path, b"\x80\x02" + b"]0" * (3 << 20) + b"."))


def test_two_archives_in_one_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, describe("w", 4, (2,), (1,)), {"0": b"\0" * 16})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("other/data.pkl", b".")
    with pytest.raises(PthError, match=r"exactly one data\.pkl"):
        read_pth(path)


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, describe("w", 4, (2,), (1,)), {"0": b"\0" * 16})
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")  # the last entry: data/0
    content[at + 20 : at + 28] = struct.pack("<2L", 1 << 30, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(PthError, match="reaches outside the file"):
        read_pth(path)


def directory_field(index: int, at: int, data: bytes) -> Callable[[bytearray], None]:
    """Overwrites a field of one entry of the directory: 0 data.pkl, 1 byteorder, 2 data/0."""

    def damage(content: bytearray) -> None:
        place = -1
        for _ in range(index + 1):
            place = content.index(b"PK\x01\x02", place + 1)
        content[place + at : place + at + len(data)] = data

    return damage


def rename_to_the_last(content: bytearray) -> None:
    content[:] = content.replace(b"archive/byteorder", b"archive/data.pkl\0")


def junk_in_front(content: bytearray) -> None:
    content[:0] = b"PK\x03\x04" + bytes(96)


def swell_directory(content: bytearray) -> None:
    """A directory of 300,000 empty entries, in a file that is long enough for it."""
    at, end = content.index(b"PK\x01\x02"), content.rindex(b"PK\x05\x06")
    room = 300_000 * 46
    record = bytearray(content[end:])
    record[12:20] = struct.pack("<2L", room, at)
    content[at:] = (b"PK\x01\x02" + bytes(42)) * 300_000 + record


def lie_in_zip64(content: bytearray) -> None:
    """A zip64 record whose directory would be of 2**60 bytes."""
    end = content.rindex(b"PK\x05\x06")
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 3, 3, 1 << 60, 0)
    content[end:end] = record + struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)


WIDE = struct.pack("<2L", 0xFFFFFFFF, 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (directory_field(2, 20, struct.pack("<2L", 1 << 30, 1 << 30)), "reaches outside the file"),
        (directory_field(0, 20, struct.pack("<2L", 300, 300)), "or into another entry"),
        (directory_field(2, 42, bytes(4)), "or into another entry"),
        (directory_field(2, 42, struct.pack("<L", 1 << 30)), "does not fit the file"),
        (directory_field(2, 42, struct.pack("<L", 1)), "or into another entry"),
        (directory_field(2, 20, WIDE), "reaches outside the file"),
        (directory_field(2, 24, struct.pack("<L", 15)), "compressed or encrypted"),
        (directory_field(2, 8, b"\x01"), "compressed or encrypted"),
        (directory_field(2, 10, b"\x63"), "compressed or encrypted"),
        (directory_field(1, 0, b"PK\x01\x03"), "does not fit the file"),
        (directory_field(2, 28, b"\x0d"), "does not fit the file"),
        (rename_to_the_last, "lists a name twice"),
        (junk_in_front, "does not fit the file"),
        (swell_directory, "directory of 13800000 bytes"),
        (lie_in_zip64, "does not fit the file"),
    ],
)
def test_a_zip_whose_directory_lies_is_refused(
    damage: Callable[[bytearray], None], message: str, tmp_path: Path
) -> None:
    path = archive(tmp_path, describe("w", 4, (2,), (1,)), {"0": b"\0" * 16})
    content = bytearray(path.read_bytes())
    damage(content)
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(PthError, match=message):
        read_pth(path)


# --- pickles that are meant to do harm ------------------------------------------------------------


class Harm:
    """Pickles to a call of os.system, which would leave a file behind."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch canary",)


class HarmThroughState:
    def __reduce__(self) -> tuple[Any, ...]:
        return (collections.OrderedDict, (), {"x": Harm()}, iter([Harm()]), iter([("k", Harm())]))


CALL = b"(" + text("touch canary") + b"t"
COMMANDS = {
    "reduce": b"cos\nsystem\n" + CALL + b"R",
    "posix": b"cposix\nsystem\n" + CALL + b"R",
    "stack_global": text("os") + text("system") + b"\x93" + CALL + b"R",
    "memoised_name": text("os") + b"q\x000" + b"h\x00" + text("system") + b"\x93" + CALL + b"R",
    "inst": b"(" + text("touch canary") + b"ios\nsystem\n",
    "obj": b"(cos\nsystem\n" + text("touch canary") + b"o",
    "newobj": b"cos\nsystem\n" + CALL + b"\x81",
    "newobj_ex": b"cos\nsystem\n" + CALL + b"}\x92",
    "persistent_id": b"cos\nsystem\n" + CALL + b"RQ",
    "persistent_text": b"Pos.system('touch canary')\n",
    "copyreg": b"ccopyreg\n_reconstructor\n(cos\nsystem\n" + text("touch canary") + b"NtR",
    "extension": b"\x82\x01" + CALL + b"R",
    "extension4": b"\x84\x01\x00\x00\x00" + CALL + b"R",
    "build": b"cbuiltins\nobject\n)\x81}" + text("__setstate__") + b"cos\nsystem\nsb"
    + text("touch canary") + b"b",
    "eval": b"cbuiltins\neval\n(" + text("__import__('os').system('touch canary')") + b"tR",
    "getattr": b"cbuiltins\ngetattr\n(cos\n__dict__\n" + text("system") + b"tR" + CALL + b"R",
    "imports": b"ccanary_module\nanything\n",
    "rebuild": b"ctorch._utils\n_rebuild_parameter\n(cos\nsystem\n" + CALL + b"R\x89NtR",
    "size": b"ctorch\nSize\n(cos\nsystem\n" + CALL + b"RtR",
    "ordered_dict": b"ccollections\nOrderedDict\n(cos\nsystem\n" + CALL + b"RtR",
    "class_harm": pickle.dumps(Harm(), 2)[2:-1],
    "state_harm": pickle.dumps(HarmThroughState(), 2)[2:-1],
    "state_harm4": pickle.dumps(HarmThroughState(), 4)[11:-1],
}  # fmt: skip


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a successful attack creates."""
    (tmp_path / "canary_module.py").write_text("open('canary', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "canary"


@pytest.mark.bundle
def test_the_attacks_do_work_on_an_unpickler(canary: Path) -> None:
    for name in ("reduce", "stack_global", "inst", "class_harm", "state_harm"):
        with contextlib.suppress(AttributeError):  # after the call, for want of an append method
            pickle.loads(b"\x80\x04" + COMMANDS[name] + b".")
        assert canary.exists(), name
        canary.unlink()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("place", ["alone", "value", "key", "beside", "tensor"])
def test_malicious_pickles_run_nothing(name: str, place: str, canary: Path) -> None:
    command = COMMANDS[name]
    good = describe("w", 4, (2,), (1,))
    pickled = {
        "alone": b"\x80\x04" + command + b".",
        "value": b"\x80\x04}" + text("w") + command + b"s.",
        "key": b"\x80\x04}" + command + text("w") + b"s.",
        "beside": good[:-1] + text("args") + command + b"s.",
        "tensor": b"\x80\x04}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + command
        + b"K\x00)))NtRs.",
    }[place]  # fmt: skip
    path = archive(canary.parent, pickled, {"0": b"\0" * 16})
    if place == "beside" and not name.startswith(("persistent", "state_harm")):
        report = read_pth(path)
        assert list(report.state_dict) == ["w"]
        assert len(report.skipped) + len(report.other) <= 1
    else:
        with pytest.raises(PthError):
            read_pth(path)
    assert not canary.exists()
    assert "canary_module" not in sys.modules


LONG = b"X" + struct.pack("<I", 1 << 21) + b"x" * (1 << 21)
BOMBS = {
    "nested_lists": b"]" * 100_000 + b"a" * 99_999,
    "nested_tuples": b")" + b"\x85" * 200_000,
    "tuple_doubling_as_key": b"}" + b")" + b"2\x86" * 2000 + b"Ns",
    "set_of_doubled_tuples": b"\x8f(" + b")" + b"2\x86" * 2000 + b"\x90",
    "list_in_itself": b"]q\x00h\x00a",
    "dict_in_itself": b"}q\x00" + text("state_dict") + b"h\x00s",
    "memo": b"N" + b"\x94" * 500_001,
    "memo_index": b"Nr\xff\xff\xff\xff",
    "marks": b"(" * 100_000 + b"1" * 100_000,
    "long_class_name": LONG + b"2\x93" + (b"h\x00" * 10),
    "long_key": b"}q\x00" + LONG + b"q\x01Ns" + b"h\x01Ns" * 100_000,
    "huge_number_as_key": b"}q\x00\x8b" + struct.pack("<I", 1 << 21) + b"\x7f" * (1 << 21)
    + b"q\x01Ns" + b"h\x01Ns" * 10_000,
    "huge_decimal": b"I" + b"9" * 100_000 + b"\n",
    "unknown_opcode": b"\xff",
    "out_of_band": b"\x97",
    "cut_off_text": b"X\xff\xff\xff\x7fabc",
    "cut_off_bytes": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc",
    "underflow": b"0",
    "underflow_mark": b"t",
    "underflow_reduce": b"R",
    "underflow_build": b"b",
    "recall_nothing": b"h\x07",
    "append_to_number": b"K\x01K\x02a",
    "fill_number": b"K\x01K\x02K\x03s",
    "odd_items": b"}(K\x01u",
    "stack_global_of_numbers": b"K\x01K\x02\x93",
    "call_without_tuple": b"ccollections\nOrderedDict\nNR",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path, b"\x80\x04" + BOMBS[name] + b".")
    with pytest.raises(PthError) as caught:
        read_pth(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_a_pickle_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PthError, match="damaged"):
        read_pth(archive(tmp_path, b"\x80\x02}"))


def damaged(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if kind == 1:
        at = rng.randrange(len(data))
        del data[at : at + rng.randint(1, 50)]
    return bytes(data)


def fuzz(rounds: int, folder: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": tensors(), "args": argparse.Namespace(a=Settings())}, buffer)
    content = buffer.getvalue()
    path = folder / "model.pth"
    for seed in range(rounds):
        path.write_bytes(damaged(content, random.Random(seed)))
        with contextlib.suppress(PthError):
            for tensor in read_pth(path).state_dict.values():
                tensor.numpy().copy()
        path.unlink()  # a new file each time: the old one may still be mapped


def test_damaged_files_give_tensors_or_one_sentence(tmp_path: Path) -> None:
    fuzz(400, tmp_path)


@pytest.mark.slow
def test_many_damaged_files_give_tensors_or_one_sentence(tmp_path: Path) -> None:
    fuzz(20_000, tmp_path)
