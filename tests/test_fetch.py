"""Downloads from a server on this machine that stalls, breaks off, changes its mind and lies."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from file_server import Handler, Site, serve

from mdm_apple.apple_checkpoints import download as fetch_module
from mdm_apple.apple_checkpoints.download import Fetched, FetchError, fetch
from mdm_apple.apple_checkpoints.pth import read_pth

QUICK = {"timeout": 0.5, "pause": 0.01, "attempts": 3}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint of about 3 MB."""
    path = tmp_path_factory.mktemp("made") / "model.pth"
    generator = torch.Generator().manual_seed(0)
    torch.save({"state_dict": {"w": torch.randn(750_000, generator=generator)}}, path)
    return path.read_bytes()


def get(site: Site, out: Path, **options: Any) -> Fetched:
    with serve(site) as url:
        return fetch("flickr64", out, url, **{**QUICK, **options})


def is_complete(fetched: Fetched, content: bytes) -> bool:
    folder = {p.name for p in fetched.path.parent.iterdir()}
    return fetched.path.read_bytes() == content and folder == {"flickr64.pth", "flickr64.pth.json"}


def test_a_checkpoint_arrives_whole_with_its_hash(content: bytes, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    site = Site(content)
    fetched = get(site, tmp_path / "new", progress=lambda done, size: seen.append((done, size)))
    assert is_complete(fetched, content)
    assert read_pth(fetched.path).state_dict["w"].shape == (750_000,)
    assert [r.path for r in site.requests] == ["/models/flickr64/vis_model.pth"]
    assert seen[-1] == (len(content), len(content))
    note = json.loads((tmp_path / "new" / "flickr64.pth.json").read_text())
    assert (note["size"], note["sha256"]) == (len(content), fetched.sha256)


def test_the_second_call_asks_no_server(content: bytes, tmp_path: Path) -> None:
    site = Site(content)
    first = get(site, tmp_path)
    assert get(site, tmp_path).sha256 == first.sha256
    assert len(site.requests) == 1


def test_a_file_that_changed_on_disk_is_refused(content: bytes, tmp_path: Path) -> None:
    path = get(Site(content), tmp_path).path
    data = bytearray(content)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FetchError, match="changed since it was downloaded"):
        get(Site(content), tmp_path)


def test_a_file_of_unknown_origin_is_left_alone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "flickr64.pth").write_bytes(b"mine")
    with pytest.raises(FetchError, match="was not downloaded by this command"):
        get(Site(content), tmp_path)
    assert (tmp_path / "flickr64.pth").read_bytes() == b"mine"


def test_unknown_names_are_refused_with_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="Did you mean 'flickr256'"):
        fetch("flickr265", tmp_path)  # type: ignore[arg-type]


def breaking_off(handler: Handler, n: int) -> bool:
    if n < 4:
        handler.answer(send=700_000)
        return True
    return False


def stalling(handler: Handler, n: int) -> bool:
    if n == 1:
        handler.answer(send=1_500_000)
        handler.wfile.flush()
        time.sleep(1.5)
        return True
    return False


def busy(handler: Handler, n: int) -> bool:
    if n < 3:
        handler.send_error((503, 429)[n - 1])
        return True
    return False


def resetting(handler: Handler, n: int) -> bool:
    if n < 3:
        handler.connection.close()
        return True
    return False


@pytest.mark.parametrize(
    ("act", "resumed"), [(breaking_off, 3), (stalling, 1), (busy, 0), (resetting, 0)]
)
def test_a_bad_connection_is_made_up_for(
    act: Callable[[Handler, int], bool], resumed: int, content: bytes, tmp_path: Path
) -> None:
    site = Site(content, act=act)
    assert is_complete(get(site, tmp_path), content)
    ranges = [r for r in site.requests if r.range]
    assert len(ranges) == resumed
    assert all(r.if_range == '"v1"' for r in ranges)


