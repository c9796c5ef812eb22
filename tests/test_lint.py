"""The lint names what keeps a program off the Neural Engine; costs are counted from the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from mil_programs import Body, half, package

from mdm_apple.cli.inspect_command import command as inspect_command
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.bundle.manifest import Feature, PackageInfo
from mdm_apple.conversion.bundle.memory import carried_bytes, peak_memory
from mdm_apple.conversion.compress.palettize import PalettizeReport
from mdm_apple.conversion.coreml import quiet_coremltools
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.execute.liveness import peak_bytes
from mdm_apple.conversion.execute.schema import model_message
from mdm_apple.conversion.inspect.inspect import inspect_bundle, parameters_of
from mdm_apple.conversion.inspect.lint import RULES, count_by_rule, lint
from mdm_apple.conversion.package_file.cost import CHIPS, cost_of
from mdm_apple.conversion.package_file.split import cut_points

pytest_plugins = ["bundles"]


def seeded_dtype(b: Any, x: Any) -> Any:
    return b.cast(x=b.sin(x=b.cast(x=x, dtype="fp32")), dtype="fp16")


def seeded_mask(b: Any, x: Any) -> Any:
    mask = np.where(np.arange(32) < 9, 0, -np.inf).astype(np.float16)
    return b.softmax(x=b.add(x=x, y=mask.reshape(1, 1, 1, 32)), axis=-1)


def seeded_lowest_mask(b: Any, x: Any) -> Any:
    mask = np.where(np.arange(32) < 9, 0, np.finfo(np.float16).min).astype(np.float16)
    return b.softmax(x=b.add(x=x, y=mask.reshape(1, 1, 1, 32)), axis=-1)


def seeded_singleton(b: Any, x: Any) -> Any:
    return b.relu(x=b.reshape(x=x, shape=(1, 1024, 64, 1)))


def seeded_linear(b: Any, x: Any) -> Any:
    rows = b.reshape(x=x, shape=(64, 1024))
    return b.linear(x=rows, weight=half(48, 1024), bias=half(48))


def seeded_matmul(b: Any, x: Any) -> Any:
    return b.matmul(x=b.reshape(x=x, shape=(64, 1024)), y=half(1024, 48))


def seeded_short(b: Any, x: Any) -> Any:
    return b.relu(x=b.reshape(x=x, shape=(1, 64, 128, 8)))


def seeded_large(b: Any, x: Any) -> Any:
    return b.tile(x=x, reps=(1, 32, 1, 1))


SEEDS: dict[str, tuple[Body, ...]] = {
    "dtype": (seeded_dtype,),
    "infinite-mask": (seeded_mask, seeded_lowest_mask),
    "singleton-last-axis": (seeded_singleton,),
    "linear": (seeded_linear, seeded_matmul),
    "short-last-axis": (seeded_short,),
    "large-operand": (seeded_large,),
}


@pytest.mark.parametrize(
    ("rule", "body"), [(rule, body) for rule, bodies in SEEDS.items() for body in bodies]
)
def test_seeded_violation_is_found(rule: str, body: Body, tmp_path: Path) -> None:
    findings = lint(package(tmp_path, body))
    assert rule in count_by_rule(findings)
    severities = {f.rule: f.severity for f in findings}
    errors = {r for r, s in severities.items() if s == "error"}
    assert errors <= {rule}  # and it alone
    assert any(f.rule == rule and f.detail for f in findings)


def test_six_axes_are_found(tmp_path: Path) -> None:
    """coremltools writes no such program, so an axis is added to one that it wrote."""
    made = package(tmp_path, lambda b, x: b.relu(x=x))
    model = made.path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    message = model_message()
    message.ParseFromString(model.read_bytes())
    function = message.mlProgram.functions["main"]
    (relu,) = function.block_specializations[function.opset].operations
    kind = relu.outputs[0].type.tensorType
    assert lint(made) == []
    for _ in range(2):
        kind.dimensions.add().constant.size = 1
    kind.rank = 6
    model.write_bytes(message.SerializeToString())
    assert "rank" in count_by_rule(lint(Package.open(made.path)))


def test_flexible_shape_is_found(tmp_path: Path) -> None:
    def inputs(coremltools: Any) -> list[Any]:
        sides = coremltools.RangeDim(16, 64, default=32)
        return [coremltools.TensorType(name="x", shape=(1, 64, sides, 32))]

    with quiet_coremltools() as coremltools:
        symbol = coremltools.converters.mil.mil.get_new_symbol()
    made = package(tmp_path, lambda b, x: b.relu(x=x), (1, 64, symbol, 32), inputs)
    assert count_by_rule(lint(made)) == {"dynamic-shape": 1}


def test_every_rule_has_a_seed_a_reason_and_a_source() -> None:
    assert {*SEEDS, "rank", "dynamic-shape"} == {rule.name for rule in RULES}
    assert all(rule.reason and rule.source for rule in RULES)


def test_clean_program_has_no_findings(tmp_path: Path) -> None:
    def body(b: Any, x: Any) -> Any:
        mask = np.where(np.arange(32) < 9, 0, -1e4).astype(np.float16)
        return b.softmax(x=b.add(x=x, y=mask.reshape(1, 1, 1, 32)), axis=1)

    assert lint(package(tmp_path, body)) == []


def test_layers_of_training_break_rules_and_are_not_meant_for_it(tiny_bundle: Bundle) -> None:
    found = {p.name: p for p in inspect_bundle(tiny_bundle).packages}
    assert not found["denoiser"].for_neural_engine
    assert found["denoiser"].findings["linear"] > 10
    assert found["denoiser"].first_errors


def test_inspection_names_reason_and_source_of_every_rule_that_is_broken(
    tiny_bundle: Bundle,
) -> None:
    found = inspect_bundle(tiny_bundle)
    broken = {name for package in found.packages for name in package.findings}
    assert {rule.name for rule in found.rules} == broken != set()
    done = CliRunner().invoke(inspect_command, [str(tiny_bundle.path)])
    assert "licence: not stated, source: not stated, made from: not stated" in done.stdout
    for rule in found.rules:
        assert f"{rule.name} ({rule.severity}): {rule.reason} [{rule.source}]" in done.stdout


def test_parameters_of_a_package_are_counted_whatever_their_form(
    tiny_bundle: Bundle, tiny_palettized: tuple[Bundle, PalettizeReport], tmp_path: Path
) -> None:
    made = package(tmp_path, lambda b, x: b.conv(x=x, weight=half(48, 64, 3, 3), bias=half(48)))
    assert parameters_of(made.function()) == 48 * 64 * 9 + 48
    plain, small = (inspect_bundle(b) for b in (tiny_bundle, tiny_palettized[0]))
    counts = [p.parameters for p in plain.packages]
    assert [p.parameters for p in small.packages] == counts
    # time embeddings are tables, and positions of the encoder one table for all blocks
    assert 0.8 < sum(counts) / (plain.parameters + (plain.text_encoder_parameters or 0)) < 1.2


def test_cost_counts_multiplications(tmp_path: Path) -> None:
    def body(b: Any, x: Any) -> Any:
        h = b.conv(x=x, weight=half(48, 64, 3, 3), pad_type="same")
        return b.relu(x=h)

    cost = cost_of(package(tmp_path, body).function())
    values = 48 * 32 * 32
    assert cost.flops == 2 * values * 64 * 9 + values
    assert cost.weight_bytes >= 2 * 48 * 64 * 9
    assert cost.traffic >= 2 * (64 * 32 * 32 + 3 * values)
    assert all(cost.seconds(chip) > 0 for chip in CHIPS)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_matrix_products_are_counted_whatever_has_the_batch(
    tmp_path: Path, transposed: bool, batched: bool
) -> None:
    """x (1, 64, 32, 32) by a matrix of 32 rows and 8 columns."""
    shape = (*((1, 64) if batched else ()), *((8, 32) if transposed else (32, 8)))

    def body(b: Any, x: Any) -> Any:
        return b.matmul(x=x, y=half(*shape), transpose_y=transposed)

    assert cost_of(package(tmp_path, body).function()).flops == 2 * 64 * 32 * 8 * 32


def test_numbers_of_chips_have_sources_and_say_what_is_assumed() -> None:
    for chip in CHIPS:
        assert chip.assumption
        assert chip.sources
        assert all(source.startswith("https://") for source in chip.sources)


def test_cut_is_where_least_crosses(tmp_path: Path) -> None:
    def body(b: Any, x: Any) -> Any:
        h = b.conv(x=x, weight=half(64, 64, 3, 3), pad_type="same", name="first")
        h = b.conv(x=h, weight=half(4, 64, 1, 1), name="narrow")
        return b.conv(x=h, weight=half(64, 4, 12, 12), pad_type="same", name="last")

    function = package(tmp_path, body).function()
    cut = cut_points(function)[0]
    assert (cut.operation, cut.tensors, cut.crossing_bytes) == ("narrow", 1, 2 * 4 * 32 * 32)
    assert 0.3 < cut.share < 0.7


def info(name: str, phase: Any, takes: dict[str, int], gives: dict[str, int]) -> PackageInfo:
    def features(named: dict[str, int]) -> tuple[Feature, ...]:
        return tuple(Feature(n, "fp16", (1, count)) for n, count in named.items())

    return PackageInfo(
        name, name, phase, None, "fp16", 16, "cpuOnly", 100, 10, features(takes), features(gives)
    )


def test_memory_counts_what_waits_between_packages() -> None:
    packages = [
        info("text", "prompt", {"ids": 1}, {"text": 50}),
        info("down", "step", {"x": 1, "text": 50}, {"skip": 30, "features": 5}),
        info("core", "step", {"features": 5}, {"hidden": 5}),
        info("up", "step", {"hidden": 5, "skip": 30}, {"prediction": 1}),
    ]
    # in bytes: while the core runs, text stays for the next step and the skip for the way up
    assert carried_bytes(packages) == [0, 0, 160, 100]
    peak = peak_memory(packages)
    assert (peak.resident, peak.staged, peak.minimal) == (570, 470, 270)


def test_predicted_memory_of_a_bundle_adds_weights_and_activations(tiny_bundle: Bundle) -> None:
    peak = inspect_bundle(tiny_bundle).peak_memory
    assert peak is not None
    packages = tiny_bundle.manifest.packages
    assert peak.resident > sum(p.bytes for p in packages)
    assert peak.minimal <= peak.staged <= peak.resident
    denoiser = Package.open(tiny_bundle.file("denoiser.mlpackage"))
    assert peak.minimal >= peak_bytes(denoiser.function())
