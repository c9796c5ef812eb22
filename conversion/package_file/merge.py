"""Merges several programs into the functions of one package; shared weights are stored once.

    stop_16, stop_32, stop_64 ──► denoiser.mlpackage   (one weight file, as large as stop_64's)

Input: packages with one function each. Output: one package that Core ML opens by function name.
coremltools does the merge and does not change the programs. It stores weights with equal numbers
once, whatever their names. It drops the metadata, which `seal_package` writes afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..coreml import quiet_coremltools
from ..errors import ConversionError
from ..execute import Package

OLDEST_SPECIFICATION = 9  # iOS 18; earlier systems support one function per package


def merge_packages(sources: Mapping[str, Path], target: Path, default: str) -> None:
    """Write the packages to `target` as functions with these names.

    Args:
        default: the function that runs unless another is named.

    Raises ConversionError for packages with several functions or for systems before iOS 18.
    """
    for path in sources.values():
        package = Package.open(path)
        if package.functions != ("main",):
            raise ConversionError(f"{path.name}: already has several functions.")
        if package.spec_version < OLDEST_SPECIFICATION:
            raise ConversionError(
                f"{target.name}: several functions in a package need iOS 18; convert with "
                "--target iOS18."
            )
    with quiet_coremltools() as coremltools:
        functions = coremltools.utils.MultiFunctionDescriptor()
        for name, path in sources.items():
            functions.add_function(str(path), "main", name)
        functions.default_function_name = default
        coremltools.utils.save_multifunction(functions, str(target))
