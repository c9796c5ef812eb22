"""Names of types that several rooms write, so that each is spelled out once.

Shapes and ranges that go with a name are said where a function takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = Any  # torch.Tensor, mx.array or np.ndarray
NumpyArray = NDArray[Any]
Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Pixels = NDArray[np.uint8]  # (H, W, 3), or (B, H, W, 3) where said
Images = NDArray[np.float32]  # (B, 3, H, W) in [-1, 1]
Shape = tuple[int, ...]
Ints = tuple[int, ...]

Precision = Literal["fp32", "bf16", "fp16"]  # of a network that makes pictures
TrainingPrecision = Literal["fp32", "bf16"]
Bits = Literal[8, 4]  # that an MLX network's weights are quantized to
Background = Literal["white", "color"]  # behind emoji

Layout = Literal["nested", "monolith", "multifunction"]  # of the packages of a bundle
Compute = Literal["ane", "gpu"]  # layers for the Neural Engine, or those of training
Format = Literal["coreml", "coreai"]  # of the packages of a bundle
Target = Literal["iOS17", "iOS18", "iOS26", "iOS27"]  # oldest system that loads a bundle
TextEncoderChoice = Literal["auto", "yes", "no"]  # whether a bundle holds one
ComputeUnits = Literal["cpuAndGPU", "cpuAndNeuralEngine", "cpuOnly", "all"]  # as Core ML calls them
WeightBits = Literal["8", "6", "4", "3", "2", "int8", "int4"]  # of every weight of a bundle
Variant = Literal["quality", "balanced", "compact"]  # of mixed bits
VerifyRuntime = Literal["reference", "coreml", "coreai"]  # this project's executor, or Apple's
ExecutorPrecision = Literal["fp16", "fp32"]

Say = Callable[[str], None]  # is told what goes on, a line at a time
