"""The settings of a conversion."""

from __future__ import annotations

from dataclasses import dataclass

from mdm_apple.config.types import Compute, Layout, Target
from mdm_apple.errors import ConfigError


@dataclass(frozen=True)
class ConvertOptions:
    """How to make a bundle.

    target: the oldest system that can load it, and the matching macOS. compute: "ane" rewrites the
    layers for the Neural Engine, "gpu" keeps the layers of training; None: chosen by the layout.
    max_package_mb: larger packages are split in two until all fit (a phone's Neural Engine takes
    about 1000).
    """

    layout: Layout = "nested"
    target: Target = "iOS18"
    compute: Compute | None = None
    max_package_mb: float = 1000

    def __post_init__(self) -> None:
        if self.layout == "multifunction" and self.target == "iOS17":
            raise ConfigError("multifunction: needs iOS 18; convert with --target iOS18.")
