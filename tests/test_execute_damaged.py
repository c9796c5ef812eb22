"""Damaged and hostile packages: each is refused in one sentence."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from execute_cases import arrays, convert, ct, save, traced

from mdm_apple.conversion.coreml import quiet_coremltools
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


# --- what only other people's packages hold -----------------------------------------------------


class Scores(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.softmax(x.mean((2, 3)), 1)


class Looped(torch.nn.Module):
    """coremltools makes a loop of torch's GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = torch.nn.GRU(2, 2, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.inside(x)[0]


@cache
def described(kind: str) -> Any:
    """The coremltools model of a classifier of pictures, a flexible one, a loop or a pipeline."""
    x = torch.rand(1, 3, 4, 6)
    if kind == "classifier":
        image = [ct.ImageType(name="x", shape=x.shape)]
        config = ct.ClassifierConfig(["cat", "dog", "bird"])
        return traced(Scores(), (x,), image, classifier_config=config)
    if kind == "flexible":
        sides = [ct.RangeDim(lower_bound=2, upper_bound=9, default=4) for _ in range(2)]
        array = [ct.TensorType(name="x", shape=ct.Shape(shape=(1, 3, *sides)))]
        return traced(torch.nn.Flatten(2), (x,), array)
    if kind == "loop":
        steps = torch.rand(1, 7, 2)
        torch.manual_seed(0)
        return traced(Looped(), (steps,), arrays(steps))
    y = Scores()(x)
    models = [
        traced(Scores(), (x,), arrays(x), outputs=[ct.TensorType(name="y")]),
        traced(torch.nn.Softmax(1), (y,), [ct.TensorType(name="y", shape=y.shape)]),
    ]
    with quiet_coremltools():
        return ct.utils.make_pipeline(*models)


def given(kind: str) -> dict[str, Any]:
    if kind == "loop":
        return {"in0": np.ones((1, 7, 2), np.float32)}
    name = "in0" if kind == "pipeline" else "x"
    return {name: np.ones((1, 3, 4, 6), np.float32)}


def run(package: Path, kind: str) -> Any:
    return Package.open(package).load()(given(kind))


def changed(package: Path, change: Callable[[Any], object]) -> None:
    message = model_message()
    message.ParseFromString((package / MODEL).read_bytes())
    change(message)
    (package / MODEL).write_bytes(message.SerializeToString())


def block_of(message: Any) -> Any:
    (function,) = message.mlProgram.functions.values()
    return function.block_specializations[function.opset]


def classes(message: Any) -> Any:
    value = operation(block_of(message), "classify").inputs["classes"].arguments[0].value
    return value.immediateValue.list.values


def loop(message: Any) -> Any:
    return operation(block_of(message), "while_loop")


