"""The bundle server: values of single packages, refusals, and frames that make no sense."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.layouts.names import POOLED, TEXT_MASK, TOKEN_IDS
from mdm_apple.conversion.run.packages import Denoiser
from mdm_apple.conversion.run.serve import BundleServer
from mdm_apple.conversion.run.serve_frames import (
    ProtocolError,
    Reader,
    pack_tensor,
    pack_text,
    read_frame,
)

pytest_plugins = ["bundles"]


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("<I", len(payload) + 1) + kind + payload


def asked(bundle: Bundle, requests: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and payload of every answer."""
    answers = io.BytesIO()
    BundleServer(bundle, "fp16").serve(io.BytesIO(requests), answers)
    answers.seek(0)
    found: list[tuple[bytes, bytes]] = []
    while (one := read_frame(answers)) is not None:
        found.append(one)
    return found


def run_request(context: int, name: str, values: dict[str, np.ndarray]) -> bytes:
    payload = struct.pack("<I", context) + pack_text(name) + struct.pack("<H", len(values))
    return frame(b"R", payload + b"".join(pack_tensor(n, v) for n, v in values.items()))


def get_request(context: int, name: str) -> bytes:
    return frame(b"G", struct.pack("<I", context) + pack_text(name))


def text_values(bundle: Bundle) -> dict[str, np.ndarray]:
    text = bundle.manifest.text
    assert text is not None
    ids = np.zeros((1, text.max_tokens), np.int32)
    ids[0, :3] = [5, 7, 1]
    return {TOKEN_IDS: ids, TEXT_MASK: (ids > 0).astype(np.float32)}


def test_values_are_those_of_the_executor(tiny_bundle: Bundle) -> None:
    values = text_values(tiny_bundle)
    requests = frame(b"H", struct.pack("<H", 1))
    given = values
    for package in tiny_bundle.manifest.packages:
        if package.phase != "step":
            requests += frame(b"L", pack_text(package.name)) + run_request(3, package.name, given)
            given = {}
    requests += get_request(3, POOLED) + frame(b"Q")
    *_, (kind, payload) = asked(tiny_bundle, requests)
    assert kind == b"T"
    name, found = Reader(payload).tensor()
    expected = Denoiser(tiny_bundle, "fp16").condition(values)[POOLED]
    assert name == POOLED
    assert np.array_equal(found, expected)


def test_hello_names_the_bundle(tiny_bundle: Bundle) -> None:
    [(kind, payload)] = asked(tiny_bundle, frame(b"H", struct.pack("<H", 1)))
    assert kind == b"K"
    reader = Reader(payload)
    assert (reader.number("H"), reader.text()) == (1, tiny_bundle.manifest.digest)


REFUSED: dict[str, tuple[bytes, str]] = {
    "another version": (frame(b"H", struct.pack("<H", 9)), "version"),
    "unknown request": (frame(b"Z"), "unknown kind"),
    "unknown package": (frame(b"L", pack_text("nothing")), "no package"),
    "not loaded": (run_request(0, "nothing", {}), "not loaded"),
    "no such value": (get_request(0, "x"), "holds no value"),
    "too short": (frame(b"G", b"\x00"), "ends before"),
    "too long": (frame(b"L", pack_text("a") + b"more"), "goes on"),
    "not UTF-8": (frame(b"L", b"\x01\x00\xff"), "UTF-8"),
    "odd tensor": (
        frame(
            b"R", struct.pack("<I", 0) + pack_text("a") + b"\x01\x00" + pack_text("x") + b"\x09\x01"
        ),
        "type 9",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_request_leaves_the_connection_open(tiny_bundle: Bundle, name: str) -> None:
    request, reason = REFUSED[name]
    (first, said), (second, _) = asked(tiny_bundle, request + frame(b"F", struct.pack("<I", 0)))
    assert (first, second) == (b"E", b"K")
    assert reason in Reader(said).text()


@pytest.mark.parametrize(
    "broken", [b"\x05", struct.pack("<I", 0), struct.pack("<I", 1 << 31), frame(b"L", b"abc")[:-1]]
)
def test_a_broken_frame_ends_the_connection(tiny_bundle: Bundle, broken: bytes) -> None:
    with pytest.raises(ProtocolError):
        asked(tiny_bundle, broken)


def test_damaged_requests_are_answered_or_end_the_connection(tiny_bundle: Bundle) -> None:
    chosen = random.SystemRandom()
    whole = frame(b"H", struct.pack("<H", 1)) + run_request(0, "core", text_values(tiny_bundle))
    whole += get_request(0, "x") + frame(b"F", struct.pack("<I", 0))
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(chosen.randint(1, 4)):
            data[chosen.randrange(len(data))] = chosen.choice(
                [0, 1, 127, 128, 255, chosen.randrange(256)]
            )
        try:
            answers = asked(tiny_bundle, bytes(data[: chosen.randint(0, len(data))]))
        except ProtocolError:
            continue
        assert all(kind in (b"K", b"T", b"E") for kind, _ in answers), data.hex()


def test_nothing_but_frames_reaches_stdout(tiny_bundle: Bundle) -> None:
    command: list[Any] = [
        sys.executable,
        "-c",
        "import sys; from mdm_apple.cli import main; main()",
    ]
    done = subprocess.run(
        [*command, "serve-bundle", str(tiny_bundle.path)],
        input=frame(b"H", struct.pack("<H", 1)) + frame(b"Q"),
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    answers = io.BytesIO(done.stdout)
    answer = read_frame(answers)
    assert answer is not None
    assert answer[0] == b"K"
    assert answers.read() == b""
