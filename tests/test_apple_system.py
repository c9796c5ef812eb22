"""Which of Apple's systems this is."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from mdm_apple.apple_system import core_ai_chooses_units, major_version, require_units
from mdm_apple.errors import MdmError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "major"), [("27.0", 27), ("27", 27), ("26.4.1", 26), ("9.9", 9), ("", 0), ("x.1", 0)]
)
def test_the_major_version(text: str, major: int) -> None:
    assert major_version(text) == major


@pytest.mark.parametrize(
    ("platform", "release", "chooses"),
    [
        ("darwin", "26.0.0", True),  # macOS 27
        ("darwin", "27.1.0", True),
        ("darwin", "25.4.0", False),  # macOS 26, which calls itself 16 to older Pythons
        ("darwin", "24.6.0", False),  # macOS 15
        ("linux", "27.0.0", False),
    ],
)
def test_units_are_chosen_from_macos_27_on(
    monkeypatch: pytest.MonkeyPatch, platform: str, release: str, chooses: bool
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(release=release))
    assert core_ai_chooses_units() is chooses
    if chooses:
        require_units()
    else:
        with pytest.raises(MdmError, match="macOS 27 only"):
            require_units()


@pytest.mark.skipif(sys.platform == "darwin", reason="needs a system that is not Apple's")
def test_other_systems_choose_no_units() -> None:
    assert not core_ai_chooses_units()
