"""The text encoder as packages: within fp16 whatever its size, split where it is too large."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from malformed import frozen_model
from small import plain, trainable_model

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.presets import FLAN_T5, preset
from mdm_apple.conversion.compress.settings import Setting, refusal
from mdm_apple.conversion.convert import convert_part, within_limit
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.layouts import text_encoder
from mdm_apple.conversion.layouts.names import TEXT_FEATURES, TEXT_MASK, TOKEN_IDS
from mdm_apple.conversion.layouts.text_encoder import missing_text, text_encoder_part
from mdm_apple.conversion.package_file.weights import weights_of
from mdm_apple.conversion.psnr import closeness
from mdm_apple.conversion.source.model import (
    ModelSource,
    encoder_megabytes,
    load_source,
    random_source,
)
from mdm_apple.text.encoder_folder import ENCODER_FOLDER

MASK = np.array([[1, 1, 1, 1, 1, 0, 0, 0]], np.float32)
IDS = np.array([[5, 9, 17, 30, 1, 0, 0, 0]], np.int32)


@pytest.fixture(scope="module")
def source() -> ModelSource:
    config = trainable_model()
    assert config.text is not None
    assert config.text.encoder is not None
    deep = dataclasses.replace(config.text.encoder, num_layers=3)
    return random_source(
        dataclasses.replace(config, text=dataclasses.replace(config.text, encoder=deep)), 3
    )


def grown(source: ModelSource, factor: float) -> ModelSource:
    """An encoder whose feed-forwards end in numbers `factor` times as large."""
    changed = random_source(source.config, 3)
    assert changed.encoder is not None
    with torch.no_grad():
        for name, weight in changed.encoder.named_parameters():
            if name.endswith("wo.weight"):
                weight.mul_(factor)
    return changed


def as_package(source: ModelSource, path: Path) -> Package:
    assert source.encoder is not None
    convert_part(text_encoder_part(source.encoder, source), path, "iOS18", source)
    return Package.open(path)


def features(source: ModelSource) -> np.ndarray:
    assert source.encoder is not None
    with torch.inference_mode():
        return source.encoder(torch.from_numpy(IDS).long(), torch.from_numpy(MASK)).numpy()


def run(package: Package) -> np.ndarray:
    return package.load(precision="fp16")({TOKEN_IDS: IDS, TEXT_MASK: MASK})[TEXT_FEATURES]


def test_sums_beyond_fp16_stay_finite_and_right(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = grown(source, 1e5)
    assert large.encoder is not None
    reached: list[float] = []
    for block in large.encoder.encoder.block:
        block.register_forward_hook(lambda _m, _i, out: reached.append(float(out.abs().max())))
    wanted = features(large)
    assert max(reached) > 1e5, "the residual sum must be beyond fp16"
    assert closeness(wanted, run(as_package(large, tmp_path / "a.mlpackage"))).psnr > 50
    monkeypatch.setattr(text_encoder, "SHRINK", 1.0)  # the twin: what it is for
    assert not np.isfinite(run(as_package(large, tmp_path / "b.mlpackage"))).all()


def test_package_is_the_encoder_and_shares_relative_positions(
    source: ModelSource, tmp_path: Path
) -> None:
    package = as_package(source, tmp_path / "a.mlpackage")
    assert closeness(features(source), run(package)).psnr > 55
    assert closeness(features(grown(source, 1.05)), run(package)).psnr < 55
    assert source.encoder is not None
    heads = source.encoder.config.num_heads
    tables = [
        name
        for o in package.function().operations
        if o.kind == "const"
        for name, kind in o.outputs
        if kind.shape == (1, heads, 8, 8)
    ]
    assert len(tables) == 1  # for three blocks


def test_embedding_takes_palettes(source: ModelSource, tmp_path: Path) -> None:
    package = as_package(source, tmp_path / "a.mlpackage")
    (embedding,) = [w for w in weights_of(package.function()) if "shared" in w.name]
    assert refusal(embedding, Setting(4)) is None


def test_large_encoder_becomes_pieces_that_give_the_same(
    source: ModelSource, tmp_path: Path
) -> None:
    assert source.encoder is not None
    whole = as_package(source, tmp_path / "text_encoder.mlpackage")
    wanted = run(whole)
    size = sum(f.stat().st_size for f in whole.path.rglob("*") if f.is_file())
    part = text_encoder_part(source.encoder, source)
    pieces = within_limit(part, tmp_path, 0.7 * size / 1e6, source)
    assert [p.name for p in pieces] == ["text_encoder_1", "text_encoder_2"]
    assert {p.phase for p in pieces} == {"text"}
    assert not whole.path.exists()
    known: dict[str, np.ndarray] = {TOKEN_IDS: IDS, TEXT_MASK: MASK}
    for piece in pieces:
        path = tmp_path / f"{piece.name}.mlpackage"
        assert sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) <= 0.7 * size
        package = Package.open(path)
        inputs = {n: known[n] for n in package.inputs}
        known |= package.load(precision="fp16")(inputs)
    assert np.array_equal(known[TEXT_FEATURES], wanted)


def test_megabytes_of_the_official_encoder() -> None:
    assert encoder_megabytes(FLAN_T5["google/flan-t5-xl"]) == pytest.approx(2447, abs=1)


def test_what_is_missing_is_said_with_its_size_and_both_remedies() -> None:
    config = preset("mdm64")
    assert config.text is not None
    without = ModelSource(config, random_source(trainable_model(), 0, False).net)
    said = missing_text(without)
    assert said is not None
    assert "MB in fp16" in said
    assert "MB at 4 bits" in said
    assert "--text-encoder yes" in said
    assert "mdm embed" in said
    assert (
        missing_text(dataclasses.replace(without, config=ModelConfig(plain(text_dim=None), 8)))
        is None
    )


def test_encoder_without_tokenizer_is_named(source: ModelSource) -> None:
    said = missing_text(source)
    assert said is not None
    assert "no tokenizer" in said
    assert missing_text(dataclasses.replace(source, tokenizer=b"x")) is None


@pytest.mark.parametrize(("limit", "taken"), [(250.0, True), (0.0001, False)])
def test_small_frozen_encoders_are_taken_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, taken: bool
) -> None:
    frozen = frozen_model(tmp_path / "model", tmp_path / "encoder")
    (tmp_path / "encoder").rename(frozen / ENCODER_FOLDER)
    monkeypatch.setattr("mdm_apple.conversion.source.model.SMALL_ENCODER_MB", limit)
    assert (load_source(frozen, "auto").encoder is not None) == taken
    assert load_source(frozen, "yes").encoder is not None
    assert load_source(frozen, "no").encoder is None
