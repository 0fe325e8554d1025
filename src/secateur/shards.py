"""Choose connections of a model that lies in shards: the threshold is found by adding histograms up, and nothing else is exchanged.

    structure = weights(model)                                   # before fully_shard(model)
    measured = measure(Task(model, batches, loss), structure)    # every process has the scores of its shards
    keep = kept_shards(measured.global_, amount=0.5)             # and what is kept of them, as if one process had chosen
    model.load_state_dict(masked_shards(model, keep), strict=False)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .budget import ROUNDING, fraction
from .connections import in_order
from .errors import BadInput
from .sharded import is_sharded, local
from .smallest import Add, descend, threshold
from .tree import Keep, Scores


def kept_shards(scores: Scores, amount: float, processes: dist.ProcessGroup | None = None) -> Keep:
    """What is kept of this process's scores where the lowest `amount` of those of all processes leaves.

    scores: this process's shards, a group a parameter, in the same order everywhere. processes: those that have other shards (not those
    that have copies of this one's); None: all. The same choice as of one process, also among equal scores if shards are along dimension 0;
    a group keeps at least its highest. Raises BadInput for an amount outside 0..1, or beyond what may leave.
    """

    def added(value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value, group=processes)
        return value

    sizes = added(torch.tensor([value.numel() for value in scores.values()]))
    most = (sizes - 1).clamp_min(0)
    number = math.ceil((fraction(amount) - ROUNDING) * int(sizes.sum()))
    if number > int(most.sum()):
        raise BadInput(f"An amount of {amount:g} is out of reach, since every group keeps something. Ask for less.")
    if number <= 0:
        return {name: torch.ones_like(value, dtype=torch.bool) for name, value in scores.items()}

    def enough(removed: Tensor) -> bool:
        return int(torch.minimum(removed, most).sum()) >= number

    found = descend([[value] for value in scores.values()], enough, 64, added)
    assert found is not None  # all of them are enough
    low, high = 1, int(found.equal.sum())
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(found.below + in_order(found.equal, middle)) else (middle + 1, high)
    removed = torch.minimum(found.below + in_order(found.equal, low), most).tolist()
    return {name: ~lowest_of(value, count, added, processes) for (name, value), count in zip(scores.items(), removed)}


def lowest_of(values: Tensor, count: int, added: Add, processes: dist.ProcessGroup | None) -> Tensor:
    """Which of this process's scores are among the `count` lowest of a group; equal ones leave in the order of the processes."""
    if not count:
        return torch.zeros_like(values, dtype=torch.bool)
    end = threshold(values, count, added)
    chosen, equal = values < end.value, values == end.value
    before = torch.zeros(dist.get_world_size(processes), dtype=torch.int64)
    rank = dist.get_rank(processes)
    before[rank] = equal.count_nonzero()
    ties = max(0, end.ties - int(added(before)[:rank].sum()))
    chosen.view(-1)[equal.view(-1).nonzero()[:ties, 0]] = True
    return chosen


def masked_shards(model: nn.Module, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sharded parameters that `keep` names, as DTensors with zeros where this process does not keep them; the model stays as it is.

    Raises BadInput where the shards are not those of the model.
    """
    from torch.distributed.tensor import DTensor

    named = dict(model.named_parameters())
    masked: dict[str, Tensor] = {}
    for name, mask in keep.items():
        value = named.get(name)
        if not is_sharded(value) or local(value).shape != mask.shape:
            found = "has none" if not is_sharded(value) else f"has {tuple(local(value).shape)}"
            raise BadInput(f"{name} is kept in a shard {tuple(mask.shape)}, but this model {found}. Give the model that was measured.")
        part = local(value.detach()) * mask.to(value.device)
        masked[name] = DTensor.from_local(
            part, value.device_mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
        )
    return masked
