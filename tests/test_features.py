"""The feature cache: what goes in comes out, little of the file is read, damage is told."""

from __future__ import annotations

import dataclasses
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from mdm_apple.config.model import TextConfig
from mdm_apple.config.network import T5Config
from mdm_apple.errors import MdmError
from mdm_apple.storage.tensorfile import from_bfloat16, to_bfloat16
from mdm_apple.text.feature_cache import FeatureCache, FeatureKey, embed_captions
from mdm_apple.text.tokenizer import TextError, TextFeatures

KEY = FeatureKey("e" * 64, "f" * 64, lowercase=True, max_tokens=5, width=12)
CAPTIONS = ["a cat", "A Cat", "a dog on\na mat", "café", "one two three four five six", "x"]
ROWS = 18  # of 24 bytes: the tokens of the six different captions, the null prompt included

Features = TextFeatures[NDArray[np.float32]]


def encode(captions: list[str]) -> Features:
    """One row for each word and one for the end; its numbers depend on the word and its place."""
    words = [[*caption.split(), "</s>"][-KEY.max_tokens :] for caption in captions]
    longest = max(map(len, words))
    values = np.zeros((len(words), longest, KEY.width), np.float32)
    mask = np.zeros((len(words), longest), np.float32)
    for row, text in enumerate(words):
        for place, word in enumerate(text):
            seed = [place, *word.encode()]
            values[row, place] = np.random.RandomState(seed).standard_normal(KEY.width)
            mask[row, place] = 1
    return TextFeatures(values, mask)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "features.safetensors"
    assert embed_captions(CAPTIONS, encode, path, KEY, batch_size=2) == 6
    return path


def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return from_bfloat16(to_bfloat16(values))


def test_features_come_back_rounded_to_bfloat16_and_padded(path: Path) -> None:
    cache = FeatureCache(path, KEY)
    asked = ["a dog on a mat", "x", "a cat", "x", ""]
    expected, got = encode(asked), cache.lookup(asked)
    np.testing.assert_array_equal(got.mask, expected.mask)
    np.testing.assert_array_equal(got.values, rounded(expected.values))
    assert np.abs(got.values - expected.values).max() <= 2**-8 * np.abs(expected.values).max()
    assert got.values.dtype == got.mask.dtype == np.float32


def test_length_pads_further_and_never_cuts(path: Path) -> None:
    cache = FeatureCache(path, KEY)
    got = cache.lookup(["a cat", "x"], length=5)
    assert got.values.shape == (2, 5, KEY.width)
    assert got.mask.sum(axis=1).tolist() == [3, 2]
    assert not got.values[got.mask == 0].any()
    with pytest.raises(TextError, match="expected at least 3 for these captions, got 2"):
        cache.lookup(["a cat"], length=2)


