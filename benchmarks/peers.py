"""What other tools make of the same network: Torch-Pruning (https://github.com/VainF/Torch-Pruning) and torch.nn.utils.prune.

pip install --no-deps torch-pruning    for its rows
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from secateur.footprint import macs
from secateur.repair import reestimate
from secateur.task import Loss

STEPS = 12  # of bisection


def torch_pruning(
    model: nn.Module, example: Tensor, data: Iterable[tuple[Tensor, Tensor]], loss: Loss, left: float, how: str
) -> nn.Module:  # fmt: skip
    """Channels inside the blocks of a residual network, ranked over the network by group Taylor or magnitude, re-estimated.

    left: the share of the MACs that may be left.
    """
    import torch_pruning as tp

    kinds = {"taylor": tp.importance.GroupTaylorImportance, "magnitude": tp.importance.GroupMagnitudeImportance}
    fixed = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear)) and not name.endswith(".conv1")]

    dense = dict(model.named_modules())

    def at(share: float) -> tuple[nn.Module, dict[str, tuple[Tensor, ...]]]:
        small = copy.deepcopy(model).eval()
        for parameter in small.parameters():
            parameter.requires_grad_(True)
        modules = dict(small.named_modules())
        ignored = [modules[name] for name in fixed]
        how_much = {"global_pruning": True, "pruning_ratio": share, "max_pruning_ratio": 0.98}
        pruner = tp.pruner.BasePruner(small, example, importance=kinds[how](), ignored_layers=ignored, **how_much)
        if how == "taylor":
            for x, y in data:
                loss(small(x), y).backward()
        pruner.step()
        kept = {}
        for name, outputs, gone in pruner.pruning_history():
            if outputs:
                stay = torch.ones(len(dense[name].weight), dtype=torch.bool)  # type: ignore[arg-type]
                stay[list(gone)] = False
                kept[f"{name.removesuffix('conv1')}bn1.running_mean"] = (stay.nonzero().flatten(),)
        small.zero_grad(set_to_none=True)
        return small, kept

    whole, low, high = macs(model, example), 0.0, 1.0
    best = at(high)
    for _ in range(STEPS):
        share = (low + high) / 2
        tried = at(share)
        if macs(tried[0], example) <= left * whole:
            best, high = tried, share
        else:
            low = share
    small, kept = best
    return reestimate(small, model, data, SimpleNamespace(kept=kept))  # type: ignore[arg-type]


def global_unstructured(model: nn.Module, data: Iterable[tuple[Tensor, Tensor]], amount: float) -> nn.Module:
    """The smallest weights of the whole network become zero; re-estimated."""
    masked = copy.deepcopy(model)
    layers = [(module, "weight") for module in masked.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=amount)
    for module, name in layers:
        prune.remove(module, name)
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return reestimate(masked, model, data) if norms else masked
