"""The settings of a conversion."""

from __future__ import annotations

from dataclasses import dataclass

from mdm_apple.config.types import Compute, Format, Layout, Target
from mdm_apple.errors import ConfigError


@dataclass(frozen=True)
class ConvertOptions:
    """How to make a bundle.

    format: of the packages. target: the oldest system that can load it, and the matching macOS;
    None: iOS 18 for Core ML, iOS 27 for Core AI, which needs it. compute: "ane" rewrites the
    layers for the Neural Engine, "gpu" keeps the layers of training; None: chosen by the layout.
    max_package_mb: larger packages are split in two until all fit (a phone's Neural Engine takes
    about 1000).
    """

    layout: Layout = "nested"
    target: Target | None = None
    compute: Compute | None = None
    max_package_mb: float = 1000
    format: Format = "coreml"

    def __post_init__(self) -> None:
        if self.target is not None and (self.format == "coreai") != (self.target == "iOS27"):
            raise ConfigError(
                f"target: {self.target} does not go with --format {self.format}; Core AI needs "
                "iOS27, and Core ML bundles are for iOS17, iOS18 or iOS26; leave out --target."
            )
        if self.layout == "multifunction" and self.target == "iOS17":
            raise ConfigError("multifunction: needs iOS 18; convert with --target iOS18.")

    @property
    def oldest_system(self) -> Target:
        return self.target or ("iOS27" if self.format == "coreai" else "iOS18")