def test_a_later_call_continues_where_an_earlier_one_gave_up(
    content: bytes, tmp_path: Path
) -> None:
    def cut(handler: Handler, n: int) -> bool:
        handler.answer(send=1_000_000 if n == 1 else 0)
        return True

    site = Site(content, act=cut)
    with serve(site) as url:
        with pytest.raises(FetchError, match="3 times in a row; check the network"):
            fetch("flickr64", tmp_path, url, **QUICK)
        part = (tmp_path / "flickr64.pth.part").read_bytes()
        assert part == content[: len(part)]
        assert len(part) == 1_000_000
        site.act = lambda _handler, _n: False
        assert is_complete(fetch("flickr64", tmp_path, url, **QUICK), content)
    assert site.requests[-1].range == "bytes=1000000-"


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_strong_tag_the_download_starts_again(
    tag: str | None, content: bytes, tmp_path: Path
) -> None:
    def cut(handler: Handler, n: int) -> bool:
        handler.answer(send=1_000_000) if n == 1 else handler.answer()
        return True

    site = Site(content, tag=tag, act=cut)
    assert is_complete(get(site, tmp_path), content)
    assert [r.range for r in site.requests] == [None, None]


def test_a_server_without_ranges_starts_again(content: bytes, tmp_path: Path) -> None:
    def cut(handler: Handler, n: int) -> bool:
        handler.answer(send=1_000_000) if n == 1 else handler.answer()
        return True

    site = Site(content, ranges=False, act=cut)
    assert is_complete(get(site, tmp_path), content)


def test_two_versions_are_never_mixed(content: bytes, tmp_path: Path) -> None:
    other = io_pth(1)

    def renew(handler: Handler, n: int) -> bool:
        if n == 1:
            handler.answer(send=1_000_000)
            handler.site.content, handler.site.tag = other, '"v2"'
            return True
        return False

    assert is_complete(get(Site(content, act=renew), tmp_path), other)


def io_pth(seed: int) -> bytes:
    buffer = io.BytesIO()
    generator = torch.Generator().manual_seed(seed)
    torch.save({"w": torch.randn(700_000, generator=generator)}, buffer)
    return buffer.getvalue()


