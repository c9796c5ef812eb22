"""Downloading Apple's published checkpoints: resumed after an interruption, checked before use.

Input: a name and a folder. Output: `NAME.pth` in the folder, and beside it `NAME.pth.json` with its
origin, size and SHA-256, to check the file when it is used again. An unfinished download is
`NAME.pth.part`, described by `NAME.pth.part.json`.
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

from mdm_apple.apple_checkpoints.pth import check_zip
from mdm_apple.config.strict_json import read_object, unknown_name
from mdm_apple.errors import MdmError
from mdm_apple.storage.files import atomic_file, file_sha256

BASE_URL = "https://docs-assets.developer.apple.com/ml-research/models/mdm"
CheckpointName = Literal["flickr64", "flickr256", "flickr1024"]

MAX_BYTES = 32 << 30
MAX_NOTE_BYTES = 1 << 16
CHUNK = 1 << 20
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "mdm-apple"}
WORTHWHILE = 1 << 16  # bytes that a failed try must have fetched to count as progress


class FetchError(MdmError):
    """A download that cannot be completed or has the wrong contents; one sentence."""


class _TransientError(Exception):
    """A temporary failure: try again after a pause."""


@dataclass(frozen=True)
class Source:
    """A server's description of a file; `tag` (ETag or date) identifies its version."""

    url: str
    size: int
    tag: str | None


@dataclass(frozen=True)
class Outlook:
    """Space for a download, in bytes. size: of the file; None if the server does not say.

    present: already downloaded. free: on the disk.
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
    """Download a checkpoint into the folder `out`, or check and reuse an existing one.

    Args:
        timeout: seconds without a byte after which a connection counts as stalled.
        attempts: tries in a row that fetch (almost) nothing before giving up.
        pause: seconds before the second try; doubles with each further try.
        progress: called with (bytes so far, total bytes).

        Raises FetchError. A partial download stays, and the next call continues it.
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
    """The space that `fetch` into the folder `out` will need; nothing is downloaded or written.

    Raises FetchError for an invalid address, or if the file does not fit on the disk.
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
    """The path of the record about a downloaded checkpoint."""
    return path.with_name(path.name + ".json")


def _address(name: CheckpointName, base_url: str) -> str:
    return f"{base_url.rstrip('/')}/{name}/vis_model.pth"


def _stated_size(url: str, timeout: float) -> int | None:
    """The size that the server states without sending the file; None if unknown."""
    request = urllib.request.Request(url, headers=HEADERS, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return _described(url, response).size
    except (FetchError, OSError, http.client.HTTPException):
        return None  # the download itself will report the fault


def _check_address(base_url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises if it is not a number
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
            f"{path}: was not downloaded by this command; move it away, or import it as it is."
        )
    size = path.stat().st_size
    if size != record.get("size") or (sha256 := file_sha256(path)) != record.get("sha256"):
        raise FetchError(f"{path}: changed since it was downloaded; delete it and run this again.")
    return Fetched(path, str(record.get("url", url)), size, sha256)


class _Part:
    """The unfinished file and the description of its source."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url
        self.file = path.with_name(path.name + ".part")
        self.record = path.with_name(path.name + ".part.json")

    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def source(self) -> Source | None:
        """The source of the bytes so far, or None if there is nothing usable."""
        known = _note(self.record)
        if known is None or known.get("url") != self.url:
            return None
        size, tag = known.get("size"), known.get("tag")
        if type(size) is not int or not (tag is None or isinstance(tag, str)):
            return None
        return Source(self.url, size, tag) if 0 < self.size() <= size else None

    def restart(self, source: Source) -> None:
        """Discard the bytes so far, then record a new source; in this order, so none mix."""
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
    """Repeat requests until all bytes are here; give up after `attempts` tries without progress."""
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
                "same command again; it continues where it stopped."
            )
        time.sleep(pause * 2 ** max(failures - 1, 0))


def _request(
    part: _Part,
    source: Source | None,
    timeout: float,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Make one request: check the answer and append it to the part."""
    headers = dict(HEADERS)
    offset = part.size() if source and source.tag else 0
    if source and source.tag and offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": source.tag}
    request = urllib.request.Request(part.url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file shrank: the bytes here belong to an older version
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
    """Size and version of the whole file; refuses an answer that cannot be a checkpoint."""
    if url.startswith("https:") and not response.url.startswith("https:"):
        raise FetchError(f"{url}: the server redirects to an unencrypted address.")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise FetchError(
            f"{url}: the server sends the file with a content encoding; expected none."
        )
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise FetchError(f"{url}: the server sends a web page instead of a checkpoint.")
    if response.status == 206:
        found = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
    else:
        found = re.fullmatch(r"(\d+)", response.headers.get("Content-Length", ""))
    size = int(found.group(1)[:16]) if found else 0
    if not 0 < size <= MAX_BYTES:
        raise FetchError(f"{url}: the server does not state a plausible size.")
    tag = response.headers.get("ETag")
    if tag is None or tag.startswith("W/"):  # a weak tag does not guarantee equal bytes
        tag = response.headers.get("Last-Modified")
    return Source(url, size, tag)


def _check_range(
    part: _Part, source: Source | None, now: Source, response: Any, offset: int
) -> None:
    """Refuse a partial answer that does not continue exactly what is on disk."""
    begin = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if source is None or begin != str(offset) or now.size != source.size:
        part.record.unlink(missing_ok=True)
        raise _TransientError("the server sends a different part from the requested one")
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
                raise FetchError(f"{part.url}: the server sends something other than a checkpoint.")
            file.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, source.size)
        file.flush()
        os.fsync(file.fileno())


def _finish(part: _Part) -> Fetched:
    """Check the complete file, record its hash, and give it its final name."""
    try:
        check_zip(part.file)
    except MdmError as error:
        part.file.unlink()
        part.record.unlink(missing_ok=True)
        raise FetchError(
            f"{part.url}: the download is damaged and was deleted; run this again ({error})"
        ) from None
    fetched = Fetched(part.path, part.url, part.size(), file_sha256(part.file))
    # the record comes first: a checkpoint without one would not count as our download
    with atomic_file(record_of(part.path)) as file:
        note = {"url": fetched.url, "size": fetched.size, "sha256": fetched.sha256}
        file.write((json.dumps(note, indent=2) + "\n").encode())
    os.replace(part.file, part.path)
    part.record.unlink(missing_ok=True)
    return fetched


def check_space(folder: Path, needed: int) -> None:
    """Refuse a download that needs more bytes than the disk has free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FetchError(
            f"{folder}: {needed >> 20} MiB are needed, but only {free >> 20} MiB are free; free "
            "space or choose another folder."
        )


def _note(path: Path) -> dict[str, Any] | None:
    """The contents of one of our records; None if it is absent or invalid."""
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
        return "the disk is full; free space and run the same command again; it continues."
    return f"{(error.strerror or str(error)).lower()}."
