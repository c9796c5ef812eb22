"""Which frames a clip shows, and which container a file is, without any decoder."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction

import pytest

from mdm_apple.data.clips.container import container_of
from mdm_apple.data.clips.limits import UnfitFileError
from mdm_apple.data.clips.sample_times import Shown, sampled

# --- times ------------------------------------------------------------------------------------


def at(times: list[int], stop: int, slack: Fraction = Fraction(0)) -> list[Shown[int]]:
    """Frames 0, 1, ... that begin at these hundredths of a second."""
    ends = [*times[1:], stop]
    return [
        Shown(k, Fraction(a, 100), Fraction(b, 100), slack)
        for k, (a, b) in enumerate(zip(times, ends, strict=True))
    ]


def test_a_frame_is_the_last_that_has_begun() -> None:
    frames = at([0, 10, 30, 60, 90, 100], 110)
    assert list(sampled(frames, 8, 100)) == [0, 1, 1, 2, 2, 3, 3, 3, 5]


def test_random_times_give_what_the_definition_says() -> None:
    chance, differs = random.Random(0), 0
    for _ in range(200):
        times = sorted(chance.randrange(-50, 300) for _ in range(chance.randrange(1, 30)))
        stop, fps = times[-1] + chance.randrange(1, 50), chance.choice([1, 3, 8, 12.5, 30])
        asked = [Fraction(times[0], 100) + k / Fraction(fps) for k in range(200)]
        expected = [
            max(k for k, t in enumerate(times) if Fraction(t, 100) <= moment)
            for moment in asked
            if moment < Fraction(stop, 100)
        ]
        assert list(sampled(at(times, stop), fps, 200)) == expected
        late = at([times[0], *(time + 2 for time in times[1:])], stop + 2)  # another file
        differs += list(sampled(late, fps, 200)) != expected
    assert differs > 100


def test_a_clock_of_milliseconds_counts_as_exact() -> None:
    """Files of WebM and MKV have no other clock: 2/30 of a second is 67 ms there."""
    times = [Fraction(round(1000 * k / 30), 1000) for k in range(30)]
    ends = [*times[1:], Fraction(1)]
    slack = Fraction(1, 2000)
    exact = [Shown(k, a, b, slack) for k, (a, b) in enumerate(zip(times, ends, strict=True))]
    assert list(sampled(exact, 30, 30)) == list(range(30))
    strict = [Shown(s.picture, s.start, s.stop) for s in exact]
    assert list(sampled(strict, 30, 30)) != list(range(30))


def test_no_frame_is_asked_for_beyond_the_last_clip() -> None:
    def endless() -> Iterator[Shown[int]]:
        for k in range(1000):
            assert k < 6, "a frame that no clip needs was decoded"
            yield Shown(k, Fraction(k, 8), Fraction(k + 1, 8))

    assert list(sampled(endless(), 8, 5)) == [0, 1, 2, 3, 4]


def test_times_that_run_backwards_are_refused() -> None:
    with pytest.raises(UnfitFileError, match="run backwards"):
        list(sampled(at([0, 20, 10], 30), 8, 9))


# --- containers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "container"),
    [
        (b"GIF89a", "gif"),
        (b"GIF87a\1\0\1\0", "gif"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\r", "png"),
        (b"RIFF\0\0\0\0WEBP", "webp"),
        (b"\0\0\0\x18ftypmp42", "mov"),
        (b"\x1aE\xdf\xa3\1\0\0\0", "matroska"),
        (b"", None),
        (b"ffconcat version 1.0", None),
        (b"RIFF\0\0\0\0AVI ", None),
        (b"ftyp", None),
        (b"GIF90a", None),
    ],
)
def test_the_first_bytes_choose_the_container(start: bytes, container: str | None) -> None:
    assert container_of(start) == container
