"""Really make a model smaller: a copy whose tensors hold the kept indices only, and whose attributes hold the new sizes."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..task import each

ATOMS = {int, float, bool, str, type(None), torch.dtype, torch.device}
Kept = Mapping[str, "tuple[Tensor | None, ...]"]


def twin(model: nn.Module, replace: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A deep copy whose parameters and buffers are `replace(name, tensor)`: each is copied once, and ties stay ties."""
    memo: dict[int, object] = {}
    memo.update({id(module): module for module in sys.modules.values()})  # a layer may hold one, which cannot be copied
    plain = [module for _, module in modules_in(model) if by_attributes(module)]
    for module in plain:
        memo[id(module)] = object.__new__(type(module))
    seen: set[int] = set()
    kept = [item for module in model.modules() for key, item in vars(module).items() if key not in OWN]
    for value in tensors_in(kept, seen):
        if not value.is_leaf:  # kept from a run with gradients: torch copies it without its history only
            memo[id(value)] = value.detach().clone()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        new = replace(name, value.detach())
        memo[id(value)] = type(value)(new, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else new
    for module in plain:
        vars(memo[id(module)]).update({key: copied(value, memo) for key, value in vars(module).items()})
    return copied(model, memo)  # type: ignore[return-value]


def copied(value: object, memo: dict[int, object]) -> object:
    """A deep copy; at once where that is plain to see, which is nearly everywhere."""
    if type(value) in ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if type(value) is dict and all(type(key) is str or type(key) is int for key in value):
        new: dict[object, object] = {}
        memo[id(value)] = new
        new.update((key, copied(item, memo)) for key, item in value.items())
        return new
    if type(value) is OrderedDict and not value:
        return OrderedDict()
    if type(value) is list and all(type(item) in ATOMS for item in value):
        memo[id(value)] = again = list(value)
        return again
    if type(value) is tuple and all(type(item) in ATOMS for item in value):
        return value
    if type(value) is set and all(type(item) in ATOMS for item in value):
        return set(value)
    return copy.deepcopy(value, memo)


def tensors_in(values: Iterable[object], seen: set[int]) -> Iterator[Tensor]:
    """Tensors, and those in lists, tuples and dicts."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple, dict)) and value and id(value) not in seen:
            seen.add(id(value))
            yield from tensors_in(value.values() if isinstance(value, dict) else value, seen)


def modules_in(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules by their paths, those in plain lists and dicts included: PyTorch does not look there, Keras puts its layers there."""
    named = dict(model.named_modules())
    yield from named.items()
    seen = {id(module) for module in named.values()}
    todo: list[tuple[str, object]] = list(named.items())
    while todo:
        path, value = todo.pop()
        items = vars(value) if isinstance(value, nn.Module) else value
        for key, item in items.items() if isinstance(items, dict) else enumerate(items):  # type: ignore[arg-type]
            if type(item) in ATOMS or (key in OWN and items is not value):
                continue
            if isinstance(item, (nn.Module, list, tuple, dict)) and id(item) not in seen and "." not in str(key):
                seen.add(id(item))
                where = f"{path}.{key}" if path else str(key)
                todo.append((where, item))
                if isinstance(item, nn.Module):
                    yield where, item


OWN = vars(nn.Module()).keys()  # what every module has: parameters, buffers, modules, hooks


def by_attributes(module: nn.Module) -> bool:
    """Whether the module is copied attribute by attribute: fast, and in classes that copy from a description (Keras's) it keeps tensors."""
    kind = type(module)
    plain = kind.__setstate__ in (nn.Module.__setstate__, _ConvNd.__setstate__)  # a convolution's only mends what old versions saved
    return not hasattr(kind, "__deepcopy__") and (plain or kind.__reduce__ is not object.__reduce__)


def cut(model: nn.Module, kept: Kept, sizes: Mapping[str, int | tuple[int, ...]], shapes_only: bool = False) -> nn.Module:
    """A smaller copy of `model`: `kept` indices of each dimension (None: all), attributes set to `sizes`. Without values on request."""

    def part(name: str, value: Tensor) -> Tensor:
        indices = [*enumerate(kept.get(name, ()))]
        if shapes_only:
            shape = list(value.shape)
            for dim, index in indices:
                shape[dim] = shape[dim] if index is None else len(index)
            return torch.empty(shape, dtype=value.dtype, device="meta") if shape != list(value.shape) else without_values(value)
        for dim, index in indices:
            if index is not None:
                value = value.index_select(dim, index.to(value.device))
        return value if any(index is not None for _, index in indices) else value.clone()

    small = twin(model, part)
    for where, size in sizes.items():
        assign(small, where, size)
    for module in small.modules():
        describe(module)
    return small


class Skipped(nn.Module):
    """Stands where a layer was skipped: gives back its first input."""

    def forward(self, *args: object, **kwargs: object) -> object:
        return args[0] if args else next(iter(kwargs.values()))


def skip(model: nn.Module, paths: Iterable[str]) -> nn.Module:
    """In place: these modules give back their first input, and lose their parameters."""
    for path in paths:
        above, _, name = path.rpartition(".")
        setattr(model.get_submodule(above), name, Skipped())
    return model


def holder(model: nn.Module, where: str) -> tuple[object, str]:
    """The object (a module, or a configuration that one holds) and the name of its attribute."""
    *path, attribute = where.split(".")
    here: object = model
    for part in path:
        if isinstance(here, nn.Module) and part in here._modules:
            here = here._modules[part]
        elif isinstance(here, (list, tuple)):
            here = here[int(part)]
        elif isinstance(here, dict):
            here = next(value for key, value in here.items() if str(key) == part)
        else:
            here = vars(here)[part]
    return here, attribute


def attribute_of(model: nn.Module, where: str) -> object:
    """The value of an attribute; None where there is none of that name."""
    try:
        here, name = holder(model, where)
    except (KeyError, IndexError, TypeError, ValueError, StopIteration):
        return None
    return getattr(here, name, None)


def assign(model: nn.Module, where: str, size: int | tuple[int, ...]) -> None:
    here, attribute = holder(model, where)
    old = vars(here)[attribute]
    vars(here)[attribute] = list(size) if isinstance(old, list) and isinstance(size, tuple) else size


def describe(module: nn.Module) -> None:
    """Bring the sizes that PyTorch's own layers only print or check in line with their tensors."""
    if isinstance(module, _ConvNd):
        a, b = module.weight.shape[:2]
        inputs, outputs = (a, b * module.groups) if module.transposed else (b * module.groups, a)
        module.in_channels, module.out_channels = inputs, outputs
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        for value in (module.weight, module.running_mean):
            if value is not None:
                module.num_features = len(value)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = len(module.weight)
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.RNNBase):
        inward, round_ = module.get_parameter("weight_ih_l0"), module.get_parameter("weight_hh_l0")
        module.input_size, module.hidden_size = inward.shape[1], round_.shape[0] // GATES.get(module.mode, 1)
        module.proj_size = module.proj_size and round_.shape[1]


