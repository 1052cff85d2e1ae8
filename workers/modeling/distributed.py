"""What the ranks of a job tell each other while they train.

A job in one process never joins, and everything here is then about that process alone, without a group or a copy.
Ranks trust each other like threads: objects travel pickled between them, over the machine's loopback or the links of
its GPUs, and never to disk.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from workers.errors import RunError
from workers.modeling import ranks
from workers.wire import ExitCode

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long a rank waits for the others. One may sample and grade long after the rest; one that died ends the job."""


def join() -> torch.device:
    """Meet the other ranks, if there are any; the device that this one trains on.

    Raises ``RunError`` where there are fewer GPUs than ranks.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if ranks.number() == 1:
        return device
    if device.type == "cuda":
        if ranks.number() > torch.cuda.device_count():
            message = (
                f"A job of {ranks.number()} processes needs as many GPUs, and there are {torch.cuda.device_count()}. "
                "Lower TROLL_PROCESSES_PER_JOB."
            )
            raise RunError("worker_unavailable", message, exit_code=ExitCode.UNAVAILABLE)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=os.environ.get(ranks.RENDEZVOUS, "env://"),
            rank=ranks.own(),
            world_size=ranks.number(),
            timeout=PATIENCE,
        )
    return device


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(own: T) -> list[T]:
    """What every rank has, in the order of the ranks."""
    if size() == 1:
        return [own]
    found: list[T | None] = [None] * size()
    dist.all_gather_object(found, own)
    return found  # type: ignore[return-value]


def from_first(own: T) -> T:
    """What the first rank has."""
    if size() == 1:
        return own
    found = [own]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def any_rank(own: bool) -> bool:
    """Whether it holds on any rank."""
    return largest(int(own)) > 0


def largest(own: int) -> int:
    """The largest of the ranks' numbers."""
    if size() == 1:
        return own
    number = torch.tensor(own)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def barrier() -> None:
    """Wait until every rank is here."""
    largest(0)


def strided_shard(items: Sequence[T], together: int = 1) -> list[T]:
    """This rank's strided shard of items that every rank has; each ``together`` consecutive ranks share one shard."""
    return list(items[rank() // together :: size() // together])


def gather_strided(own: list[T], together: int = 1) -> list[T]:
    """What all ranks made of their strided shards, in the order of the items before they were sharded."""
    shares = gather(own)[::together]
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]


def own_part(items: Sequence[T], size_of: Callable[[T], int]) -> list[T]:
    """This rank's part of items that every rank has; all parts together are all items, and about equally large."""
    parts: list[list[int]] = [[] for _ in range(size())]
    sums = [0] * len(parts)
    for i in sorted(range(len(items)), key=lambda i: -size_of(items[i])):
        smallest = min(range(len(parts)), key=sums.__getitem__)
        parts[smallest].append(i)
        sums[smallest] += size_of(items[i])
    return [items[i] for i in sorted(parts[rank()])]
