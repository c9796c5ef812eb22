"""Access to Core ML's protobuf messages, which coremltools ships."""

from __future__ import annotations

import importlib
from typing import Any

from ..coreml import quiet_coremltools


def model_message() -> Any:
    """An empty `Model` message."""
    with quiet_coremltools():
        return importlib.import_module("coremltools.proto.Model_pb2").Model()