LIES: dict[str, Callable[[Handler], None]] = {
    "another_part": lambda h: h.answer(
        Content_Range=f"bytes 5-{len(h.site.content)}/{len(h.site.content)}"
    ),
    "another_size": lambda h: h.answer(Content_Range=f"bytes {h.start()}-9/10"),
    "no_range_header": lambda h: h.answer(Content_Range=""),
    "another_tag": lambda h: h.answer(ETag='"v2"'),
    "unsatisfiable": lambda h: h.send_error(416),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_partial_answer_is_not_believed(lie: str, content: bytes, tmp_path: Path) -> None:
    def act(handler: Handler, n: int) -> bool:
        if n == 1:
            handler.answer(send=1_000_000)
        elif n == 2:
            LIES[lie](handler)
        else:
            return False
        return True

    site = Site(content, act=act)
    with serve(site) as url:
        if lie == "no_range_header":
            with pytest.raises(FetchError, match="does not state a plausible size"):
                fetch("flickr64", tmp_path, url, **QUICK)
        assert is_complete(fetch("flickr64", tmp_path, url, **QUICK), content)


WRONG: dict[str, tuple[Callable[[Handler], None], str]] = {
    "page": (
        lambda h: h.answer(Content_Type="text/html; charset=utf-8"),
        "sends a web page instead of a checkpoint",
    ),
    "hidden_page": (lambda h: body(h, b"<!doctype html><p>sign in</p>"), "something other than"),
    "missing": (lambda h: h.send_error(404), "answers 404 Not Found"),
    "forbidden": (lambda h: h.send_error(403), "answers 403 Forbidden"),
    "no_length": (lambda h: h.answer(Content_Length=""), "does not state a plausible size"),
    "no_number": (lambda h: h.answer(Content_Length="many"), "does not state a plausible size"),
    "endless": (lambda h: h.answer(Content_Length="9" * 30), "does not state a plausible size"),
    "empty": (lambda h: body(h, b""), "does not state a plausible size"),
    "too_long": (
        lambda h: h.answer(Content_Length=str(len(h.site.content) + 10)),
        "3 times in a row",
    ),
    "recoded": (
        lambda h: h.answer(Content_Encoding="gzip"),
        "sends the file with a content encoding",
    ),
    "too_short": (
        lambda h: h.answer(Content_Length=str(len(h.site.content) - 10)),
        "the download is damaged and was deleted",
    ),
    "damaged": (lambda h: body(h, b"PK\x03\x04" + bytes(5000)), "is damaged and was deleted"),
    "no_http": (lambda h: h.wfile.write(b"hello\n" * 9) and None, "the connection fails"),
}


def body(handler: Handler, data: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.guards("a page that says 404 is taken for a model")
def test_an_answer_that_is_no_checkpoint_is_one_sentence(
    name: str, content: bytes, tmp_path: Path
) -> None:
    answer, message = WRONG[name]

    def act(handler: Handler, _n: int) -> bool:
        answer(handler)
        return True

    with pytest.raises(FetchError, match=message) as caught:
        get(Site(content, act=act), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "flickr64.pth").exists()
    assert is_complete(get(Site(content), tmp_path), content)


@pytest.mark.parametrize(
    "address",
    [
        "nonsense",
        "",
        "ftp://127.0.0.1/models",
        "file:///etc",
        "http://",
        "http://[::1",
        "http://127.0.0.1:port/models",
        "http://127.0.0.1/a b",
        "http://caf\u00e9.example",
    ],
)
def test_what_is_no_address_of_a_web_server_is_refused_at_once(
    address: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(FetchError, match="base_url: expected an address that starts with https://"):
        fetch("flickr64", out, address, timeout=0.5, pause=60)
    assert not out.exists()


def test_no_server_is_one_sentence(tmp_path: Path) -> None:
    with serve(Site(b"")) as url:
        pass
    with pytest.raises(FetchError, match=r"cannot be reached .*3 times in a row"):
        fetch("flickr64", tmp_path, url, **QUICK)


def test_a_folder_that_cannot_be_made_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="file"):
        get(Site(content), tmp_path / "file")


def test_too_little_space_is_noticed_before_the_download(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(FetchError, match=r"\d+ MiB are needed, but only \d+ MiB are free"):
        fetch_module.check_space(tmp_path, free + (1 << 40))
    fetch_module.check_space(tmp_path, 1)


CHILD = """
import resource, sys
from pathlib import Path
from mdm_apple.apple_checkpoints.download import FetchError, fetch
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print("go", flush=True)
try:
    fetch("flickr64", Path(sys.argv[1]), sys.argv[2], timeout=2, pause=0.01)
except FetchError as error:
    sys.exit(f"refused: {error}")
"""


def child(out: Path, url: str, limit: int = 0) -> subprocess.Popen[str]:
    root = str(Path(fetch_module.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(out), url, str(limit)],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_full_disk_is_one_sentence_and_the_next_call_continues(
    content: bytes, tmp_path: Path
) -> None:
    site = Site(content)
    with serve(site) as url:
        process = child(tmp_path, url, limit=2_000_000)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert errors.startswith("refused: ")
        assert "the disk is full; free space and run the same command again" in errors
        assert is_complete(fetch("flickr64", tmp_path, url, **QUICK), content)
    assert site.requests[-1].range is not None


def test_a_kill_in_the_middle_is_continued(content: bytes, tmp_path: Path) -> None:
    def slow(handler: Handler, n: int) -> bool:
        if n > 1:
            return False
        handler.answer(send=1_500_000)
        handler.wfile.flush()
        time.sleep(1)
        return True

    site = Site(content, act=slow)
    with serve(site) as url:
        process = child(tmp_path, url)
        part = tmp_path / "flickr64.pth.part"
        deadline = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "flickr64.pth").exists()
        assert is_complete(fetch("flickr64", tmp_path, url, **QUICK), content)
    assert site.requests[-1].range is not None


def test_a_kill_just_before_the_last_rename_is_made_good(content: bytes, tmp_path: Path) -> None:
    site = Site(content)
    done = get(site, tmp_path)
    done.path.rename(tmp_path / "flickr64.pth.part")
    (tmp_path / "flickr64.pth.part.json").write_text(
        json.dumps({"url": done.url, "size": done.size, "tag": None})
    )
    port = done.url.removesuffix("/flickr64/vis_model.pth")
    assert is_complete(fetch("flickr64", tmp_path, port, **QUICK), content)
    assert len(site.requests) == 1


def test_notes_of_an_unfinished_download_that_make_no_sense_are_ignored(
    content: bytes, tmp_path: Path
) -> None:
    for note in (b"", b"[]", b"{", b'{"url": 1}', b"\xff"):
        (tmp_path / "flickr64.pth.part").write_bytes(b"junk")
        (tmp_path / "flickr64.pth.part.json").write_bytes(note)
        assert is_complete(get(Site(content), tmp_path), content)
        for path in tmp_path.iterdir():
            path.unlink()
