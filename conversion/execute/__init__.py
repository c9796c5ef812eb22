"""Runs a saved Core ML package (ML programs) on any machine, without Core ML.

    package = Package.open("inner.mlpackage")
    program = package.load(precision="fp16")
    outputs = program({"x_t": array})

It certifies the saved graph, the stored weights and, in fp16, the range and rounding of every
intermediate value. It does not reproduce a device: Apple does not document how the Neural Engine
fuses operations or how wide it accumulates.
"""

from .errors import ExecutionError
from .executable import Executable
from .graph import TensorType
from .package import Package
from .program import Program
from .watch import Range, Watch

__all__ = ["Executable", "ExecutionError", "Package", "Program", "Range", "TensorType", "Watch"]
