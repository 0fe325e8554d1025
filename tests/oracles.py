"""Slow and obviously right: what the structure's short cuts are held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.structure import Channels
from secateur.structure.calls import Whole
from secateur.structure.cut import twin
from secateur.structure.rules import flat, name_of
from secateur.structure.trace import SILENT
from secateur.structure.watch import like_the_trace
from secateur.task import call
from secateur.tree import Keep


def random_keep(structure: Channels, amount: float = 0.5, seed: int = 0) -> Keep:
    """About this fraction of every group removed, at least one unit kept."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for name, group in structure.groups.items():
        draw = torch.rand(group.size, generator=generator)
        number = max(1, int((draw >= amount).sum()))
        keep[name] = draw >= draw.sort(descending=True).values[number + -number % group.multiple - 1]
    return keep


def masked(model: nn.Module, structure: Channels, keep: Keep) -> nn.Module:
    masks = structure.expand(keep)
    return twin(model, lambda name, value: value * masks[name] if name in masks else value.clone())


class KeptOnly(TorchDispatchMode):
    """Runs the masked model with statistics taken over the kept indices only: the oracle of approximate groups.

    It follows which indices of every tensor are kept by where the traced labels say so, and redoes the operators that run over a dimension.
    """

    def __init__(self, kept: list[list[np.ndarray]]) -> None:
        super().__init__()
        self.kept, self.at, self.within = kept, 0, False

    def __torch_dispatch__(self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if self.within or name_of(func) in SILENT:
            return func(*args, **(kwargs or {}))
        return self.step(func, args, kwargs or {})

    def step(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = name_of(func)
        self.within = True
        out = func(*args, **kwargs)
        self.within = False
        reads = self.kept[self.at]
        self.at += 1
        function = OVER_KEPT.get(name)
        if function is None:
            return out
        x = args[0]
        seen = torch.ones((), dtype=torch.bool)
        for dim, index in enumerate(reads[: x.dim()]):
            seen = seen & torch.from_numpy(index).view([-1 if d == dim else 1 for d in range(x.dim())])
        return function(seen.expand(x.shape), out, *args, **kwargs)


def mean_over(seen: Tensor, x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (x * seen).sum(dims, keepdim=True) / seen.sum(dims, keepdim=True).clamp_min(1)


def normalise(seen: Tensor, x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    mean = mean_over(seen, x, dims)
    return (x - mean) / (mean_over(seen, (x - mean) ** 2, dims) + eps).sqrt()


def layer_norm(seen: Tensor, out: Any, x: Tensor, shape: list[int], w: Tensor | None, b: Tensor | None, eps: float) -> Any:
    y = normalise(seen, x, tuple(range(-len(shape), 0)), eps)
    y = y if w is None else y * w
    return (y if b is None else y + b, *out[1:])


def group_norm(seen: Tensor, out: Any, x: Tensor, w: Tensor, b: Tensor, n: int, c: int, hw: int, groups: int, eps: float) -> Any:
    y = normalise(seen.reshape(n, groups, -1), x.reshape(n, groups, -1), (2,), eps).reshape(x.shape)
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    return (y * w.view(shape) + b.view(shape), *out[1:])


def batch_norm(seen: Tensor, out: Any, x: Tensor, w: Any, b: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float) -> Any:
    if not training:
        return out
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    y = normalise(seen, x, tuple(d for d in range(x.dim()) if d != 1), eps)
    y = y if w is None else y * w.view(shape)
    return (y if b is None else y + b.view(shape), *out[1:])


def softmax(seen: Tensor, out: Tensor, x: Tensor, dim: int, half: bool) -> Tensor:
    return x.masked_fill(~seen, -torch.inf).softmax(dim).nan_to_num(0)


def mean(seen: Tensor, out: Tensor, x: Tensor, dims: list[int], keepdim: bool = False, **options: object) -> Tensor:
    y = mean_over(seen, x, tuple(dims))
    return y if keepdim else y.squeeze(tuple(dims))


def amax(seen: Tensor, out: Tensor, x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor:
    return x.masked_fill(~seen, -torch.inf).amax(dims, keepdim)


def argmax(seen: Tensor, out: Tensor, x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    return x.masked_fill(~seen, -torch.inf).argmax(dim, keepdim)


def sum_(seen: Tensor, out: Tensor, x: Tensor, dims: list[int] | None = None, keepdim: bool = False, **options: object) -> Tensor:
    return (x * seen).sum(dims, keepdim)


def mse_loss(seen: Tensor, out: Tensor, x: Tensor, y: Tensor, reduction: int = 1) -> Tensor:
    return mean_over(seen, (x - y) ** 2, tuple(range(x.dim()))).reshape(()) if reduction == 1 else out


OVER_KEPT: dict[str, Callable[..., Any]] = {
    "aten::native_layer_norm": layer_norm,
    "aten::native_group_norm": group_norm,
    "aten::native_batch_norm": batch_norm,
    "aten::_softmax": softmax,
    "aten::mean": mean,
    "aten::amax": amax,
    "aten::argmax": argmax,
    "aten::sum": sum_,
    "aten::mse_loss": mse_loss,
}


def over_kept(model: nn.Module, inputs: object, reads: list[list[np.ndarray]]) -> list[Tensor]:
    mode = KeptOnly(reads)
    with like_the_trace(model), torch.no_grad(), mode, Whole(mode.step):
        return [value for value in flat(call(model, inputs)) if isinstance(value, Tensor)]


def permuted(model: nn.Module, structure: Channels, group: str, order: list[int]) -> nn.Module:
    """The model with the units of a group in another order: index by index, in plain Python."""
    start = 1 + sum(
        g.size for name, g in structure.groups.items() if list(structure.groups).index(name) < list(structure.groups).index(group)
    )
    new = {start + unit: start + other for unit, other in enumerate(order)}

    def moved(name: str, value: Tensor) -> Tensor:
        for dim, index in enumerate(structure.index[name]):
            if index is None:
                continue
            columns = [tuple(column) for column in index.T.tolist()]
            places: dict[tuple[int, ...], list[int]] = {}
            for position, column in enumerate(columns):
                places.setdefault(column, []).append(position)
            nth: dict[tuple[int, ...], int] = {}
            source = []
            for column in columns:
                wanted = tuple(new.get(unit, unit) for unit in column)
                source.append(places[wanted][nth.get(wanted, 0)])
                nth[wanted] = nth.get(wanted, 0) + 1
            value = value.index_select(dim, torch.tensor(source))
        return value

    return twin(model, moved)