def test_each_different_caption_is_encoded_once_and_the_null_prompt_always(tmp_path: Path) -> None:
    seen: list[str] = []
    steps: list[tuple[int, int]] = []

    def counting(captions: list[str]) -> Features:
        seen.extend(captions)
        return encode(captions)

    count = embed_captions(
        iter([*CAPTIONS, *CAPTIONS]),
        counting,
        tmp_path / "f",
        KEY,
        batch_size=4,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert count == len(seen) == len(set(seen)) == 6
    assert "" in seen
    assert seen == sorted(seen, key=len)
    assert steps == [(4, 6), (6, 6)]


def test_the_order_of_captions_does_not_change_the_file(path: Path, tmp_path: Path) -> None:
    embed_captions(reversed(CAPTIONS), encode, tmp_path / "again", KEY, batch_size=2)
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def test_the_file_is_valid_safetensors_with_bf16_rows_without_padding(path: Path) -> None:
    pytest.importorskip("torch")
    with safe_open(path, framework="pt") as file:
        features = file.get_tensor("features")
        assert str(features.dtype) == "torch.bfloat16"
        assert tuple(features.shape) == (ROWS, KEY.width)
        assert file.metadata() == KEY.as_metadata()
        starts, lengths = file.get_tensor("starts"), file.get_tensor("lengths")
    cache = FeatureCache(path, KEY)
    first = int(starts[0])
    stored = features[first : first + int(lengths[0])].float().numpy()
    whole = [cache.lookup([c]).values[0] for c in [*CAPTIONS, ""]]
    assert any(w.shape == stored.shape and (w == stored).all() for w in whole)


def test_spelling_variants_that_are_tokenized_alike_are_found(path: Path) -> None:
    cache = FeatureCache(path, KEY)
    assert len(cache) == 6
    assert "A  CAT\n" in cache
    exact = dataclasses.replace(KEY, lowercase=False)
    embed_captions(["A Cat"], encode, path, exact)
    assert "A Cat" in FeatureCache(path, exact)
    assert "a cat" not in FeatureCache(path, exact)


def test_a_missing_caption_is_named(path: Path) -> None:
    cache = FeatureCache(path, KEY)
    assert "a bird" not in cache
    with pytest.raises(TextError, match=r"no features for the caption 'a bird'; run `mdm embed`"):
        cache.lookup(["a cat", "a bird"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder_sha256", "0" * 64),
        ("tokenizer_sha256", "0" * 64),
        ("max_tokens", 6),
        ("width", 11),
        ("lowercase", False),
    ],
)
def test_a_cache_of_another_encoder_or_tokenizer_is_refused(
    path: Path, field: str, value: Any
) -> None:
    other = dataclasses.replace(KEY, **{field: value})
    with pytest.raises(TextError, match=rf"was made with {field} .* run `mdm embed` with this"):
        FeatureCache(path, other)


def test_the_key_comes_from_the_text_settings_of_a_model() -> None:
    encoder = T5Config(100, 12, 4, 16, 1, 2)
    text = TextConfig(5, encoder, True, encoder_sha256="e" * 64, tokenizer_sha256="f" * 64)
    assert FeatureKey.of(text) == KEY
    with pytest.raises(TextError, match="need the encoder, encoder_sha256 and tokenizer_sha256"):
        FeatureKey.of(dataclasses.replace(text, encoder_sha256=None))


def test_a_lookup_reads_only_the_rows_it_needs(tmp_path: Path) -> None:
    """A cache of 4 GiB, sparse on disk, opens and answers within 64 MiB of memory."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "f"
    embed_captions(["a cat"], encode, path, KEY)
    rows = (4 << 30) // (2 * KEY.width)
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    old_rows = header["features"]["shape"][0]
    grown = (rows - old_rows) * KEY.width * 2
    header["features"]["shape"][0] = rows
    header["features"]["data_offsets"][1] += grown
    for name in ("digests", "starts", "lengths"):
        header[name]["data_offsets"] = [n + grown for n in header[name]["data_offsets"]]
    index_at = 8 + size + old_rows * KEY.width * 2
    with path.open("r+b") as file:
        file.write(content[:8] + json.dumps(header).encode().ljust(size))
        file.seek(index_at)
        file.write(bytes(len(content) - index_at))
        file.seek(index_at + grown)
        file.write(content[index_at:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    got = FeatureCache(path, KEY).lookup(["a cat"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB on Linux
    np.testing.assert_array_equal(got.values, rounded(encode(["a cat"]).values))


def test_another_process_opens_the_file_again(path: Path) -> None:
    cache = FeatureCache(path, KEY)
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    again: FeatureCache = pickle.loads(sent)
    np.testing.assert_array_equal(again.lookup(["x"]).values, cache.lookup(["x"]).values)


def test_every_truncation_is_refused(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    cut = tmp_path / "cut"
    for size in [0, 1, 7, 8, 9, 500, 4095, 4096, 4600, len(content) - 1]:
        cut.write_bytes(content[:size])
        with pytest.raises(TextError, match="not a complete file of text features"):
            FeatureCache(cut, KEY)
    cut.write_bytes(content + b"\0")
    with pytest.raises(TextError, match="not a complete file of text features"):
        FeatureCache(cut, KEY)


def edited(path: Path, change: dict[str, Any]) -> None:
    """Write other values into the header of a cache, in the room that it has."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = {**json.loads(content[8 : 8 + size]), **change}
    path.write_bytes(content[:8] + json.dumps(header).encode().ljust(size) + content[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        {"extra": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}},
        {"features": {"dtype": "F16", "shape": [ROWS, 12], "data_offsets": [0, 24 * ROWS]}},
        {"features": {"dtype": "BF16", "shape": [2 * ROWS, 6], "data_offsets": [0, 24 * ROWS]}},
        {"features": {"dtype": "BF16", "shape": [1 << 62, 12], "data_offsets": [0, 24 * ROWS]}},
        {"features": {"dtype": "BF16", "shape": [-ROWS, -12], "data_offsets": [0, 24 * ROWS]}},
        {"features": {"dtype": "BF16", "shape": [float(ROWS), 12], "data_offsets": [0, 24 * ROWS]}},
        {"features": {"dtype": "BF16", "shape": None, "data_offsets": [0, 24 * ROWS]}},
        {"features": [1, 2]},
        {"starts": {"dtype": "I64", "shape": [6], "data_offsets": [0, 48]}},
        {
            "starts": {
                "dtype": "I64",
                "shape": [2, 3],
                "data_offsets": [24 * ROWS + 192, 24 * ROWS + 240],
            }
        },
        {"__metadata__": None},
    ],
)
def test_a_header_that_lies_is_refused(path: Path, change: dict[str, Any]) -> None:
    edited(path, change)
    with pytest.raises(TextError, match="not a complete file of text features"):
        FeatureCache(path, KEY)


