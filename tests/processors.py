"""The tests of numbers on narrower processors than this one: python tests/processors.py

A cell is the widest instructions that oneDNN and torch's own kernels may use, and a number of
threads. In each cell every such test passes, each twin with its perturbed number included: a bound
that only one processor meets is a fault of the bound. Prints one line a cell. CI runs the narrowest
cell but the scalar ones, `make processors` all that this processor has. Other kinds of processor
than x86-64 have none of these settings.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("golden", "parity", "winograd", "norm_torch", "strips", "boot", "training")
# as ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY have them; torch calls its scalar kernels "default"
ONEDNN = ("DEFAULT", "AVX2", "AVX512_CORE")
TORCH = ("default", "avx2", "avx512")
NARROW = "onednn-AVX2_torch-avx2_threads-1"

PROBE = """
import torch
torch.nn.functional.conv2d(torch.ones(2, 64, 32, 32), torch.ones(64, 64, 3, 3))
print("torch", torch.backends.cpu.get_cpu_capability())
"""
_GOLDEN = re.compile(
    r"^golden (\S+) +\S+ +(\S+) +worst (\S+) of (\d(?:\.\d+)?e[+-]\d+)", re.MULTILINE
)


@dataclass(frozen=True)
class Cell:
    onednn: str
    torch: str
    threads: int

    @property
    def name(self) -> str:
        return f"onednn-{self.onednn}_torch-{self.torch}_threads-{self.threads}"

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "ATEN_CPU_CAPABILITY": self.torch,
            "OMP_NUM_THREADS": str(self.threads),
        }


def cells() -> list[Cell]:
    """Those of this processor."""
    wide = "avx512" in instructions(os.environ | {"ATEN_CPU_CAPABILITY": "avx512"})["torch"]
    kinds = 3 if wide else 2
    return [
        Cell(onednn, kernels, threads)
        for onednn in ONEDNN[:kinds]
        for kernels in TORCH[:kinds]
        for threads in (1, 2)
    ]


def instructions(environment: dict[str, str]) -> dict[str, str]:
    """The widest instructions that each library says it uses, in lower case."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=environment | {"ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"cpu,isa:(.*)", done.stdout)
    assert found is not None, f"oneDNN did not say what it uses: {done.stdout[:300]}"
    said = done.stdout.rsplit("torch ", 1)[1]
    return {"onednn": found[1].lower().replace("-", ""), "torch": said.strip().lower()}


def check_narrowed(cell: Cell) -> None:
    """Both libraries must do as they are told; a setting that is not heeded proves nothing."""
    used = instructions(cell.environment())
    kernels = used["torch"].replace("no avx", "default")  # what older releases call it
    assert kernels == cell.torch, f"{cell.name}: torch uses {kernels}"
    if cell.onednn == "AVX2":
        assert "avx2" in used["onednn"], f"{cell.name}: oneDNN uses {used['onednn']}"
        assert "avx512" not in used["onednn"], f"{cell.name}: oneDNN uses {used['onednn']}"


def run(cell: Cell, more: list[str]) -> bool:
    """Run the tests in a cell, print its line, and what failed; whether all passed."""
    check_narrowed(cell)
    started = time.monotonic()
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-m", "not slow", *more, *files]
    done = subprocess.run(
        command, env=cell.environment(), cwd=ROOT, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - started
    summary = (done.stdout.strip().splitlines() or ["nothing was printed"])[-1].strip("= ")
    figures = told(done.stdout)  # none from several processes of pytest
    more_told = f"; of its bound, {figures}" if figures else ""
    print(f"{cell.name}: {summary}; {seconds:.0f} s{more_told}", flush=True)
    if done.returncode != 0:
        print(done.stdout[-6000:] + done.stderr[-2000:], flush=True)
    return done.returncode == 0


def told(printed: str) -> str:
    """The largest error of each kind of golden fixture, as a share of its bound."""
    worst: dict[str, float] = {}
    for kind, backend, error, bound in _GOLDEN.findall(printed):
        name = f"{kind} ({backend})"
        worst[name] = max(worst.get(name, 0.0), float(error) / float(bound))
    return ", ".join(f"{name} {share:.0%}" for name, share in sorted(worst.items()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--narrow", action="store_true", help=f"only {NARROW}")
    parser.add_argument("--numprocesses", default="0", help="of pytest")
    asked = parser.parse_args()
    if platform.machine() not in ("x86_64", "AMD64"):
        print(f"skipped: needs an x86-64 processor, not {platform.machine()}")
        return
    chosen = [cell for cell in cells() if not asked.narrow or cell.name == NARROW]
    # a list, so that a cell that fails does not keep the others from running
    passed = [run(cell, ["--numprocesses", asked.numprocesses]) for cell in chosen]
    sys.exit(0 if passed and all(passed) else 1)


if __name__ == "__main__":
    main()
