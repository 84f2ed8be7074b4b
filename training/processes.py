"""The place of a process among those that torchrun started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Place:
    """Number of this process, and of all."""

    rank: int
    world: int

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


def place() -> Place:
    """Where the calling process stands in the open process group; alone without one."""
    return Place(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Place(0, 1)


def require_device(device: str) -> None:
    """Raises ValueError where a GPU is asked for and there is none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device}: there is no CUDA device here; use cpu.")


@contextmanager
def processes(device: str) -> Iterator[str]:
    """The device of this process, with torchrun's process group open: NCCL on GPUs, gloo elsewhere; none alone.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    require_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    # A process may be done hours before the others; torchrun ends them all where one fails.
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(days=30))
    try:
        yield device
    finally:
        dist.destroy_process_group()
