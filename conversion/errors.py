"""Errors of converting models and opening bundles."""

from __future__ import annotations

from mdm_apple.errors import MdmError


class ConversionError(MdmError):
    """A model that cannot be converted or compressed as asked; one sentence says why."""


class BundleError(MdmError):
    """A bundle that is incomplete, altered or not understood; one sentence says where."""
