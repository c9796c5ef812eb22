"""Writes docs/operations.md, what the executor runs: run this module with `python -m`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ..coreml import quiet_coremltools
from . import (
    ops_elementwise,
    ops_image,
    ops_linear,
    ops_reduce,
    ops_shape,
)
from .compressed import DECODERS
from .opset import OPERATIONS
from .packed import CODE_BITS

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
_ROOMS = {
    "Convolution, matrix products, attention": ops_linear,
    "Arithmetic and activations": ops_elementwise,
    "Reductions, norms, sorting": ops_reduce,
    "Shapes, indexing": ops_shape,
    "Pooling, resampling": ops_image,
}


def render() -> str:
    """The page, from the tables that the executor itself uses."""
    missing = sorted(_defined() - set(OPERATIONS) - set(DECODERS) - {"const"})
    lines = [
        "# What the executor runs\n",
        "Made by `python -m mdm_apple.conversion.execute.coverage`; a test holds it to the code. "
        "Names are those of MIL, the language of ML programs. Anything else is refused by its name "
        "before a number is computed, and so are states, control flow and flexible shapes.\n",
        f"## Operations ({len(OPERATIONS)})\n",
    ]
    for title, module in _ROOMS.items():
        names = [n for n, f in OPERATIONS.items() if f.__module__ == module.__name__]
        lines.append(f"**{title}** ({len(names)}): {', '.join(f'`{n}`' for n in sorted(names))}\n")
    lines += [
        "## Compressed weights\n",
        f"{', '.join(f'`{name}`' for name in DECODERS)}, in the forms of iOS 16 and iOS 18; "
        f"palettes of {', '.join(map(str, sorted(CODE_BITS)))} bits, per tensor or per group, "
        "scales per channel or block, int4 and int8, sparse forms and their combinations.\n",
        f"## Known to coremltools and not run here ({len(missing)})\n",
        ", ".join(f"`{name}`" for name in missing) + "\n",
    ]
    return "\n".join(lines)


def _defined() -> set[str]:
    """The operations of iOS 15 to 18 that coremltools defines."""
    with quiet_coremltools():
        registry: Any = importlib.import_module(
            "coremltools.converters.mil.mil.ops.registry"
        ).SSAOpRegistry
    return {name for name in registry.core_ops if not name.startswith("_")}


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
