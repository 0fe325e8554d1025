"""Values that lie in shards over several processes (DTensors, as FSDP2 makes them of a model's parameters): each process has its part."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(value: object) -> TypeGuard[DTensor]:
    """Where nobody has imported that part of torch (which takes half a second), there is none."""
    there = sys.modules.get("torch.distributed.tensor")
    return there is not None and isinstance(value, there.DTensor)


def local(value: Tensor) -> Tensor:
    """This process's part; the whole of a tensor that lies in one."""
    return value.to_local() if is_sharded(value) else value


def norm(value: Tensor) -> Tensor:
    total: Tensor = torch.linalg.vector_norm(value, 1, dtype=torch.float64)  # reads it once: three times as fast as abs() and sum()
    return total


def absolute_sum(values: Sequence[Tensor]) -> float:
    """sum |v| in float64, with one transfer from the device; of shards over all processes, what several of them hold once."""
    mesh = next((value.device_mesh for value in values if is_sharded(value)), None)
    if mesh is None:
        return float(torch.stack([norm(value) for value in values]).sum())
    total = torch.stack([norm(local(value)) / copies(value, mesh.size()) for value in values]).sum()
    for dimension in range(mesh.ndim):
        dist.all_reduce(total, group=mesh.get_group(dimension))
    return float(total)


def copies(value: Tensor, processes: int) -> int:
    """How many processes hold the same part of a value."""
    if not is_sharded(value):
        return processes
    copied = 1
    for size, placement in zip(value.device_mesh.shape, value.placements):
        copied *= size if placement.is_replicate() else 1
    return copied