GATES = {"LSTM": 4, "GRU": 3}


def owned(module: nn.Module) -> dict[str, tuple[str, int] | None]:
    """The attributes that `describe` sets, each with the (parameter, dimension) whose size it is; None where it is no dimension's size."""
    if isinstance(module, _ConvNd):
        whole = module.groups == 1
        inputs, outputs = (("weight", 0), ("weight", 1) if whole else None), (("weight", 1) if whole else None, ("weight", 0))
        return dict(zip(("in_channels", "out_channels"), inputs if module.transposed else outputs))
    if isinstance(module, nn.Linear):
        return {"out_features": ("weight", 0), "in_features": ("weight", 1)}
    if isinstance(module, _NormBase) and module.weight is not None:
        return {"num_features": ("weight", 0)}
    if isinstance(module, nn.GroupNorm) and module.weight is not None:
        return {"num_channels": ("weight", 0)}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)}
    if isinstance(module, nn.RNNBase):
        if module.proj_size:
            return {"input_size": ("weight_ih_l0", 1), "hidden_size": None, "proj_size": ("weight_hr_l0", 0)}  # it must stay the smaller
        return {"input_size": ("weight_ih_l0", 1), "hidden_size": ("weight_hh_l0", 1)}
    return {}


def without_values(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def to_meta(value: object) -> object:
    """Tensors on the `meta` device, the containers around them rebuilt."""
    return each(lambda leaf: torch.empty_like(leaf, device="meta") if isinstance(leaf, Tensor) else leaf, value)
