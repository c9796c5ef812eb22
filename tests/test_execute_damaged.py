"""Damaged and hostile packages: each is refused in one sentence."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from execute_cases import convert

from mdm_apple.conversion.execute import ExecutionError, Package
from mdm_apple.conversion.execute.schema import model_message

WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
MODEL = "Data/com.apple.CoreML/model.mlmodel"


def rewrite(package: Path, change: Callable[[Any], None]) -> None:
    message = model_message()
    message.ParseFromString((package / MODEL).read_bytes())
    function = message.mlProgram.functions["main"]
    change(function.block_specializations[function.opset])
    (package / MODEL).write_bytes(message.SerializeToString())


def operation(block: Any, kind: str) -> Any:
    return next(op for op in block.operations if op.type == kind)


def blob(block: Any) -> Any:
    values = (op.attributes["val"] for op in block.operations if op.type == "const")
    return next(v.blobFileValue for v in values if v.WhichOneof("value") == "blobFileValue")


def truncate(file: str, keep: float) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        data = (package / file).read_bytes()
        (package / file).write_bytes(data[: int(len(data) * keep)])

    return change


def patch_weights(offset: int, data: bytes) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        content = bytearray((package / WEIGHTS).read_bytes())
        content[offset : offset + len(data)] = data
        (package / WEIGHTS).write_bytes(content)

    return change


def in_manifest(path: str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        file = package / "Manifest.json"
        manifest = json.loads(file.read_text())
        manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = path
        file.write_text(json.dumps(manifest))

    return change


def in_program(change: Callable[[Any], None]) -> Callable[[Path], None]:
    return lambda package: rewrite(package, change)


def link_outside(package: Path) -> None:
    outside = package.parent / "outside.bin"
    (package / WEIGHTS).rename(outside)
    (package / WEIGHTS).symlink_to(outside)


def huge(block: Any) -> None:
    operation(block, "conv").outputs[0].type.tensorType.dimensions[0].constant.size = 1 << 50


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut short": (truncate(WEIGHTS, 0.5), "truncated"),
    "weights empty": (truncate(WEIGHTS, 0), "expected a weight file, got 0 bytes"),
    "weights missing": (lambda p: (p / WEIGHTS).unlink(), "is missing"),
    "weights linked outside": (link_outside, "leads out of the package"),
    "weights of another version": (patch_weights(4, b"\x07"), "version 2, got 7"),
    "weight record overwritten": (patch_weights(64, b"\0" * 4), "no weight record at offset 64"),
    "weight of another type": (patch_weights(68, b"\x03"), "holds uint8, but the program expects"),
    "weight size changed": (patch_weights(72, b"\x01"), "the package is damaged"),
    "weight data beyond the end": (
        patch_weights(80, struct.pack("<Q", 1 << 60)),
        "the file is truncated",
    ),
    "offset beyond the end": (
        in_program(lambda b: setattr(blob(b), "offset", 1 << 62)),
        "lies outside the file",
    ),
    "offset off the grid": (in_program(lambda b: setattr(blob(b), "offset", 65)), "off its grid"),
    "weight file elsewhere": (
        in_program(lambda b: setattr(blob(b), "fileName", "@model_path/../../../x")),
        "leads out of the package",
    ),
    "weight file absolute": (
        in_program(lambda b: setattr(blob(b), "fileName", "/etc/passwd")),
        "expected @model_path/",
    ),
    "weight file unlisted": (
        in_program(lambda b: setattr(blob(b), "fileName", "@model_path/../../Manifest.json")),
        "leads out of the package",
    ),
    "manifest missing": (lambda p: (p / "Manifest.json").unlink(), "no such file"),
    "manifest not JSON": (truncate("Manifest.json", 0.7), "not the manifest"),
    "manifest path outside": (in_manifest("../../x.mlmodel"), "leads out of the package"),
    "manifest path absolute": (in_manifest("/etc/x.mlmodel"), "leads out of the package"),
    "manifest path missing": (in_manifest("com.apple.CoreML/other.mlmodel"), "is missing"),
    "manifest path a folder": (in_manifest("com.apple.CoreML/weights"), "expected a .mlmodel"),
    "model cut short": (truncate(MODEL, 0.6), "damaged or cut short"),
    "model empty": (truncate(MODEL, 0), "expected an ML program, got an empty model"),
    "unknown operation": (
        in_program(lambda b: setattr(operation(b, "conv"), "type", "summon")),
        "the operation 'summon' is not supported",
    ),
    "helper named as operation": (
        in_program(lambda b: setattr(operation(b, "conv"), "type", "pad_spatial")),
        "the operation 'pad_spatial' is not supported",
    ),
    "unknown compressed form": (
        in_program(lambda b: setattr(operation(b, "const"), "type", "constexpr_magic")),
        "unknown compressed form",
    ),
    "unknown parameter": (
        in_program(lambda b: operation(b, "relu").inputs["y"].arguments.add(name="in0")),
        "parameter 'y' is not known",
    ),
    "parameter missing": (
        in_program(lambda b: operation(b, "conv").inputs.pop("weight") and None),
        "parameter 'weight' is missing",
    ),
    "input never computed": (
        in_program(lambda b: setattr(operation(b, "relu").inputs["x"].arguments[0], "name", "?")),
        "not computed before it",
    ),
    "wrong shape declared": (
        in_program(
            lambda b: setattr(
                operation(b, "relu").outputs[0].type.tensorType.dimensions[1].constant, "size", 7
            )
        ),
        "declares .* but computes",
    ),
    "impossible size declared": (in_program(huge), "GB to run, but this machine has"),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damaged_package_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    change, message = DAMAGES[name]
    package = tmp_path / "damaged.mlpackage"
    convert("weights", 18, "fp16").save(str(package))
    change(package)
    with pytest.raises(ExecutionError, match=message) as refusal:
        Package.open(package).load()
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400 + len(str(tmp_path))


def test_flipped_bits_are_refused_or_harmless(tmp_path: Path) -> None:
    """Any damage to the program ends in an ExecutionError, or leaves something that still runs."""
    package, rng = tmp_path / "flipped.mlpackage", np.random.default_rng(5)
    convert("weights", 18, "fp16").save(str(package))
    original = (package / MODEL).read_bytes()
    refused = 0
    for _ in range(120):
        data = bytearray(original)
        for place in rng.integers(0, len(data), size=rng.integers(1, 4)):
            data[place] ^= 1 << int(rng.integers(0, 8))
        (package / MODEL).write_bytes(data)
        try:
            Package.open(package).load()
        except ExecutionError as error_:
            refused += "\n" not in str(error_)
    assert refused > 20


def test_missing_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="no such file"):
        Package.open(tmp_path / "nothing.mlpackage")
    shutil.copy(__file__, tmp_path / "file.mlpackage")
    with pytest.raises(ExecutionError, match="cannot be read"):
        Package.open(tmp_path / "file.mlpackage")
