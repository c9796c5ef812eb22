"""Runs a saved Core ML package (an ML program) on any machine, without Core ML.

    package = Package.open("inner.mlpackage")
    program = package.load(precision="fp16")
    outputs = program({"x_t": array})

It certifies the saved graph, the stored weights and, in fp16, the range and rounding of every
intermediate value. It does not reproduce a device: Apple does not document how the Neural Engine
fuses operations or how wide it accumulates.
"""

from .errors import ExecutionError
from .graph import TensorType
from .package import Package
from .program import Program
from .watch import Range, Watch

__all__ = ["ExecutionError", "Package", "Program", "Range", "TensorType", "Watch"]
