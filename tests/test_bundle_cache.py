"""The cache of bundles makes each once, keeps no halves, and knows what tells two apart."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from bundle_cache import content, digest, kept, surroundings
from small import plain

from mdm_apple.config.model import ModelConfig
from mdm_apple.conversion.source.model import random_source


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MDM_TEST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_who_asks_while_it_is_made_waits_for_the_one_that_is_made() -> None:
    made: list[Path] = []
    found: list[str] = []

    def make(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.05)
        (folder / "bundle").write_text("whole")

    def ask() -> None:
        found.append((kept("key", make) / "bundle").read_text())

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert found == ["whole"] * 5


def test_what_fails_half_way_leaves_nothing(place: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "bundle").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        kept("key", fail)
    assert [entry.name for entry in place.iterdir()] == ["key.lock"]
    assert kept("key", lambda folder: (folder / "bundle").write_text("whole")).is_dir()


def test_one_weight_and_one_byte_at_a_border_make_another_key() -> None:
    source = random_source(ModelConfig(plain(text_dim=None), side=8), 0)
    before = digest(content(source))
    assert digest(content(source)) == before
    weight = next(source.net.parameters())
    weight.reshape(-1)[0] += 1e-3
    assert digest(content(source)) != before
    assert digest(["ab", "c"]) != digest(["a", "bc"])


def test_the_code_of_a_conversion_is_in_its_key_and_that_of_verification_is_not() -> None:
    root = Path(__file__).parents[1]
    key = surroundings("mdm_apple.conversion.convert")
    for name in ("conversion/convert.py", "mdm_apple/torch/unet.py", "mdm_apple/errors.py"):
        assert (root / name).read_bytes() in key, name
    assert (root / "conversion/verify/verify.py").read_bytes() not in key
