"""`mdm fetch`: asks first, imports what it downloads, and removes its own files and no others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from file_server import Site, serve
from small import random_state

from mdm_apple.apple_checkpoints.download import FetchError, fetch, look_ahead
from mdm_apple.cli import group
from mdm_apple.cli.fetch_command import PRESET_OF
from mdm_apple.config.presets import preset
from mdm_apple.errors import MdmError
from mdm_apple.storage.model_folder import load_model_config, load_weights

FETCH = ("fetch", "flickr64", "--quiet")
TALKATIVE = FETCH[:-1]


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


@pytest.fixture
def someone_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal, from which a question can be answered."""
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("mdm_apple.cli.fetch_command.sys", terminal)


def mdm(*arguments: str | Path, answer: str | None = None) -> Result:
    return CliRunner().invoke(group, [str(a) for a in arguments], input=answer)


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


@pytest.mark.usefixtures("someone_there")
def test_licence_size_and_room_are_told_before_the_question(
    address: str, site: Site, tmp_path: Path
) -> None:
    place = ("--out", tmp_path / "model", "--base-url", address)
    result = mdm(*TALKATIVE, *place, answer="n\n")
    assert str(result.exception) == "nothing was downloaded, because you declined."
    size = f"flickr64: {len(site.content) / 1e6:,.1f} MB to download; "
    assert "no licence file" in result.stderr.partition(size)[0]
    assert "GB are free on the disk.\nDownload it?" in result.stderr.partition(size)[2]
    assert site.requests == []
    assert names(tmp_path) == set()
    assert mdm(*TALKATIVE, *place, answer="y\n").exit_code == 0
    assert names(tmp_path) == {"model"}


def test_a_size_that_cannot_be_learned_is_said_to_be_unknown(
    address: str, site: Site, tmp_path: Path
) -> None:
    site.head = False
    result = mdm(*TALKATIVE, "--accept", "--out", tmp_path / "model", "--base-url", address)
    assert result.exit_code == 0, result.exception
    assert "flickr64: the server does not say how large the download is; " in result.stderr


def test_what_is_here_already_is_not_counted_again(
    address: str, site: Site, tmp_path: Path
) -> None:
    half = len(site.content) // 2

    def cut_off(handler: Any, n: int) -> bool:
        if n == 1:
            handler.answer(half)
        else:
            handler.send_error(404)
        return True

    downloads = tmp_path / "model.download"
    site.act = cut_off
    with pytest.raises(FetchError):
        fetch("flickr64", downloads, address, attempts=1, pause=0)
    ahead = look_ahead("flickr64", downloads, address)
    assert (ahead.size, ahead.present) == (len(site.content), half)
    fetched = downloads / "flickr64.pth"
    fetched.write_bytes(site.content)
    ahead = look_ahead("flickr64", downloads, address)
    assert (ahead.size, ahead.present) == (len(site.content), len(site.content))


def test_a_disk_that_cannot_hold_it_is_refused_before_the_question(
    address: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = SimpleNamespace(free=len(site.content) - 1)
    monkeypatch.setattr("mdm_apple.apple_checkpoints.download.shutil.disk_usage", lambda _: room)
    with pytest.raises(FetchError, match="are needed, but only"):
        look_ahead("flickr64", tmp_path / "model.download", address)
    assert site.requests == []


@pytest.mark.parametrize(
    "option", [["--accept"], ["--keep-pth"], ["--overwrite"], ["--base-url", "http://127.0.0.1:9"]]
)
def test_an_option_that_a_text_encoder_would_ignore_is_refused(
    option: list[str], model_folder: Path
) -> None:
    result = mdm("fetch", "text-encoder", "--out", model_folder, *option)
    assert isinstance(result.exception, MdmError), result.exception
    expected = f"{option[0]} is for checkpoints only; leave it out for text-encoder."
    assert str(result.exception) == expected