def test_the_header_edited_with_nothing_is_still_accepted(path: Path) -> None:
    edited(path, {})
    assert len(FeatureCache(path, KEY)) == 6


@pytest.mark.parametrize("number", [-1, 1 << 62, -(1 << 63), ROWS])
def test_an_index_that_points_outside_is_refused(path: Path, number: int) -> None:
    content = bytearray(path.read_bytes())
    content[-8:] = struct.pack("<q", number)  # the last length
    path.write_bytes(content)
    with pytest.raises(TextError, match="invalid index"):
        FeatureCache(path, KEY)
    content[-8:] = struct.pack("<q", 1)
    content[-56:-48] = struct.pack("<q", number)  # the last start
    path.write_bytes(content)
    with pytest.raises(TextError, match="invalid index"):
        FeatureCache(path, KEY)


def test_numbers_that_are_not_finite_are_refused_on_the_way_in_and_out(path: Path) -> None:
    for value in (np.nan, np.inf, 3.4e38):  # the last one rounds to infinity

        def broken(captions: list[str], value: float = value) -> Features:
            features = encode(captions)
            features.values[-1, 0, 0] = value
            return features

        with pytest.raises(TextError, match="expected finite numbers; encode in fp32 or bf16"):
            embed_captions(CAPTIONS, broken, path, KEY)
    assert len(FeatureCache(path, KEY)) == 6  # the old file stayed
    content = bytearray(path.read_bytes())
    content[4096 : 4096 + 24 * ROWS] = b"\xff" * (24 * ROWS)
    path.write_bytes(content)
    with pytest.raises(TextError, match="holds numbers that are not finite"):
        FeatureCache(path, KEY).lookup(["x"])


def test_an_encoder_that_leaves_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    def narrow(captions: list[str]) -> Features:
        features = encode(captions)
        return TextFeatures(features.values[..., 1:], features.mask)

    def gaps(captions: list[str]) -> Features:
        features = encode(captions)
        features.mask[0, 0] = 0
        return features

    with pytest.raises(TextError, match="expected 6 captions of width 12"):
        embed_captions(CAPTIONS, narrow, tmp_path / "f", KEY)
    with pytest.raises(TextError, match="expected 1 to 5 tokens and then padding"):
        embed_captions(CAPTIONS, gaps, tmp_path / "f", KEY)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_encoder_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing(captions: list[str]) -> Features:
        if "x" in captions:
            return encode(captions)
        raise FileNotFoundError(2, "gone", "weights")

    with pytest.raises(FileNotFoundError, match="gone"):
        embed_captions(CAPTIONS, failing, tmp_path / "f", KEY, batch_size=2)
    assert list(tmp_path.iterdir()) == []


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="no such file"):
        FeatureCache(tmp_path / "none", KEY)
    with pytest.raises(TextError, match="no such file"):
        FeatureCache(tmp_path, KEY)
    with pytest.raises(MdmError, match="cannot be written"):
        embed_captions(CAPTIONS, encode, tmp_path / "none" / "f", KEY)


@given(st.lists(st.floats(width=32), min_size=1))
def test_bfloat16_is_what_torch_rounds_to(numbers: list[float]) -> None:
    torch = pytest.importorskip("torch")
    values = np.array(numbers, np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(rounded(values), expected)
