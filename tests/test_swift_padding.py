"""Text of models that pad to the longest caption of a picture: in Swift as in Python."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_cache import converted
from small import longest_model, save_random_model
from students import save_random_student
from swift_pictures import made, psnr
from swift_tools import Dump

from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.source.model import load_source
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.text.feature_cache import FeatureCache, FeatureKey, embed_captions
from mdm_apple.text.tokenizer import TextFeatures, Tokenizer, spelled

pytest_plugins = ["bundles", "swift_bundles"]

LONG = "house with a small garden"
LENGTHS = {"red heart": 5, LONG: 17, "": 2, "cat": 11}  # of tokens, in a cache; no two are equal


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The network and the encoder of `longest`, which see all of the padding here."""
    root = tmp_path_factory.mktemp("usual")
    folder = save_random_model(root / "model", longest_model("max_tokens", "end"))
    return converted(load_source(folder), root / "usual.bundle", ConvertOptions("nested"))


@pytest.fixture(scope="module")
def longest_student(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("student")
    folder = save_random_student(root, flow_map=2, model=longest_model())
    return converted(load_source(folder), root / "student.bundle", ConvertOptions("nested"))


def tokenizer_of(bundle: Bundle) -> Tokenizer:
    text = bundle.manifest.text
    assert text is not None
    assert text.tokenizer is not None
    path = bundle.file(text.tokenizer)
    return Tokenizer.load(path, lowercase=text.lowercase, null_prompt=text.null_prompt)


@pytest.mark.parametrize("layout", ["longest", "usual"])
def test_captions_have_the_tokens_of_python(
    dump: Dump, request: pytest.FixtureRequest, layout: str
) -> None:
    bundle: Bundle = request.getfixturevalue(layout)
    tokenizer = tokenizer_of(bundle)
    captions = ["", "  ", "\u200e", "x", "Red Heart", LONG, LONG * 3]
    found = dump.json("ids", bundle.path, given=captions)
    assert found == [tokenizer.tokens(caption, 24) for caption in captions]
    assert [len(ids) for ids in found[:3]] == [2 if layout == "longest" else 1] * 3
    assert len(found[-1]) == 24


@pytest.mark.parametrize(
    ("guidance", "negative"),
    [
        (1.0, ""),
        (4.0, LONG),
        pytest.param(4.0, "", marks=pytest.mark.slow),
        pytest.param(4.0, "x", marks=pytest.mark.slow),
    ],
)
def test_the_picture_is_that_of_the_reference(
    program: list[str],
    longest: Bundle,
    usual: Bundle,
    tmp_path: Path,
    guidance: float,
    negative: str,
) -> None:
    short, long = tokenizer_of(longest).lengths(["red heart", LONG], 24)
    assert 2 < short < long < 24  # neither all of the padding nor one length for all
    seed = random.SystemRandom().randrange(2**32)
    words = ["--seed", seed, "--steps", 2, "--guidance", guidance]
    words += ["--negative", negative] if negative else []
    ours = made(program, longest, tmp_path, *words)
    sampler = SamplerConfig(num_steps=2, guidance_scale=guidance)
    assert psnr(ours, longest, sampler, seed, negative=negative) >= 60
    # the twin: the same networks with all of the padding, and the end token as empty prompt
    assert psnr(ours, usual, sampler, seed, negative=negative) < 60


def test_the_prompt_sees_as_much_as_its_negative_prompt(
    program: list[str], longest: Bundle, tmp_path: Path
) -> None:
    """A weight of guidance so near 1 that the negative prompt itself does not show."""
    words = ["--seed", 3, "--steps", 2, "--guidance", 1.00001]
    ours = made(program, longest, tmp_path, *words, "--negative", LONG)
    sampler = SamplerConfig(num_steps=2, guidance_scale=1.00001)
    assert psnr(ours, longest, sampler, 3, negative=LONG) >= 60
    assert psnr(ours, longest, sampler, 3, negative="x") < 60


def test_a_student_sees_its_own_caption_alone(
    program: list[str], longest_student: Bundle, tmp_path: Path
) -> None:
    words = ["--sampler", "student", "--steps", 2, "--seed", 5, "--guidance", 2.5]
    ours = made(program, longest_student, tmp_path, *words)
    sampler = SamplerConfig("student", 2, guidance_scale=2.5)
    assert psnr(ours, longest_student, sampler, 5) >= 60
    assert psnr(ours, longest_student, dataclasses.replace(sampler, guidance_scale=2.0), 5) < 60


def cached(bundle: Bundle, path: Path) -> FeatureCache:
    """Random features of a few captions, of the lengths above."""
    text, config = bundle.manifest.text, bundle.config().text
    assert text is not None
    assert config is not None
    key = FeatureKey(
        config.encoder_sha256 or "0" * 64,
        text.tokenizer_sha256 or "",
        text.lowercase,
        text.max_tokens,
        text.width,
        text.null_prompt,
    )

    def encode(captions: list[str]) -> TextFeatures[Any]:
        lengths = np.array([LENGTHS[spelled(caption, lowercase=True)] for caption in captions])
        mask = (np.arange(text.max_tokens) < lengths[:, None]).astype(np.float32)
        values = np.random.RandomState(4).standard_normal((*mask.shape, text.width))
        return TextFeatures((values * mask[..., None]).astype(np.float32), mask)

    embed_captions(list(LENGTHS), encode, path, key)
    return FeatureCache(path, key)


@pytest.mark.parametrize("negative", [pytest.param(None, marks=pytest.mark.slow), LONG])
def test_lengths_come_from_a_feature_cache(
    program: list[str], longest: Bundle, usual: Bundle, tmp_path: Path, negative: str | None
) -> None:
    path = tmp_path / "features"
    cache = cached(longest, path)
    guidance = 1.0 if negative is None else 4.0
    words = ["--seed", 9, "--steps", 2, "--guidance", guidance, "--features", path]
    words += ["--negative", negative] if negative else []
    ours = made(program, longest, tmp_path, *words)
    sampler = SamplerConfig(num_steps=2, guidance_scale=guidance)
    assert psnr(ours, longest, sampler, 9, None, negative or "", cache) >= 60
    assert psnr(ours, usual, sampler, 9, None, negative or "", cache) < 60


def test_a_cache_with_another_null_prompt_is_refused(
    dump: Dump, longest: Bundle, usual: Bundle, tmp_path: Path
) -> None:
    for name, bundle in (("longest", longest), ("usual", usual)):
        cached(bundle, tmp_path / name)
    for cache, bundle, reason in [
        ("longest", longest, b""),
        ("usual", usual, b""),
        ("longest", usual, b"null_prompt"),
        ("usual", longest, b"null_prompt"),
    ]:
        out = tmp_path / "out"
        done = dump.run("features", bundle.path, tmp_path / cache, out, given=["cat"])
        assert (done.returncode == 0) == (not reason), done.stderr
        assert reason in done.stderr
