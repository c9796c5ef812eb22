"""What a loaded package is, whatever it holds: inputs by name in, results by name out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from .graph import TensorType
from .watch import Watch


class Executable(Protocol):
    """A loaded program or pipeline.

    inputs, outputs: TensorType by name; the label and the probabilities of a classifier are not
    tensors and have none.
    """

    inputs: dict[str, TensorType]
    outputs: dict[str, TensorType]

    def __call__(self, inputs: Mapping[str, Any], watch: Watch | None = None) -> dict[str, Any]:
        """Results for inputs that fit the package.

        Args:
            inputs: an array by name, or a picture where the package takes one: uint8 of shape
                (H, W, 3) in RGB or (H, W) in gray, or numbers from 0 to 255 as the program reads
                them, (1, C, H, W) with channels in the package's own order.

        Returns arrays by name, float32 for any floating-point type; of a classifier also the best
        label, a str or int, and the probabilities, a dict by label.

        Raises ExecutionError for inputs that do not fit, and for a program that fails on them.
        """
        ...
