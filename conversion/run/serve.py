"""The executor behind a pipe, through which another program runs a bundle without Core ML.

The client samples; the server runs single packages. Values stay in the server in numbered contexts
(one per prompt), and only those the client asks for are sent. The protocol is in
docs/serve_bundle.md.
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

from numpy.typing import NDArray

from mdm_apple.config.types import ExecutorPrecision
from mdm_apple.errors import MdmError

from ..bundle.folder import Bundle
from .packages import Runnable, default_load
from .serve_frames import (
    ProtocolError,
    Reader,
    pack_tensor,
    pack_text,
    read_frame,
    write_frame,
)

VERSION = 1
MAX_CONTEXTS = 16

HELLO, LOAD, UNLOAD, RUN, GET, FORGET, QUIT = b"H", b"L", b"U", b"R", b"G", b"F", b"Q"
OK, TENSOR, ERROR = b"K", b"T", b"E"


class BundleServer:
    """Answers one client until it says QUIT or its stream ends."""

    def __init__(self, bundle: Bundle, precision: ExecutorPrecision) -> None:
        self._bundle = bundle
        self._open = default_load(bundle, precision)
        self._programs: dict[str, Runnable] = {}
        self._contexts: dict[int, dict[str, NDArray[Any]]] = {}

    def serve(self, requests: BinaryIO, answers: BinaryIO) -> None:
        """Serve requests. If the stream cannot go on, tell the client and raise ProtocolError."""
        while True:
            try:
                frame = read_frame(requests)
            except ProtocolError as error:
                write_frame(answers, ERROR, pack_text(str(error)))
                raise
            if frame is None or frame[0] == QUIT:
                return
            try:
                kind, payload = self.answer(*frame)
            except MdmError as error:
                kind, payload = ERROR, pack_text(str(error))
            except MemoryError:
                kind, payload = ERROR, pack_text("there is not enough memory for this package.")
            write_frame(answers, kind, payload)

    def answer(self, kind: bytes, payload: bytes) -> tuple[bytes, bytes]:
        """Kind and payload of the answer to one request. Raises MdmError if it is refused."""
        reader = Reader(payload)
        if kind == HELLO:
            return self._hello(reader)
        if kind == LOAD:
            return self._load(_last_text(reader))
        if kind == UNLOAD:
            self._programs.pop(_last_text(reader), None)
            return OK, b""
        if kind == RUN:
            return self._run(reader)
        if kind == GET:
            context, name = reader.number("I"), _last_text(reader)
            values = self._contexts.get(context, {})
            if name not in values:
                raise ProtocolError(
                    f"get: context {context} holds no value {name!r}; run its package first."
                )
            return TENSOR, pack_tensor(name, values[name])
        if kind == FORGET:
            self._contexts.pop(reader.number("I"), None)
            reader.finish()
            return OK, b""
        raise ProtocolError(f"request: unknown kind {kind!r}; expected one of H, L, U, R, G, F, Q.")

    def _hello(self, reader: Reader) -> tuple[bytes, bytes]:
        version = reader.number("H")
        reader.finish()
        if version != VERSION:
            raise ProtocolError(
                f"hello: the client speaks version {version}, but this server {VERSION}; use the "
                "client of this version."
            )
        return OK, struct.pack("<H", VERSION) + pack_text(self._bundle.manifest.digest)

    def _load(self, name: str) -> tuple[bytes, bytes]:
        if name not in self._programs:
            info = self._bundle.package(name)
            path, function = self._bundle.file(info.path), self._bundle.function(info)
            self._programs[name] = self._open(path, function, info.compute)
        return OK, b""

    def _run(self, reader: Reader) -> tuple[bytes, bytes]:
        context, name, count = reader.number("I"), reader.text(), reader.number("H")
        given = dict(reader.tensor() for _ in range(count))
        reader.finish()
        if context not in self._contexts and len(self._contexts) >= MAX_CONTEXTS:
            raise ProtocolError(
                f"run: there are {MAX_CONTEXTS} contexts already; forget one first."
            )
        if name not in self._programs:
            raise ProtocolError(f"run: the package {name!r} is not loaded; load it first.")
        values = self._contexts.setdefault(context, {})
        values.update(given)
        wanted = [feature.name for feature in self._bundle.package(name).inputs]
        missing = [feature for feature in wanted if feature not in values]
        if missing:
            raise ProtocolError(
                f"run: {name} takes {missing[0]!r}, which context {context} lacks; give it, or run "
                "the package that makes it."
            )
        values.update(self._programs[name]({feature: values[feature] for feature in wanted}))
        return OK, b""


def _last_text(reader: Reader) -> str:
    text = reader.text()
    reader.finish()
    return text
