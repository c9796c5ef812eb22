"""Several processes of torchrun: which is this one, which GPU is its own, how do they add up?"""

from __future__ import annotations

import atexit
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from mdm_apple.errors import MdmError
from mdm_apple.training.learner import LostProcessError

# that a process waits for the others, longer than the first one saves, or draws a grid of samples
PATIENCE = timedelta(minutes=15)


def process_rank() -> tuple[int, int]:
    """Rank and number of processes; joins the others under torchrun. Raises MdmError."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not dist.is_initialized():
        _join()
    return dist.get_rank(), dist.get_world_size()


def own_gpu() -> torch.device:
    """This process's GPU among those of its machine. Raises MdmError if there is none left."""
    place, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= count:
        raise MdmError(
            f"processes: this machine shows {count} GPUs, and torchrun started more than that; "
            f"start at most {count} with --nproc-per-node."
        )
    return torch.device("cuda", place)


def all_reduce(values: Tensor, how: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
    """Add up over all processes, in place. Raises LostProcessError if one of them is gone."""
    try:
        dist.all_reduce(values, how)
    except RuntimeError as error:
        raise LostProcessError(
            "processes: another process of this run has ended or cannot be reached "
            f"({_first_line(error)}); the last save is kept, go on with --resume.",
            known=values.device.type == "cpu",
        ) from None


def _join() -> None:
    try:
        if torch.cuda.is_available():
            device = own_gpu()
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, MdmError):
            raise
        raise MdmError(
            f"processes: cannot be joined ({_first_line(error)}); start them with torchrun."
        ) from None
    # threads of a group that is left open abort the interpreter on its way out, now and then
    atexit.register(dist.destroy_process_group)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
