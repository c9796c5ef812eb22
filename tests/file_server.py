"""A server on this machine with one file, that behaves as badly as it is told to."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    path: str
    range: str | None
    if_range: str | None


@dataclass
class Site:
    """One file, and how to behave: `act` gets the handler and the number of the request."""

    content: bytes
    tag: str | None = '"v1"'
    ranges: bool = True
    head: bool = True  # whether it answers a question about the file without sending it
    act: Callable[[Handler, int], bool] = lambda _handler, _n: False
    requests: list[Request] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        headers = self.headers
        self.site.requests.append(Request(self.path, headers["Range"], headers["If-Range"]))
        with contextlib.suppress(ConnectionError):
            if not self.site.act(self, len(self.site.requests)):
                self.answer()

    def do_HEAD(self) -> None:
        if not self.site.head:
            self.send_error(501)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.site.content)))
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()

    def start(self) -> int:
        """Offset asked for, where a resumption is possible."""
        asked, site = self.headers["Range"], self.site
        if asked and site.ranges and self.headers["If-Range"] in (None, site.tag):
            return int(asked.removeprefix("bytes=").removesuffix("-"))
        return 0

    def answer(self, send: int | None = None, **override: str) -> None:
        """The honest answer, but for `send` bytes at most and for the headers in `override`."""
        site, start = self.site, self.start()
        body = site.content[start:]
        headers = {
            "Content-Length": str(len(body)),
            "Content-Type": "application/octet-stream",
            "ETag": site.tag or "",
        }
        if start:
            size = len(site.content)
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self.send_response(206 if start else 200)
        for name, value in {
            **headers,
            **{k.replace("_", "-"): v for k, v in override.items()},
        }.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:send])


@contextlib.contextmanager
def serve(site: Site) -> Iterator[str]:
    handler = type("SiteHandler", (Handler,), {"site": site})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/models"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
