"""Will a run on several machines go on after one is lost? Read from what torchrun has set."""

from __future__ import annotations

import os

RECOVERS = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


def launch_remarks() -> list[str]:
    """What keeps a run on several machines from going on after one of them is lost.

    PyTorch reads the variable in torchrun itself, before this process begins, so that only whoever
    starts torchrun can set it. The first process speaks for all.
    """
    machines = os.environ.get("GROUP_WORLD_SIZE", "1")
    if machines == "1" or os.environ.get("RANK") != "0" or os.environ.get(RECOVERS) == "1":
        return []
    return [
        f"torchrun: will not find a machine again that was lost and came back; set {RECOVERS}=1 "
        "where torchrun is started, on each machine (docs/scale.md)."
    ]
