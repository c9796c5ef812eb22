"""The machine behind the numbers: hardware, system, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("numpy", "torch", "coremltools", "mlx")
ROOT = Path(__file__).parents[3]


def machine() -> dict[str, Any]:
    """The machine and its installed libraries; null for what the system does not report."""
    return {
        "system": platform.system(),
        "os_version": _os_version(),
        "processor": platform.machine(),
        "model": _sysctl("hw.model"),
        "chip": _sysctl("machdep.cpu.brand_string") or _cpu_line("model name"),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
    }


def commit() -> str | None:
    """Commit of the checkout this runs in, with "+" if files differ; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    head = _said("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    changed = _said("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return None if head is None else head + ("+" if changed else "")


def _os_version() -> str:
    if sys.platform == "darwin":
        # Python's own answer may be 16 on macOS 26
        found = _said("sw_vers", "-productVersion") or platform.mac_ver()[0]
        build = _said("sw_vers", "-buildVersion")
        return f"{found} ({build})" if build else found
    return platform.release()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _cpu_line(key: str) -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = next((line for line in file if line.startswith(key)), None)
    except OSError:
        return None
    return None if found is None else found.partition(":")[2].strip()


def _sysctl(name: str) -> str | None:
    return _said("sysctl", "-n", name) if sys.platform == "darwin" else None


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
