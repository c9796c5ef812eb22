"""Terms for making, compressing and running a bundle, shared by command line and conversion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mdm_apple.errors import ConfigError

Layout = Literal["nested", "monolith", "multifunction"]
Compute = Literal["ane", "gpu"]  # layers for the Neural Engine, or the layers of training
Target = Literal["iOS17", "iOS18", "iOS26"]
TextEncoderChoice = Literal["auto", "yes", "no"]
WeightBits = Literal["8", "6", "4", "3", "2", "int8", "int4"]
Variant = Literal["quality", "balanced", "compact"]  # mixed bits
Engine = Literal["reference", "coreml"]  # this project's executor, or Core ML itself
ComputeUnits = Literal["cpuAndGPU", "cpuAndNeuralEngine", "cpuOnly", "all"]
PackagePrecision = Literal["fp16", "fp32"]


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
