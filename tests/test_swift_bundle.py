"""Bundles as Swift reads them: what is accepted, what is refused, and the numbers inside."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from swift_tools import Dump

from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.bundle.manifest import read_manifest
from mdm_apple.conversion.errors import BundleError
from mdm_apple.storage.tensorfile import read_tensors

pytest_plugins = ["bundles", "swift_bundles"]


def with_digest(data: dict[str, Any]) -> str:
    """As json.dumps has it, with the digest that fits, so that nothing but the change counts."""
    rest = {key: value for key, value in data.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    data["digest"] = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else []
    )
    return [path, *(p for key, part in inner for p in places(part, (*path, key)))]


def change(data: dict[str, Any], path: tuple[Any, ...], chosen: random.Random) -> None:
    """Replace, drop or add something at a place."""
    parent: Any = data
    for key in path[:-1]:
        parent = parent[key]
    telling = [
        None,
        True,
        0,
        -1,
        1,
        2.0,
        0.5,
        10**12,
        "",
        "a b",
        "../x",
        "x" * 600,
        [],
        {},
        "0" * 64,
    ]
    match chosen.randrange(3):
        case 0:
            parent[path[-1]] = chosen.choice(telling)
        case 1:
            del parent[path[-1]]
        case _ if isinstance(parent[path[-1]], dict):
            parent[path[-1]]["unknown"] = 1
        case _:
            parent[path[-1]] = [parent[path[-1]]]


@pytest.fixture(params=["tiny_bundle", "student", "functions", "longest", "clips"])
def described(request: pytest.FixtureRequest) -> Bundle:
    """A bundle of each kind of manifest."""
    return request.getfixturevalue(request.param)


def test_manifests_are_accepted_and_refused_as_in_python(dump: Dump, described: Bundle) -> None:
    """1,000 changed manifests, new ones each time; the digest always fits."""
    text = (described.path / "manifest.json").read_text(encoding="utf-8")
    whole = json.loads(text)
    chosen = random.SystemRandom()
    every = [p for p in places(whole) if p and p[0] not in ("digest", "created")]
    texts = [text]
    for _ in range(1000):
        data = copy.deepcopy(whole)
        change(data, chosen.choice(every), chosen)
        texts.append(with_digest(data))
    answers = dump.json("manifests", given=texts)
    assert answers[0] == ""
    refused = 0
    for changed, answer in zip(texts, answers, strict=True):
        try:
            read_manifest(changed, "manifest.json")
        except BundleError:
            refused += 1
            if not answer:
                pytest.fail(f"only Python refuses {changed}")
            continue
        # What Swift refuses beyond the schema are paths and wiring, which Python sees on opening.
        beyond = (
            "provides",
            "puts out",
            "leads out",
            "twice",
            "list",
            "largest side",
            "steps",
            "minimum_steps",
            "student",
            "function per side",
            "json: video",
        )
        assert not answer or any(word in answer for word in beyond), answer
    assert refused > 300


NEWER: dict[str, Any] = {
    "sizes": [{"name": "wide", "width": 16, "height": 8}],
    "adapters": [{"name": "ink", "sha256": "a" * 64}],
}


@pytest.mark.parametrize("field", NEWER)
def test_what_neither_can_run_is_refused_by_both(
    dump: Dump, tiny_bundle: Bundle, field: str
) -> None:
    data = json.loads((tiny_bundle.path / "manifest.json").read_text(encoding="utf-8"))
    data[field] = NEWER[field]
    texts = [with_digest(data | {"schema": schema}) for schema in (1, 2)]
    old, new = dump.json("manifests", given=texts)
    assert old == f"manifest.json: {field} is unknown."
    assert new.startswith(f"manifest.json: {field} is ")
    assert new.endswith("that this version cannot run; update the package.")
    with pytest.raises(BundleError, match="does not match the schema"):
        read_manifest(texts[0], "manifest.json")
    with pytest.raises(BundleError, match=f"uses {field}, which this version cannot run"):
        read_manifest(texts[1], "manifest.json")


def test_packages_of_another_format_are_refused(dump: Dump, tiny_bundle: Bundle) -> None:
    text = (tiny_bundle.path / "manifest.json").read_text(encoding="utf-8")
    data = json.loads(text)
    changed = with_digest(data | {"schema": 2, "format": "coreai"})
    [answer] = dump.json("manifests", given=[changed])
    path = data["packages"][0]["path"]
    assert answer == f"manifest.json: packages lists {path}, but the format is coreai."


def test_damaged_manifests_are_refused(dump: Dump, described: Bundle) -> None:
    dump.fuzz("manifest", described.path / "manifest.json", 1000)


def test_a_manifest_that_does_not_fit_its_digest_is_refused(
    dump: Dump, tiny_bundle: Bundle
) -> None:
    text = (tiny_bundle.path / "manifest.json").read_text(encoding="utf-8")
    [answer] = dump.json("manifests", given=[text.replace('"fp16"', '"fp16x"', 1)])
    assert "digest" in answer


def test_alpha_bar_is_bit_for_bit_that_of_the_bundle(
    dump: Dump,
    tiny_bundle: Bundle,
    tmp_path: Path,
) -> None:
    dump("tables", tiny_bundle.path, tmp_path / "out")
    schedule = tiny_bundle.schedule()
    expected = np.concatenate([schedule.base, *schedule.tables])
    assert (tmp_path / "out").read_bytes() == expected.astype("<f8").tobytes()


def test_a_bundle_opens_and_its_hashes_are_checked(dump: Dump, tiny_bundle: Bundle) -> None:
    assert dump.json("bundle", tiny_bundle.path) == {"digest": tiny_bundle.manifest.digest}


def test_files_of_operating_systems_are_no_part_of_a_bundle(
    dump: Dump, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "copy.bundle"
    shutil.copytree(tiny_bundle.path, folder)
    package = folder / tiny_bundle.manifest.packages[0].path
    for name in (
        ".DS_Store",
        "._manifest.json",
        "Thumbs.db",
        "desktop.ini",
        "$RECYCLE.BIN",
        ".apdisk",
    ):
        (folder / name).write_bytes(b"\0")
        (package / name).write_bytes(b"\0")
    assert dump.json("bundle", folder) == {"digest": tiny_bundle.manifest.digest}


def _flip(bundle: Path) -> None:
    file = next(bundle.rglob("weight.bin"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "is not the file": _flip,
    "is missing": lambda b: (b / "tables.safetensors").unlink(),
    "is not listed": lambda b: (b / "more").write_bytes(b"x"),
    "bytes, not": lambda b: (b / "config.json").write_bytes(b"{}"),
    "is not a plain file": lambda b: (b / "link").symlink_to(b / "config.json"),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_bundle_is_refused_with_a_sentence(
    dump: Dump,
    tiny_bundle: Bundle,
    tmp_path: Path,
    reason: str,
) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / "b")
    DAMAGE[reason](tmp_path / "b")
    done = dump.run("bundle", tmp_path / "b")
    assert done.returncode == 1
    assert reason in done.stderr.decode()


def test_feature_caches_are_read_alike(dump: Dump, tiny_bundle: Bundle, tmp_path: Path) -> None:
    from mdm_apple.text.feature_cache import FeatureCache, FeatureKey, embed_captions
    from mdm_apple.text.tokenizer import TextFeatures

    text = tiny_bundle.manifest.text
    assert text is not None
    config = tiny_bundle.config().text
    assert config is not None
    key = FeatureKey(
        config.encoder_sha256 or "none",
        text.tokenizer_sha256 or "",
        text.lowercase,
        text.max_tokens,
        text.width,
    )

    def encode(captions: list[str]) -> TextFeatures[Any]:
        lengths = np.array([1 + len(c) % text.max_tokens for c in captions])
        mask = (np.arange(text.max_tokens) < lengths[:, None]).astype(np.float32)
        values = np.random.RandomState(None).standard_normal((*mask.shape, text.width))
        return TextFeatures((values * mask[..., None]).astype(np.float32), mask)

    captions = ["red heart", "  Red   HEART ", "", "日本", "cat"]
    embed_captions(captions, encode, tmp_path / "cache", key)
    dump("features", tiny_bundle.path, tmp_path / "cache", tmp_path / "out", given=captions)
    found = read_tensors(tmp_path / "out")
    expected = FeatureCache(tmp_path / "cache", key).lookup(captions, length=text.max_tokens)
    for row in range(len(captions)):
        assert np.array_equal(found[f"values_{row}"][0], expected.values[row])
        assert np.array_equal(found[f"mask_{row}"][0], expected.mask[row])

    missing = dump.run(
        "features", tiny_bundle.path, tmp_path / "cache", tmp_path / "out", given=["dog"]
    )
    assert b"no text features" in missing.stderr
    other = dataclasses.replace(key, tokenizer_sha256="0" * 64)
    embed_captions(captions, encode, tmp_path / "other", other)
    refused = dump.run(
        "features", tiny_bundle.path, tmp_path / "other", tmp_path / "out", given=[""]
    )
    assert b"tokenizer_sha256" in refused.stderr
