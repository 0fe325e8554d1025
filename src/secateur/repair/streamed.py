"""A model whose parameters lie on disk: each is loaded for the operator that reads it, and gone when nobody holds it any more.

The model is built with parameters on `meta`, which have shapes only. A run goes under a mode that puts the values in their place as they
enter an operator, whoever calls it: the layer that owns them, or another one (attention that reads its projections itself, tied weights).
Runs that are at the same operator share one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from ..errors import BadInput, PlanMismatch
from ..flows.watch import Watch
from ..structure.cut import tensors_in
from ..task import each
from .side_by_side import shared
from .stored import Stored

TOLD = {"shape", "dtype", "ndim", "layout", "requires_grad", "is_leaf", "is_sparse", "is_quantized", "is_nested", "size", "dim", "numel",
        "stride", "is_floating_point", "is_complex", "element_size", "__len__"}  # fmt: skip
DEVICES: dict[str, object] = {"device": torch.device("cpu"), "is_meta": False, "is_cpu": True}


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """The model of `build()`, its parameters on `meta`: their values go as soon as a module has them. Buffers keep theirs."""
    with torch.random.fork_rng(devices=[]), without_values():
        model = build()
    if not isinstance(model, nn.Module):
        raise BadInput(f"build() returned a {type(model).__name__}, not a torch.nn.Module. Return the dense model from it.")
    if bare := next((name for name, value in model.named_buffers() if value.is_meta), None):
        raise BadInput(f"build() makes {bare}, a buffer, on meta, without values. Build without torch.device('meta'): parameters go there.")
    if loaded := next((name for name, value in model.named_parameters() if not value.is_meta), None):
        raise BadInput(f"build() gave {loaded} values that cannot be left on disk. Build the architecture inside of it, with no weights.")
    return model


@contextmanager
def without_values() -> Iterator[None]:
    """Parameters that modules get lie on `meta`. They stay the same objects, so that those that are tied stay tied."""

    def emptied(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        if value is not None and not value.is_meta:
            torch.utils.swap_tensors(value, nn.Parameter(torch.empty_like(value, device="meta"), value.requires_grad))  # type: ignore[no-untyped-call]

    hook = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        hook.remove()


class Shelf:
    """The parameters of a model, which are loaded while somebody holds them.

    model: with parameters on `meta`. load: the values of one, by its name.
    """

    def __init__(self, model: nn.Module, load: Callable[[str], Tensor]) -> None:
        self.load = load
        self.parameters = dict(model.named_parameters())
        self.names = {id(value): name for name, value in self.parameters.items()}
        self.held: WeakValueDictionary[str, Tensor] = WeakValueDictionary()

    def beside(self, model: nn.Module) -> nn.Module:
        """Another one that has the same parameters, and modules of its own."""
        again = shared(model)
        self.names |= {id(value): name for name, value in again.named_parameters()}
        return again

    def take(self, name: str) -> Tensor:
        """The values, of the parameter's type."""
        value = self.held.get(name)
        if value is None:
            like = self.parameters[name]
            value = self.load(name).to(like.dtype).requires_grad_(like.is_floating_point())  # rules tell parameters by that
            self.held[name] = value
        return value


class Loading(TorchFunctionMode):
    """Puts the values in the place of parameters, and tells `watch` their names. Entered after `watch`, and so asked before it."""

    def __init__(self, shelf: Shelf, watch: Watch) -> None:
        super().__init__()
        self.shelf, self.watch = shelf, watch

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        names = {self.shelf.names[id(value)] for value in tensors_in((args, kwargs), set()) if id(value) in self.shelf.names}
        asked = func.__name__ if func.__name__ != "__get__" else getattr(func.__self__, "__name__", "")  # type: ignore[attr-defined]
        if names and asked in DEVICES:
            return DEVICES[asked]
        if not names or asked in TOLD:
            return func(*args, **kwargs)
        values = {name: self.shelf.take(name) for name in names}

        def real(value: object) -> object:
            return values[self.shelf.names[id(value)]] if isinstance(value, Tensor) and id(value) in self.shelf.names else value

        new = {id(value): name for name, value in values.items() if id(value) not in self.watch.names}
        self.watch.names |= new
        try:
            args, kwargs = each(real, args), each(real, kwargs)  # type: ignore[assignment]
            return func(*args, **kwargs)
        finally:
            for key in new:
                del self.watch.names[key]


def names_in(model: nn.Module, source: Stored) -> dict[str, tuple[str, ...]]:
    """Under which names the files have each parameter and each buffer of the state; several, where it is tied.

    Raises PlanMismatch, naming the first that is not there, or has another shape.
    """
    persistent = model.state_dict(keep_vars=True).keys()
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    tied: dict[int, list[str]] = {}
    for name, value in everything:
        tied.setdefault(id(value), []).append(name)
    found = {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        there = tuple(other for other in tied[id(value)] if other in source.places)
        if not there and name not in persistent:
            continue  # what build() computes
        then = source.places[there[0]].shape if there else "absent"
        if then != tuple(value.shape):
            raise PlanMismatch(
                f"In {source.folder} {name} is {then}, but in the model of build() {tuple(value.shape)}. Build the architecture that "
                "these weights are of, with parameters of their names."
            )
        found[name] = there
    return found


def with_buffers(model: nn.Module, names: Mapping[str, tuple[str, ...]], load: Callable[[str], Tensor]) -> nn.Module:
    """The model, its buffers filled in place."""
    for name, value in model.named_buffers():
        if names.get(name):
            value.copy_(load(name))
    return model
