"""Downloading Apple's published checkpoints: resumed where cut off, checked before they count.

Enters: a name and a folder. Leaves: `NAME.pth` in the folder, and beside it `NAME.pth.json` with
where it came from, its size and its SHA-256, by which it is checked when it is used again. While a
download runs it is `NAME.pth.part`; what is known of it lies in `NAME.pth.part.json`.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mdm_apple.apple.pth import check_zip
from mdm_apple.config.strict_json import read_object, unknown_name
from mdm_apple.errors import MdmError
from mdm_apple.storage.files import atomic_file, file_sha256

BASE_URL = "https://docs-assets.developer.apple.com/ml-research/models/mdm"
CheckpointName = Literal["flickr64", "flickr256", "flickr1024"]

MAX_BYTES = 32 << 30
MAX_NOTE_BYTES = 1 << 16
CHUNK = 1 << 20
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "mdm-apple"}
WORTHWHILE = 1 << 16  # bytes that a failed try must have brought to count as progress


class FetchError(MdmError):
    """A download that cannot be completed or does not hold what it should; one sentence."""


class _TransientError(Exception):
    """A failure that may pass: try again after a pause."""


@dataclass(frozen=True)
class Source:
    """What a server said about a file; `tag` (ETag or date) tells one version from another."""

    url: str
    size: int
    tag: str | None


@dataclass(frozen=True)
class Outlook:
    """What a download will take, in bytes. size: of the file, None where the server does not say.

    present: how much of it is here already. free: on the disk.
    """

    size: int | None
    present: int
    free: int


@dataclass(frozen=True)
class Fetched:
    """A complete checkpoint on disk."""

    path: Path
    url: str
    size: int
    sha256: str


def fetch(
    name: CheckpointName,
    out: Path,
    base_url: str = BASE_URL,
    *,
    timeout: float = 30.0,
    attempts: int = 6,
    pause: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Fetched:
    """Download a checkpoint into the folder `out`, or check and reuse the one that is there.

    Args:
        timeout: seconds without a byte after which a connection counts as stalled.
        attempts: tries in a row that bring (almost) nothing before giving up.
        pause: seconds before the second try; doubles with each further one.
        progress: called with (bytes so far, bytes in all).

    Raises FetchError. What was downloaded so far stays and is continued by the next call.
    """
    if name not in get_args(CheckpointName):
        raise FetchError(f"{name!r} is not known. {unknown_name(name, get_args(CheckpointName))}")
    _check_address(base_url)
    path = out / f"{name}.pth"
    url = _address(name, base_url)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return _reuse(path, url)
        _download(_Part(path, url), timeout, attempts, pause, progress)
        return _finish(_Part(path, url))
    except OSError as error:
        raise FetchError(f"{path}: {_reason(error)}") from None


def look_ahead(
    name: CheckpointName, out: Path, base_url: str = BASE_URL, *, timeout: float = 10.0
) -> Outlook:
    """What `fetch` into the folder `out` will take; nothing is downloaded or written.

    Raises FetchError for an address that is none, and where the disk cannot hold the file.
    """
    _check_address(base_url)
    path = out / f"{name}.pth"
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if path.exists():
        size = path.stat().st_size
        return Outlook(size, size, free)
    part = _Part(path, _address(name, base_url))
    size = _stated_size(part.url, timeout)
    known = part.source()
    present = part.size() if known is not None and known.size == size else 0
    if size is not None:
        check_space(existing, size - present)
    return Outlook(size, present, free)


def record_of(path: Path) -> Path:
    """Where the note about a downloaded checkpoint lies."""
    return path.with_name(path.name + ".json")


def _address(name: CheckpointName, base_url: str) -> str:
    return f"{base_url.rstrip('/')}/{name}/vis_model.pth"


def _stated_size(url: str, timeout: float) -> int | None:
    """What the server says of a file without sending it; None where it cannot be learned."""
    request = urllib.request.Request(url, headers=HEADERS, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return _described(url, response).size
    except (FetchError, OSError, http.client.HTTPException):
        return None  # the download itself will tell what is wrong


def _check_address(base_url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises where it is no number
        usable &= base_url.isascii() and base_url.isprintable() and " " not in base_url
    except ValueError:
        usable = False
    if not usable:
        raise FetchError(
            f"base_url: expected an address that starts with https:// or http://, got {base_url!r}."
        )


def _reuse(path: Path, url: str) -> Fetched:
    record = _note(record_of(path))
    if record is None:
        raise FetchError(
            f"{path}: was not put there by this command; move it away, or import it as it is."
        )
    size = path.stat().st_size
    if size != record.get("size") or (sha256 := file_sha256(path)) != record.get("sha256"):
        raise FetchError(f"{path}: changed since it was downloaded; delete it and run this again.")
    return Fetched(path, str(record.get("url", url)), size, sha256)


class _Part:
    """The unfinished file and what is known of its source."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url
        self.file = path.with_name(path.name + ".part")
        self.record = path.with_name(path.name + ".part.json")

    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def source(self) -> Source | None:
        """What the bytes so far were a part of, or None where nothing usable is there."""
        known = _note(self.record)
        if known is None or known.get("url") != self.url:
            return None
        size, tag = known.get("size"), known.get("tag")
        if type(size) is not int or not (tag is None or isinstance(tag, str)):
            return None
        return Source(self.url, size, tag) if 0 < self.size() <= size else None

    def restart(self, source: Source) -> None:
        """Forget the bytes so far and note a new source; in this order, so none are mixed."""
        self.file.unlink(missing_ok=True)
        with atomic_file(self.record) as file:
            file.write(json.dumps(asdict(source)).encode())


