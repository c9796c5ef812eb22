"""Memory that an app needs to run a bundle, per memory policy."""

from __future__ import annotations

from collections.abc import Sequence

from ..execute import TensorType
from .manifest import PackageInfo, PeakMemory, Phase, package_bytes

PHASES: tuple[Phase, ...] = ("text", "prompt", "step")


def peak_memory(packages: Sequence[PackageInfo]) -> PeakMemory:
    """Predicted peak memory in bytes under three policies for keeping packages loaded.

    Counts weights, the largest activations of a call, and values passed between packages.
    """
    carried = carried_bytes(packages)
    needs = [p.activation_bytes + c for p, c in zip(packages, carried, strict=True)]
    by_phase = [
        package_bytes(p for p in packages if p.phase == phase)
        + max((n for p, n in zip(packages, needs, strict=True) if p.phase == phase), default=0)
        for phase in PHASES
    ]
    return PeakMemory(
        resident=package_bytes(packages) + max(needs, default=0),
        staged=max(by_phase),
        minimal=max((p.bytes + n for p, n in zip(packages, needs, strict=True)), default=0),
    )


def carried_bytes(packages: Sequence[PackageInfo]) -> list[int]:
    """Bytes held while each package runs: outputs of earlier packages that only later ones read.

    Values that depend only on the prompt stay for all steps.
    """
    size = {
        f.name: TensorType(f.dtype, f.shape).bytes
        for p in packages
        for f in (*p.inputs, *p.outputs)
    }
    last = {f.name: i for i, p in enumerate(packages) for f in p.inputs}
    for p in packages:
        if p.phase != "step":
            last |= {f.name: len(packages) for f in p.outputs if f.name in last}
    out: list[int] = []
    made: set[str] = set()
    for i, package in enumerate(packages):
        own = {f.name for f in package.inputs}
        waiting = {n for n in made - own if last.get(n, -1) > i}
        out.append(sum(size[n] for n in waiting))
        made |= {f.name for f in package.outputs}
    return out
