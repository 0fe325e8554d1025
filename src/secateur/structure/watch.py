"""Run the smaller model and compare, operator by operator, the shapes it makes with those that the labels predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..task import call, evaluating
from .labels import Dim
from .rules import flat, name_of
from .trace import SILENT, Step

FIXED = "its size is fixed in the code and cannot follow:"


@dataclass(frozen=True)
class Difference:
    """The step at which the smaller model leaves the prediction, and how."""

    step: int
    what: str


class Differs(Exception):
    """Stops the run at the first difference."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, steps: Sequence[Step], size: Callable[[Dim], int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps, self.size, self.at = steps, size, 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if name_of(func) in SILENT:
            return out
        if self.at >= len(self.steps) or not alike(self.steps[self.at].op, name_of(func)):
            raise Differs("the smaller model takes another way before")
        shapes = [tuple(value.shape) for value in flat(out) if isinstance(value, Tensor)]
        predicted = [tuple(self.size(dim) for dim in dims) for dims in self.steps[self.at].made]
        if shapes != predicted:
            raise Differs(FIXED)
        self.at += 1
        return out


def alike(a: str, b: str) -> bool:
    """Whether two names are of one operator, or of forms of a view between which strides decide."""
    return a == b or {a, b} <= {"aten::view", "aten::_unsafe_view", "aten::_reshape_alias", "aten::reshape"}


def watch(small: nn.Module, inputs: object, steps: Sequence[Step], size: Callable[[Dim], int]) -> Difference | None:
    """The first difference between the run of `small` and the prediction; None where there is none."""
    mode = Watch(steps, size)
    try:
        with like_the_trace(small), torch.no_grad(), mode:
            call(small, inputs)
    except Differs as difference:
        return Difference(mode.at, str(difference))
    except Exception as error:  # whatever the user's code raises about a size that did not follow
        sized = mode.at < len(steps) and alike(steps[mode.at].op, "aten::view")
        return Difference(mode.at, FIXED if sized else f"the smaller model fails ({type(error).__name__}) in")
    return None


def backward_fails(model: nn.Module, inputs: object) -> str:
    """The name of the error that a backward pass raises, or ""."""
    try:
        with like_the_trace(model), torch.enable_grad():
            total = sum(value.sum() for value in flat(call(model, inputs)) if isinstance(value, Tensor) and value.requires_grad)
            if isinstance(total, Tensor):
                torch.autograd.backward(total)
    except Exception as error:  # the user's code, whatever it raises
        return type(error).__name__
    finally:
        model.zero_grad()
    return ""


@contextmanager
def like_the_trace(model: nn.Module) -> Iterator[None]:
    """The switches under which both runs take the same operators: plain kernels, no fused attention, evaluation mode, random state kept."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    mkldnn = torch._C._get_mkldnn_enabled()  # torch.backends.mkldnn.flags would also set (and warn about) TF32
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        with evaluating(model), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch._C._set_mkldnn_enabled(mkldnn)
