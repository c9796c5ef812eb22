"""`mdm fetch`: asks first, imports what it downloads, and removes its own files and no others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from file_server import Site, serve
from small import random_state

from mdm_apple.cli import group
from mdm_apple.cli.fetch_command import PRESET_OF
from mdm_apple.config.presets import preset
from mdm_apple.errors import MdmError
from mdm_apple.storage.model_folder import load_model_config, load_weights

FETCH = ("fetch", "flickr64", "--quiet")


@pytest.fixture(autouse=True)
def small_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name stands for the smallest model here, so that the whole way takes a moment."""
    monkeypatch.setitem(PRESET_OF, "flickr64", "tiny")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    path = tmp_path / "made.pth"
    weights = random_state(preset("tiny").model)
    torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, path)
    content = path.read_bytes()
    path.unlink()
    return Site(content)


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    with serve(site) as url:
        yield url


def mdm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, [str(a) for a in arguments])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_import_is_all_that_stays(address: str, site: Site, tmp_path: Path) -> None:
    out = tmp_path / "model"
    result = mdm(*FETCH, "--accept", "--out", out, "--base-url", address, "--json")
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["bytes"] == len(site.content)
    assert names(tmp_path) == {"model"}
    said = load_model_config(out).provenance
    assert said.source == preset("tiny").provenance.source
    assert said.license is not None
    for name, value in random_state(preset("tiny").model).items():
        assert (load_weights(out)[name] == value).all()


def test_files_of_others_beside_the_download_stay(address: str, tmp_path: Path) -> None:
    downloads = tmp_path / "model.download"
    downloads.mkdir()
    (downloads / "mine.txt").write_text("precious")
    (downloads / "flickr256.pth.part").write_bytes(b"half of another")
    result = mdm(*FETCH, "--accept", "--out", tmp_path / "model", "--base-url", address)
    assert result.exit_code == 0, result.exception
    assert names(downloads) == {"mine.txt", "flickr256.pth.part"}


def test_the_checkpoint_stays_when_asked_to(address: str, tmp_path: Path) -> None:
    place = ("--out", tmp_path / "model", "--base-url", address)
    assert mdm(*FETCH, "--accept", "--keep-pth", *place).exit_code == 0
    assert names(tmp_path / "model.download") == {"flickr64.pth", "flickr64.pth.json"}


def test_a_refused_download_leaves_no_folder(address: str, site: Site, tmp_path: Path) -> None:
    def missing(handler: object, _n: int) -> bool:
        handler.send_error(404)  # type: ignore[attr-defined]
        return True

    site.act = missing
    result = mdm(*FETCH, "--accept", "--out", tmp_path / "model", "--base-url", address)
    assert isinstance(result.exception, MdmError)
    assert "404" in str(result.exception)
    assert names(tmp_path) == set()


def test_a_checkpoint_of_another_model_stays_to_be_looked_at(address: str, tmp_path: Path) -> None:
    place = ("--out", tmp_path / "model", "--base-url", address)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESET_OF, "flickr64", "emoji")
        result = mdm(*FETCH, "--accept", *place)
    assert isinstance(result.exception, MdmError)
    assert names(tmp_path) == {"model.download"}
    assert mdm(*FETCH, "--accept", *place).exit_code == 0  # not downloaded again
    assert names(tmp_path) == {"model"}
