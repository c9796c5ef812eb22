"""Mixed bits: what each weight is worth is measured, and spent where it counts."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from small import random_state

from mdm_apple.cli import group
from mdm_apple.config.strict_json import to_json
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.bundle.golden import read_golden
from mdm_apple.conversion.compress.choose_bits import (
    recipe_for,
    recipe_reaching,
    recipe_within,
    variant_recipe,
)
from mdm_apple.conversion.compress.compressed_network import CompressedNetwork
from mdm_apple.conversion.compress.knapsack import frontier
from mdm_apple.conversion.compress.palettize import (
    PalettizeReport,
    palettize,
    palettize_by_recipe,
    planned_palettes,
)
from mdm_apple.conversion.compress.plan import uniform_plan
from mdm_apple.conversion.compress.recipe import Recipe, read_recipe, recipe_plan
from mdm_apple.conversion.compress.sensitivity import (
    Sensitivity,
    measure_sensitivity,
    read_sensitivity,
)
from mdm_apple.conversion.compress.settings import PlannedWeight, Setting
from mdm_apple.conversion.errors import BundleError, ConversionError
from mdm_apple.conversion.layouts.names import TEXT_MASK, TOKEN_IDS
from mdm_apple.conversion.run.packages import Denoiser
from mdm_apple.conversion.source.model import ModelSource
from mdm_apple.conversion.source.trajectory import Probe, TextInputs
from mdm_apple.errors import MdmError

pytest_plugins = ["bundles"]


@pytest.fixture(scope="module")
def measured(tiny_bundle: Bundle, tiny_source: ModelSource) -> Sensitivity:
    return measure_sensitivity(tiny_bundle, tiny_source, prompts=1)


# --- the knapsack -------------------------------------------------------------------------------


def test_chosen_options_are_the_best_of_all() -> None:
    random = np.random.RandomState(0)
    for _ in range(20):
        items = [
            [(64 * int(random.randint(1, 30)), float(random.rand())) for _ in range(3)]
            for _ in range(5)
        ]
        budget = 64 * int(random.randint(5, 120))
        solved = frontier(items)
        totals = [
            (
                sum(item[k][0] for item, k in zip(items, ks, strict=True)),
                sum(item[k][1] for item, k in zip(items, ks, strict=True)),
            )
            for ks in itertools.product(range(3), repeat=5)
        ]
        fitting = [error for size, error in totals if size <= budget]
        picked = solved.within(budget)
        assert (picked is None) == (not fitting)
        if picked is not None:
            size = sum(item[k][0] for item, k in zip(items, picked, strict=True))
            error = sum(item[k][1] for item, k in zip(items, picked, strict=True))
            assert size <= budget
            assert error == pytest.approx(min(fitting), abs=1e-12)
        bound = float(random.rand()) * 3
        reached = solved.reaching(bound)
        wanted = [size for size, error in totals if error <= bound]
        assert (reached is None) == (not wanted)
        if reached is not None:
            size = sum(item[k][0] for item, k in zip(items, reached, strict=True))
            assert size == min(wanted)


def test_sizes_beyond_the_finest_step_still_fit() -> None:
    items = [[(10_000_019 * (k + 1), 1 / (k + 1)) for k in range(3)] for _ in range(40)]
    picked = frontier(items).within(700_000_000)
    assert picked is not None
    used = sum(item[k][0] for item, k in zip(items, picked, strict=True))
    assert 0.97 * 700_000_000 < used <= 700_000_000


# --- the network with weights of the bundle -----------------------------------------------------


@pytest.mark.parametrize("phase", ["prompt", "step"])
def test_error_of_one_weight_is_what_the_executor_finds(
    tiny_bundle: Bundle, tiny_source: ModelSource, phase: str, tmp_path: Path
) -> None:
    compare_with_executor(tiny_bundle, tiny_source, phase, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["prompt", "step"])
def test_error_of_one_rewritten_weight_is_what_the_executor_finds(
    nested: Bundle, tiny_source: ModelSource, phase: str, tmp_path: Path
) -> None:
    compare_with_executor(nested, tiny_source, phase, tmp_path)


def compare_with_executor(bundle: Bundle, source: ModelSource, phase: str, folder: Path) -> None:
    """What 2 bits for one weight change in the packages, and what they change in the network."""
    phases = {p.name: p.phase for p in bundle.manifest.packages}
    plan = [p for p in uniform_plan(bundle, Setting(2)) if p.setting]
    one, other = [p for p in plan if phases[p.package] == phase][:2]  # they reach all levels
    bits: dict[str, dict[str, int]] = {}
    for p in plan:
        bits.setdefault(p.package, {})[p.weight.name] = 2 if p is one else 16
    recipe = Recipe(1, "one", None, True, bits)
    small, _ = palettize_by_recipe(bundle, folder / "one.bundle", recipe)
    probe, text, tokens = first_prompt(bundle)

    def executed(which: Bundle) -> list[np.ndarray]:
        runner = Denoiser(which, "fp32")
        return runner.predict(probe.x_t, probe.t - 1, runner.condition(tokens))

    net = CompressedNetwork(bundle, source, plan)

    def placed(weight: PlannedWeight | None) -> list[np.ndarray]:
        new = {}
        if weight is not None:
            ((_, found),) = planned_palettes(bundle, [weight], lambda _: None, 1).items()
            new = {(weight.package, weight.weight.name): found.dense(weight.weight.shape)}
        before = net.exchange(new)
        out = net.predict(probe.x_t, probe.t - 1, net.condition(text))
        net.exchange(before)
        return [level.numpy() for level in out]

    before, after = executed(bundle), executed(small)
    for level, (plain, same, another) in enumerate(
        zip(placed(None), placed(one), placed(other), strict=True)
    ):
        change = after[level] - before[level]
        largest = np.abs(change).max()
        assert largest > 1e-3, "the weight must matter"
        assert np.abs(change - (same - plain)).max() < 0.03 * largest
        assert np.abs(change - (another - plain)).max() > 0.2 * largest


def first_prompt(bundle: Bundle) -> tuple[Probe, TextInputs, dict[str, np.ndarray]]:
    """From the golden record: the noisiest images but one, and their text in both forms."""
    golden = bundle.manifest.golden
    text, record = read_golden(bundle.file(golden.path), golden, bundle.sides)
    assert text is not None
    assert text.ids is not None
    probe = dataclasses.replace(record.probes[1], x_t=[x[:1] for x in record.probes[1].x_t])
    one = TextInputs(text.source, text.mask[:1], text.features[:1], text.ids[:1])
    return probe, one, {TEXT_MASK: text.mask[:1], TOKEN_IDS: text.ids[:1]}


def test_weights_come_back_as_they_were(tiny_bundle: Bundle, tiny_source: ModelSource) -> None:
    plan = [p for p in uniform_plan(tiny_bundle, Setting(4)) if p.setting]
    net = CompressedNetwork(tiny_bundle, tiny_source, plan)
    key = plan[0].package, plan[0].weight.name
    zeros = np.zeros(plan[0].weight.shape, np.float16)
    before = net.exchange({key: zeros})
    assert np.array_equal(net.exchange(before)[key].reshape(zeros.shape), zeros)
    assert before[key].any()


@pytest.mark.guards("weights of another model are matched")
def test_another_model_is_refused(tiny_bundle: Bundle, tiny_source: ModelSource) -> None:
    plan = [p for p in uniform_plan(tiny_bundle, Setting(4)) if p.setting]
    other = dataclasses.replace(tiny_source, net=type(tiny_source.net)(tiny_source.config.model))
    weights = random_state(tiny_source.config.model, seed=5)
    other.net.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()})
    with pytest.raises(BundleError, match="has other numbers; give the folder"):
        CompressedNetwork(tiny_bundle, other, plan)
    nameless = [p for p in plan if p.weight.name.startswith("select_")]
    assert nameless, "matrix products over pixels use a view of their weight"
    assert CompressedNetwork(tiny_bundle, tiny_source, nameless)
    with pytest.raises(BundleError, match="is in no layer of the model"):
        CompressedNetwork(tiny_bundle, other, nameless)


# --- choosing -----------------------------------------------------------------------------------


def test_fewer_bits_take_less_and_cost_more(measured: Sensitivity) -> None:
    assert len(measured.weights) > 40
    for weight in measured.weights:
        errors = [o.error for o in weight.options]
        assert [o.bits for o in weight.options] == [16, 8, 6, 4, 3, 2]
        assert errors == sorted(errors)
        assert errors[0] == 0 < errors[-1]
        sizes = [o.bytes for o in weight.options]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("bits", [6, 4, 3])
def test_uniform_size_is_foretold(
    tiny_bundle: Bundle, measured: Sensitivity, bits: int, tmp_path: Path
) -> None:
    _, report = palettize(tiny_bundle, tmp_path / "uniform.bundle", bits)
    assert report.bytes_after <= measured.uniform_bytes(bits) <= 1.02 * report.bytes_after


def test_budget_is_kept_and_used(
    tiny_bundle: Bundle, measured: Sensitivity, tmp_path: Path
) -> None:
    budget = measured.uniform_bytes(4)
    chosen = recipe_within(measured, budget, "mixed")
    bundle, report = palettize_by_recipe(tiny_bundle, tmp_path / "mixed.bundle", chosen.recipe)
    assert bundle.manifest.variant == "mixed"
    assert 0.97 * budget < report.bytes_after <= chosen.bytes <= budget
    used = {w.bits for w in report.weights}
    assert len(used - {16}) >= 3  # it is mixed


def test_mixed_bits_are_better_than_the_same_bits_everywhere(
    tiny_bundle: Bundle, tiny_source: ModelSource, measured: Sensitivity, tmp_path: Path
) -> None:
    chosen = variant_recipe(measured, "balanced")
    mixed, _ = palettize_by_recipe(tiny_bundle, tmp_path / "mixed.bundle", chosen.recipe)
    uniform, _ = palettize(tiny_bundle, tmp_path / "uniform.bundle", 4)
    text, record = read_golden(
        tiny_bundle.file("golden.safetensors"), tiny_bundle.manifest.golden, tiny_bundle.sides
    )
    assert text is not None
    assert text.ids is not None

    tokens = {TEXT_MASK: text.mask[:1], TOKEN_IDS: text.ids[:1]}

    def noise(bundle: Bundle) -> float:
        runner, total = Denoiser(bundle, "fp32"), 0.0
        conditioning = runner.condition(tokens)
        for probe in record.probes:
            out = runner.predict([x[:1] for x in probe.x_t], probe.t - 1, conditioning)
            for got, wanted in zip(out, probe.prediction, strict=True):
                total += float(np.square(got - wanted[:1]).sum() / np.square(wanted[:1]).sum())
        return total / (len(record.probes) * len(bundle.sides))

    gain = 10 * np.log10(noise(uniform) / noise(mixed))
    assert gain > 2
    foretold = -10 * np.log10(noise(mixed))
    # errors nearly add up; here nothing is guided, so those of text count for more than they are
    assert -2 < foretold - chosen.snr < 12


def test_quality_budget_gives_the_smallest_that_reaches_it(measured: Sensitivity) -> None:
    reaching = recipe_reaching(measured, 30, "mixed")
    assert reaching.snr >= 30
    smaller = recipe_within(measured, reaching.bytes - 2048, "mixed")
    assert smaller.snr < 30


def test_impossible_budget_is_refused_with_the_least(measured: Sensitivity) -> None:
    with pytest.raises(ConversionError, match=r"0.01 MB is too small .* at least \d+\.\d{3,} MB"):
        recipe_within(measured, 10_000, "mixed")


def test_the_least_budget_that_a_refusal_names_is_accepted(measured: Sensitivity) -> None:
    for odd in range(1, 5):  # whatever the last digits of the size are
        larger = dataclasses.replace(measured, fixed_bytes=measured.fixed_bytes + 10**8 + odd)
        with pytest.raises(ConversionError) as refused:
            recipe_for(larger, None, 0.01, None)
        least = float(str(refused.value).split("at least ")[1].split()[0])
        assert recipe_for(larger, None, least, None).bytes <= least * 1e6
        with pytest.raises(ConversionError):
            recipe_for(larger, None, least - 0.001, None)


def test_measurements_come_back_from_their_file(
    tiny_bundle: Bundle,
    tiny_palettized: tuple[Bundle, PalettizeReport],
    measured: Sensitivity,
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.json"
    path.write_text(to_json(measured), encoding="utf-8")
    assert read_sensitivity(path, tiny_bundle) == measured
    with pytest.raises(ConversionError, match="another bundle"):
        read_sensitivity(path, tiny_palettized[0])
    path.write_text(to_json(dataclasses.replace(measured, schema=9)), encoding="utf-8")
    with pytest.raises(ConversionError, match="schema 9"):
        read_sensitivity(path, tiny_bundle)


# --- recipes ------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], Any]


def bad_bits(bits: object) -> Change:
    def change(data: dict[str, Any]) -> None:
        package = next(iter(data["bits"].values()))
        package[next(iter(package))] = bits

    return change


HOSTILE: dict[str, tuple[Change, str]] = {
    "unknown key": (lambda d: d.update(bit=4), "unknown key 'bit'. Did you mean 'bits'"),
    "missing key": (lambda d: d.pop("name"), "key 'name' is missing"),
    "other schema": (lambda d: d.update(schema=2), "has schema 2"),
    "path as name": (lambda d: d.update(name="../../x"), "name must be"),
    "five bits": (bad_bits(5), "got 5"),
    "bits as text": (bad_bits("4"), "expected a whole number"),
    "bits as truth": (bad_bits(True), "expected a whole number"),
    "huge bits": (bad_bits(10**30), "expected a whole number"),
    "group of none": (lambda d: d.update(group=0), "group must be"),
    "bits a list": (lambda d: d.update(bits=[1]), "expected an object"),
    "unknown package": (
        lambda d: d["bits"].update(denoizer=d["bits"].pop("denoiser")),
        "no package 'denoizer'. Did you mean 'denoiser'",
    ),
    "unknown weight": (lambda d: d["bits"]["denoiser"].update(nothing=4), "no weight 'nothing'"),
    "weight left out": (lambda d: d["bits"]["denoiser"].popitem(), "made for another bundle"),
    "protected weight": (
        lambda d: d["bits"]["denoiser"].update(p_net_conv_in_weight_to_fp16=4),
        "cannot take 4 bits",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_recipes_are_refused_in_one_sentence(
    tiny_bundle: Bundle, measured: Sensitivity, name: str, tmp_path: Path
) -> None:
    change, says = HOSTILE[name]
    data = json.loads(to_json(recipe_within(measured, 10**9, "all").recipe))
    change(data)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(MdmError) as refused:
        recipe_plan(tiny_bundle, read_recipe(path))
    assert says in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 10**5, "JSON"),
        (b" " * (9 << 20), "at most 8 MiB"),
        (None, "no such file"),
    ],
)
def test_what_is_no_recipe_is_refused(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MdmError, match=says):
        read_recipe(path)


# --- the command --------------------------------------------------------------------------------


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(group, [str(w) for w in words])
    return done.exit_code, done.output


def test_command_measures_once_and_applies_its_recipe(
    tiny_bundle: Bundle, model_folder: Path, tmp_path: Path
) -> None:
    kept, recipe = tmp_path / "s.json", tmp_path / "r.json"
    common = ("palettize", tiny_bundle.path, "--quiet", "--json")
    code, out = run(
        *common,
        "--variant",
        "balanced",
        "--model",
        model_folder,
        "--prompts",
        1,
        "--sensitivity",
        kept,
        "--save-recipe",
        recipe,
        "--out",
        tmp_path / "a.bundle",
    )
    assert code == 0, out
    first = json.loads(out)
    assert first["variant"] == "balanced"
    assert first["bytes_after"] <= first["expected"]["bytes"]
    code, out = run(*common, "--recipe", recipe, "--out", tmp_path / "b.bundle")
    assert code == 0, out
    same = [Bundle.open(tmp_path / name).manifest.digest for name in ("a.bundle", "b.bundle")]
    assert same[0] == same[1]
    code, out = run(
        *common,
        "--bits",
        "mixed",
        "--budget",
        first["bytes_after"] / 1e6,
        "--sensitivity",
        kept,
        "--out",
        tmp_path / "c.bundle",
    )
    assert code == 0, out
    assert json.loads(out)["bytes_after"] <= first["bytes_after"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "one of --bits, --variant and --recipe"),
        (("--bits", "4", "--variant", "quality"), "one of --bits, --variant and --recipe"),
        (("--bits", "mixed"), "one of --budget and --least-db"),
        (("--bits", "4", "--budget", "1"), "one of --budget and --least-db"),
        (("--variant", "quality"), "add --model NAME"),
        (("--bits", "4", "--save-recipe", "r.json"), "goes with --variant"),
        (("--recipe", "r.json", "--group", "4"), "part of the recipe"),
    ],
)
def test_command_refuses_what_does_not_go_together(
    words: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(
        group, ["palettize", str(tmp_path), "--out", str(tmp_path / "out"), *words]
    )
    assert done.exit_code != 0
    assert says in str(done.exception) + done.output