CHANGES: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "fewer labels than scores": ("classifier", lambda m: classes(m).pop(), "2 labels for 3 scores"),
    "no labels": (
        "classifier",
        lambda m: operation(block_of(m), "classify").inputs["classes"].arguments[0].Clear(),
        "classify .*no list of class labels",
    ),
    "a label twice": (
        "classifier",
        lambda m: classes(m)[0].CopyFrom(classes(m)[1]),
        "class labels repeat",
    ),
    "a label that is nothing": ("classifier", lambda m: classes(m)[1].Clear(), "a class label is"),
    "scores of nothing": (
        "classifier",
        lambda m: operation(block_of(m), "classify").inputs.pop("probabilities"),
        "expected probabilities, classes and two outputs",
    ),
    "scores never computed": (
        "classifier",
        lambda m: setattr(
            operation(block_of(m), "classify").inputs["probabilities"].arguments[0], "name", "?"
        ),
        "classify .*not computed before it",
    ),
    "unknown colors": (
        "classifier",
        lambda m: setattr(m.description.input[0].type.imageType, "colorSpace", 0),
        "input 'x': is a picture of unknown colors, which is not supported",
    ),
    "a picture of another size than the program's": (
        "classifier",
        lambda m: setattr(m.description.input[0].type.imageType, "width", 7),
        "7 wide and 4 high, got one 6 wide",
    ),
    "a picture that is a text": (
        "classifier",
        lambda m: m.description.input[0].type.stringType.SetInParent(),
        "input 'x': is a string, which is not supported",
    ),
    "an input that is a state": (
        "classifier",
        lambda m: next(iter(m.mlProgram.functions.values())).inputs[0].type.stateType.SetInParent(),
        "input 'x': is a state",
    ),
    "a range that nothing fits": (
        "flexible",
        lambda m: m.description.input[0].type.multiArrayType.shapeRange.sizeRanges.pop(),
        "input 'x': expected fp32",
    ),
    "a rank known only later": (
        "flexible",
        lambda m: setattr(
            next(iter(m.mlProgram.functions.values()))
            .inputs[0]
            .type.tensorType.dimensions[2]
            .unknown,
            "variadic",
            True,
        ),
        "flexible number of axes",
    ),
    "a loop without blocks": (
        "loop",
        lambda m: loop(m).blocks.pop(),
        "its blocks take and return other numbers of values",
    ),
    "a loop with fewer values": (
        "loop",
        lambda m: loop(m).inputs["loop_vars"].arguments.pop(),
        "its blocks take and return other numbers of values",
    ),
    "a loop that returns what it does not know": (
        "loop",
        lambda m: loop(m).blocks[1].outputs.__setitem__(0, "?"),
        "its output of a block is '\\?'",
    ),
    "a loop that changes the shape of a value": (
        "loop",
        lambda m: loop(m).blocks[1].outputs.__setitem__(0, loop(m).blocks[1].outputs[1]),
        "while_loop .*declares int32",
    ),
    "a condition that is no truth value": (
        "loop",
        lambda m: loop(m).blocks[0].outputs.__setitem__(0, loop(m).blocks[0].inputs[1].name),
        "expected one truth value, got 16",
    ),
    "an unknown operation in a loop": (
        "loop",
        lambda m: setattr(loop(m).blocks[1].operations[-1], "type", "summon"),
        "the operation 'summon' is not supported",
    ),
    "blocks in an operation that has none": (
        "loop",
        lambda m: operation(block_of(m), "slice_by_index").blocks.add(),
        "has blocks; the package is damaged",
    ),
    "a pipeline of nothing": (
        "pipeline",
        lambda m: m.pipeline.ClearField("models"),
        "a pipeline without models",
    ),
    "a pipeline with a neural network": (
        "pipeline",
        lambda m: m.pipeline.models[1].neuralNetwork.layers.add(),
        "expected an ML program, got neuralNetwork",
    ),
    "a pipeline whose models do not meet": (
        "pipeline",
        lambda m: m.pipeline.models.pop(0),
        "model 1 of the pipeline: reads 'y'",
    ),
    "a pipeline whose output nothing computes": (
        "pipeline",
        lambda m: setattr(m.description.output[0], "name", "z"),
        "output 'z': no model of the pipeline computes it",
    ),
}


@pytest.mark.parametrize("kind", ["classifier", "flexible", "loop", "pipeline"])
def test_what_the_changes_start_from_runs(tmp_path: Path, kind: str) -> None:
    package = save(described(kind), tmp_path)
    assert run(package, kind)


@pytest.mark.parametrize("name", list(CHANGES))
def test_contradiction_in_a_package_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    kind, change, message = CHANGES[name]
    package = save(described(kind), tmp_path)
    changed(package, change)
    with pytest.raises(ExecutionError, match=message) as refusal:
        run(package, kind)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("kind", ["classifier", "flexible", "loop", "pipeline"])
def test_flipped_bits_of_any_package_are_refused_or_harmless(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdm_apple.conversion.execute.flexible.MAX_ROUNDS", 100)
    package, rng = save(described(kind), tmp_path), np.random.default_rng(6)
    original = (package / MODEL).read_bytes()
    refused = 0
    for _ in range(60):
        data = bytearray(original)
        for place in rng.integers(0, len(data), size=rng.integers(1, 4)):
            data[place] ^= 1 << int(rng.integers(0, 8))
        (package / MODEL).write_bytes(data)
        try:
            run(package, kind)
        except ExecutionError as error_:
            refused += "\n" not in str(error_)
    assert refused > 10


def test_missing_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="no such file"):
        Package.open(tmp_path / "nothing.mlpackage")
    shutil.copy(__file__, tmp_path / "file.mlpackage")
    with pytest.raises(ExecutionError, match="cannot be read"):
        Package.open(tmp_path / "file.mlpackage")
