"""Which of Apple's systems this is."""

from __future__ import annotations

import sys

import pytest

from mdm_apple.apple_system import core_ai_chooses_units, major_version

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "major"), [("27.0", 27), ("27", 27), ("26.4.1", 26), ("9.9", 9), ("", 0), ("x.1", 0)]
)
def test_the_major_version(text: str, major: int) -> None:
    assert major_version(text) == major


@pytest.mark.skipif(sys.platform == "darwin", reason="needs a system that is not Apple's")
def test_other_systems_choose_no_units() -> None:
    assert not core_ai_chooses_units()
