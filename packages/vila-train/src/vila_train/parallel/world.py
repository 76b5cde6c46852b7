"""The processes of a run, and what they exchange.

`torchrun` and `accelerate launch` start one process per GPU and describe them in the environment (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Without these variables there is one process, which needs no process group.
"""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from vila_core.device_choice import choose_device
from vila_core.errors import ConfigError, VilaError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for each other: one may encode a long video or write a checkpoint meanwhile."""


@dataclass(frozen=True)
class World:
    """One process among those of a run.

    Attributes:
        rank: of the process, from 0.
        size: how many there are.
        device: that it computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process reports and writes files for all."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of each rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def first(self, action: Callable[[], T]) -> T:
        """Let rank 0 do something, and return its result on all ranks. All raise its `VilaError`."""
        outcome: T | VilaError | None = None
        if self.is_first:
            try:
                outcome = action()
            except VilaError as error:
                outcome = error
        outcome = self.share(outcome)
        if isinstance(outcome, VilaError):
            raise outcome
        return cast("T", outcome)

    def share(self, value: Any) -> Any:
        """Return the `value` of rank 0."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of `values` over all ranks, without waiting for it. `values` is overwritten."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


@contextmanager
def join_world(device: str = "auto", *, group: bool = False) -> Generator[World]:
    """Yield this process as part of its run, in a process group if there are others.

    Args:
        device: "auto" is the GPU of this process if there is one.
        group: form a process group even if this process is alone: sharded weights need one.

    Raises:
        ConfigError: the environment describes no process of a run, or the device is not on this machine.
    """
    rank, size, local_rank = _read("RANK", 0), world_size(), _read("LOCAL_RANK", 0)
    if not 0 <= rank < size:
        raise ConfigError(f"RANK is {rank}, but WORLD_SIZE is {size}. Start the processes with torchrun.")
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = choose_device(f"cuda:{local_rank}") if size > 1 else chosen
        torch.cuda.set_device(chosen)
    world = World(rank, size, chosen)
    if dist.is_initialized() or (size == 1 and not group):
        yield world
        return
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    if size > 1:
        try:
            dist.init_process_group(backend, timeout=TIMEOUT)
        except (ValueError, RuntimeError) as error:  # no MASTER_ADDR, or nobody there
            reason = str(error).strip().splitlines()[0].removesuffix(".")
            problem = f"The {size} processes do not find one another: {reason}. Start them with torchrun."
            raise ConfigError(problem) from error
    else:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield world
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Return how many processes the run has. Raises `ConfigError` if the environment says nothing sensible."""
    size = _read("WORLD_SIZE", 1)
    if size < 1:
        raise ConfigError(f"WORLD_SIZE is {size}; expected at least 1. Start the processes with torchrun.")
    return size


def _read(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"The environment variable {name} is '{text}'; expected a number. Start with torchrun.")
    return int(text)
