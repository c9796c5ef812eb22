"""Tests that need Apple's packages for Core AI, and the systems for which these have wheels.

Under CI=true such tests fail, rather than be skipped, where there are wheels. As a program, which
`make setup` runs, it exits with 0 where there are and with 3 where there are none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

import pytest
from packaging.tags import Tag, sys_tags

from mdm_apple.errors import has_coreai

# coreai-core 1.0.0b3. Environment markers know no version of glibc or macOS, so pip finds nothing
# to install on an older system of these kinds.
WHEELS = {
    f"cp3{minor}-cp3{minor}-{platform}"
    for minor in range(11, 15)
    for platform in ("manylinux_2_34_x86_64", "macosx_26_0_arm64")
}


def has_wheels(tags: Iterable[Tag]) -> bool:
    """Whether a system with these tags takes one of the wheels."""
    return any(str(tag) in WHEELS for tag in tags)


def hidden() -> bool:
    """Whether `without_coreai/sitecustomize.py` hides the packages from this process."""
    return "coreai" in getattr(sys.modules.get("sitecustomize"), "HIDDEN", ())


def is_demanded() -> bool:
    return os.environ.get("CI") == "true" and has_wheels(sys_tags()) and not hidden()


needs_coreai = pytest.mark.skipif(
    not has_coreai() and not is_demanded(),
    reason="needs coreai-core and coreai-torch: Linux on x86-64 or Apple silicon with macOS 26",
)

if __name__ == "__main__":
    sys.exit(0 if has_wheels(sys_tags()) else 3)
