"""How much padding a network sees, and the null prompt, as properties of a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import Backend
from click.testing import CliRunner
from small import (
    CAPTIONS,
    around,
    longest_model,
    noisy_images,
    plain,
    random_state,
    random_text,
    save_random_model,
)

from mdm_apple.cli import group
from mdm_apple.config.model import ModelConfig, TextConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.strict_json import from_json, to_json
from mdm_apple.conversion.bundle import manifest as bundle_manifest
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.bundle.manifest import read_manifest, write_manifest
from mdm_apple.conversion.errors import BundleError
from mdm_apple.data.batches import Draws, make_batch
from mdm_apple.data.from_object import dataset_of
from mdm_apple.errors import ConfigError
from mdm_apple.storage.model_folder import load_model_config, save_config
from mdm_apple.text.feature_cache import FeatureCache
from mdm_apple.text.padding import seen_padding
from mdm_apple.text.tokenizer import TextError, Tokenizer, train_tokenizer
from mdm_apple.training.start import new_or_saved_tokenizer

pytest_plugins = ["bundles"]

NETWORKS = {
    "unmasked": plain(masked_cross_attention=False),
    "unmasked with head layers": plain(masked_cross_attention=False, num_text_head_layers=1),
    "unmasked inside": around(plain(masked_cross_attention=False)),
}
ROWS, LENGTH, SEEN, SIDE = 2, 9, 4, 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    return train_tokenizer(CAPTIONS, 120, path, lowercase=True)


def count_words(captions: Any) -> np.ndarray:
    return np.array([len(caption.split()) + 1 for caption in captions])


def mask_of(*captions: str) -> np.ndarray:
    return (np.arange(6) < count_words(captions)[:, None]).astype(np.float32)


def test_a_picture_shares_the_padding_of_its_own_captions() -> None:
    text = TextConfig(6, padding="longest")
    own = mask_of("", "a b", "a b c d e")
    seen = seen_padding(text, own, count_words, ["a b c", "", "f"])
    assert seen is not None
    assert seen.sum(axis=1).tolist() == [4, 3, 6]
    assert seen[0].tolist() == [1, 1, 1, 1, 0, 0]
    alone = seen_padding(text, mask_of("", "a b"), count_words)
    assert alone is not None
    assert alone.sum(axis=1).tolist() == [1, 3]
    assert seen_padding(TextConfig(6), mask_of("a"), count_words) is None


@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
def test_unseen_padding_is_as_if_it_were_cut(config: UNetConfig, backend: Backend) -> None:
    net = backend.network(config, random_state(config))
    features = random_text(ROWS, LENGTH)
    mask = (np.arange(LENGTH) < 3).astype(np.float32)[None].repeat(ROWS, 0)
    features *= mask[:, :, None]
    seen = (np.arange(LENGTH) < SEEN).astype(np.float32)[None].repeat(ROWS, 0)
    x = [backend.image(level) for level in noisy_images(config, ROWS, SIDE)]

    def predict(length: int, *seen: np.ndarray) -> list[np.ndarray]:
        text = (features[:, :length], mask[:, :length], *seen)
        conditioning = net.condition(*(backend.array(np.ascontiguousarray(part)) for part in text))
        tembs = net.embed(backend.array(np.full(ROWS, 500)))
        return [backend.numpy(level) for level in net.denoise(x, tembs, conditioning)]

    cut, hidden, all_seen = predict(SEEN), predict(LENGTH, seen), predict(LENGTH)
    for wanted, got, other in zip(cut, hidden, all_seen, strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, atol=1e-5 * scale)
        assert np.abs(other - wanted).max() > 1e-3 * scale


def test_a_network_that_masks_padding_sees_none_of_it_anyway(backend: Backend) -> None:
    config = plain()
    net = backend.network(config, random_state(config))
    features = random_text(ROWS, LENGTH)
    mask = (np.arange(LENGTH) < 3).astype(np.float32)[None].repeat(ROWS, 0)
    given = backend.array(features), backend.array(mask)
    with_all, with_some = net.condition(*given), net.condition(*given, backend.array(mask))
    np.testing.assert_array_equal(
        backend.numpy(with_all.pooled[:, :, None, None]),
        backend.numpy(with_some.pooled[:, :, None, None]),
    )


def test_the_null_prompt_is_the_end_or_a_space_and_the_end(tokenizer: Tokenizer) -> None:
    space = Tokenizer(tokenizer.model, lowercase=True, null_prompt="space")
    assert tokenizer.tokens("", 8) == tokenizer.tokens(" \t", 8) == [1]
    (piece, end), again = space.tokens("", 8), space.tokens(" ", 8)
    assert (end, again) == (1, [piece, 1])
    assert piece > 2
    assert space.tokens("\u200b", 8) == [piece, 1]  # cleaned it is not empty, but it has no token
    assert tokenizer.tokens("\u200b", 8) == [1]
    assert space.tokens("red heart", 8) == tokenizer.tokens("red heart", 8)
    assert space.lengths(["", "red heart"], 2).tolist() == [2, 2]


def test_training_begins_with_the_null_prompt_that_sampling_has(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = save_random_model(tmp_path / "model", longest_model())
    text = load_model_config(model).text
    assert text is not None
    for source in (None, model):
        made = new_or_saved_tokenizer(text, source, CAPTIONS)
        assert made is not None
        assert len(made.tokens("", 8)) == 2
        ending = dataclasses.replace(text, null_prompt="end")
        made = new_or_saved_tokenizer(ending, source, CAPTIONS)
        assert made is not None
        assert made.tokens("", 8) == [1]


def test_a_tokenizer_without_a_space_cannot_make_it(tokenizer: Tokenizer) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.ParseFromString(tokenizer.model)
    for piece in proto.pieces:
        if piece.piece == "\u2581":
            piece.piece = "qq"
    with pytest.raises(TextError, match="has no piece for a space"):
        Tokenizer(proto.SerializeToString(), null_prompt="space")


def test_a_dropped_caption_keeps_the_padding_that_it_had() -> None:
    class Named:
        def __len__(self) -> int:
            return 32

        def caption(self, index: int) -> str:
            return f"caption {index}"

        def picture(self, index: int, side: int) -> np.ndarray:
            return np.full((side, side, 3), index, np.uint8)

    draws = Draws(seed=3, sides=(8,), diffusion=preset("tiny").diffusion, caption_dropout=0.5)
    batch = make_batch(dataset_of(Named(), 8), np.arange(32), draws, 0)
    assert batch.whole == [f"caption {k}" for k in range(32)]
    dropped = [caption == "" for caption in batch.captions]
    assert 4 < sum(dropped) < 28
    assert batch.rows(3, 5).whole == ["caption 3", "caption 4"]


def test_settings_are_written_only_where_they_differ() -> None:
    before = preset("emoji")
    assert before.text
    assert "padding" not in to_json(before)
    assert "null_prompt" not in to_json(before)
    text = dataclasses.replace(before.text, padding="longest", null_prompt="space")
    after = dataclasses.replace(before, text=text)
    written = json.loads(to_json(after))["text"]
    assert (written["padding"], written["null_prompt"]) == ("longest", "space")
    assert from_json(ModelConfig, to_json(after)) == after
    with pytest.raises(ConfigError, match=r"text\.padding: expected one of max_tokens, longest"):
        from_json(ModelConfig, to_json(after).replace('"longest"', '"widest"'))


def test_a_cache_of_another_null_prompt_is_refused(tmp_path: Path) -> None:
    from test_features import CAPTIONS as captions  # noqa: N811
    from test_features import KEY, encode

    from mdm_apple.text.feature_cache import embed_captions

    space = dataclasses.replace(KEY, null_prompt="space")
    for name, own, other in (("old", KEY, space), ("new", space, KEY)):
        path = tmp_path / name
        embed_captions(captions, encode, path, own)
        assert FeatureCache(path, own).lengths(["x", "a cat"]).tolist() == [2, 3]
        with pytest.raises(TextError, match=r"was made with null_prompt '(end|space)' where"):
            FeatureCache(path, other)


def test_embed_takes_the_encoder_folder_that_sample_takes(tmp_path: Path) -> None:
    from test_apple_pictures import ENCODER, GOLDEN, import_from

    model = import_from(GOLDEN, tmp_path)
    config = load_model_config(model)
    assert config.text
    unnamed = dataclasses.replace(config.text, encoder_sha256=None, tokenizer_sha256=None)
    save_config(model, dataclasses.replace(config, text=unnamed))
    out = str(tmp_path / "features")
    asked = [
        "embed",
        "--model",
        str(model),
        "--prompt",
        "green",
        "--text-encoder",
        str(ENCODER),
        "--out",
        out,
    ]
    made = CliRunner().invoke(group, [*asked, "--backend", "torch"])
    assert made.exit_code == 0, made.output
    for how in (["--features", out], ["--text-encoder", str(ENCODER)]):
        picture = ["sample", "green", "--model", str(model), "--steps", "2", "--backend", "torch"]
        sampled = CliRunner().invoke(group, [*picture, *how, "--out", str(tmp_path / how[0])])
        assert sampled.exit_code == 0, sampled.output


def with_fields(tiny_bundle: Bundle, **fields: Any) -> str:
    return write_manifest(dataclasses.replace(tiny_bundle.manifest, **fields)).decode()


def test_a_manifest_says_2_only_where_it_must(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.manifest.text
    text = dataclasses.replace(tiny_bundle.manifest.text, padding="longest")
    plain, padded = with_fields(tiny_bundle), with_fields(tiny_bundle, text=text)
    assert (json.loads(plain)["schema"], json.loads(padded)["schema"]) == (1, 2)
    assert not {"format", "video", "sizes", "adapters"} & json.loads(plain).keys()
    assert read_manifest(padded, "here").text == text
    with pytest.raises(BundleError, match="does not match the schema"):
        read_manifest(padded.replace('"schema": 2', '"schema": 1'), "here")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sizes", (bundle_manifest.SizeInfo("wide", 48, 32),)),
        ("adapters", (bundle_manifest.AdapterInfo("ink", "0" * 64),)),
    ],
)
def test_a_bundle_for_a_newer_version_is_refused_by_name(
    name: str, value: Any, tiny_bundle: Bundle
) -> None:
    with pytest.raises(BundleError, match=f"uses {name}, which this version cannot run"):
        read_manifest(with_fields(tiny_bundle, **{name: value}), "here")


def test_packages_of_the_other_format_are_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"names \w+\.mlpackage, but its format is coreai"):
        read_manifest(with_fields(tiny_bundle, format="coreai"), "here")