def _download(
    part: _Part,
    timeout: float,
    attempts: int,
    pause: float,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Ask again until all bytes are there; gives up after `attempts` tries without progress."""
    failures = 0
    while True:
        before = part.size()
        source = part.source()
        if source is not None and before == source.size:
            return
        try:
            _request(part, source, timeout, progress)
            continue
        except _TransientError as error:
            reason = str(error)
        except (http.client.HTTPException, urllib.error.URLError, TimeoutError) as error:
            reason = _transport_reason(error)
        except ConnectionError:
            reason = "the connection broke"
        failures = 0 if part.size() >= before + WORTHWHILE else failures + 1
        if failures >= attempts:
            raise FetchError(
                f"{part.url}: {reason}, {attempts} times in a row; check the network and run the "
                "same command again, it continues where it stopped."
            )
        time.sleep(pause * 2 ** max(failures - 1, 0))


def _request(
    part: _Part,
    source: Source | None,
    timeout: float,
    progress: Callable[[int, int], None] | None,
) -> None:
    """One request: append what the server sends to the part, after checking what it is."""
    headers = dict(HEADERS)
    offset = part.size() if source and source.tag else 0
    if source and source.tag and offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": source.tag}
    request = urllib.request.Request(part.url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file shrank: what is here belongs to an older version
            part.record.unlink(missing_ok=True)
        if error.code in (408, 416, 429) or error.code >= 500:
            raise _TransientError(f"the server answers {error.code}") from None
        raise FetchError(f"{part.url}: the server answers {error.code} {error.reason}.") from None
    with contextlib.closing(response):
        now = _described(part.url, response)
        if response.status == 206:
            _check_range(part, source, now, response, offset)
        else:
            offset = 0
            part.restart(now)
        check_space(part.path.parent, now.size - offset)
        _append(part, now, offset, response, progress)


def _described(url: str, response: Any) -> Source:
    """Size and version of the whole file; refuses what cannot be a checkpoint."""
    if url.startswith("https:") and not response.url.startswith("https:"):
        raise FetchError(f"{url}: the server leads away to an unencrypted address.")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise FetchError(f"{url}: the server sends the file recoded; expected it as it is.")
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise FetchError(f"{url}: the server sends a web page instead of a checkpoint.")
    if response.status == 206:
        found = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
    else:
        found = re.fullmatch(r"(\d+)", response.headers.get("Content-Length", ""))
    size = int(found.group(1)[:16]) if found else 0
    if not 0 < size <= MAX_BYTES:
        raise FetchError(f"{url}: the server does not state a believable size.")
    tag = response.headers.get("ETag")
    if tag is None or tag.startswith("W/"):  # a weak tag does not promise equal bytes
        tag = response.headers.get("Last-Modified")
    return Source(url, size, tag)


def _check_range(
    part: _Part, source: Source | None, now: Source, response: Any, offset: int
) -> None:
    """Refuse a partial answer that does not continue exactly what is on disk."""
    begin = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if source is None or begin != str(offset) or now.size != source.size:
        part.record.unlink(missing_ok=True)
        raise _TransientError("the server sends another part than the one asked for")
    if now.tag is not None and now.tag != source.tag:
        part.record.unlink(missing_ok=True)
        raise _TransientError("the file changed on the server")


def _append(
    part: _Part,
    source: Source,
    offset: int,
    response: Any,
    progress: Callable[[int, int], None] | None,
) -> None:
    done = offset
    with part.file.open("ab") as file:
        while done < source.size:
            chunk: bytes = response.read(min(CHUNK, source.size - done))
            if not chunk:
                raise _TransientError("the connection ends before the file does")
            if done == 0 and not chunk.startswith(b"PK\x03\x04"[: len(chunk)]):
                raise FetchError(f"{part.url}: the server sends something else than a checkpoint.")
            file.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, source.size)
        file.flush()
        os.fsync(file.fileno())


def _finish(part: _Part) -> Fetched:
    """Check the whole, note its hash, and give it its name."""
    try:
        check_zip(part.file)
    except MdmError as error:
        part.file.unlink()
        part.record.unlink(missing_ok=True)
        raise FetchError(
            f"{part.url}: what arrived is damaged and was deleted; run this again ({error})"
        ) from None
    fetched = Fetched(part.path, part.url, part.size(), file_sha256(part.file))
    # the note comes first: a checkpoint without one would not be taken for a download of ours
    with atomic_file(record_of(part.path)) as file:
        note = {"url": fetched.url, "size": fetched.size, "sha256": fetched.sha256}
        file.write((json.dumps(note, indent=2) + "\n").encode())
    os.replace(part.file, part.path)
    part.record.unlink(missing_ok=True)
    return fetched


def check_space(folder: Path, needed: int) -> None:
    """Refuse a download that the disk cannot hold, in bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FetchError(
            f"{folder}: {needed >> 20} MiB are needed, but only {free >> 20} MiB are free; free "
            "space or choose another folder."
        )


def _note(path: Path) -> dict[str, Any] | None:
    """What a note of ours says; None where it is absent or makes no sense."""
    try:
        return read_object(path, MAX_NOTE_BYTES)
    except MdmError:
        return None


def _transport_reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return "the server does not answer in time"
    if isinstance(cause, OSError):
        return f"it cannot be reached ({cause.strerror or cause})"
    return f"the connection fails ({type(cause).__name__})"


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full; free space and run the same command again, it continues."
    return f"{(error.strerror or str(error)).lower()}."
