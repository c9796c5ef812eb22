"""Tests that need Apple's packages for Core AI; under CI=true these must be there."""

from __future__ import annotations

import os

import pytest

from mdm_apple.errors import has_coreai

needs_coreai = pytest.mark.skipif(
    not has_coreai() and os.environ.get("CI") != "true",
    reason="needs coreai-core and coreai-torch: Linux on x86-64 or Apple silicon with macOS 26",
)
