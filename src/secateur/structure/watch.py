"""Run the smaller model and compare, operator by operator, the shapes it makes with those that the labels predict.

Where an operator differs, the fault is noted and the run goes on with tensors of the predicted shapes: one run finds every fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..task import call, each, evaluating
from .calls import Whole, opaque_as_steps, wrapped
from .labels import Dim
from .meta import Quick
from .rules import flat, name_of
from .trace import SILENT, Made, Span, Step, numbers_in, rule_of, run

COUNTED = "a number that is calculated from its size changes:"
FIXED = "its size is fixed in the code and cannot follow:"
VIEWS = {"view", "reshape", "unflatten", "flatten", "expand"}  # calls that check their sizes before an operator runs, and make one tensor
CHECKED = VIEWS | {"layer_norm", "group_norm", "rms_norm", "batch_norm", "instance_norm"}


@dataclass(frozen=True)
class Fault:
    """A step at which the smaller model leaves the prediction, how, and which dimensions are at fault, if known.

    dims: of the step's first result; of what it read, if a number is calculated from a size.
    """

    step: int
    what: str
    dims: tuple[int, ...] = ()


class Differs(BaseException):
    """Stops the run where it cannot go on; no model may catch it."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, steps: Sequence[Step], size: Callable[[Dim], int], spans: Sequence[Span]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps, self.size, self.at, self.within = steps, size, 0, False
        self.spans, self.calls = spans, 0
        self.faults: list[Fault] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        if self.within or name_of(func) in SILENT:
            return run(func, args, kwargs or {})
        return self.step(func, args, kwargs or {})

    def step(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, object]) -> object:
        if self.within:
            return func(*args, **kwargs)
        name = name_of(func)
        if not self.aligned(name):
            if name in LAYOUT:
                return run(func, args, kwargs)
            raise Differs("the smaller model takes another way before")
        predicted = self.predicted()
        numbers = numbers_in(rule_of(func), args, kwargs)
        if numbers != self.steps[self.at].numbers:
            self.faults.append(Fault(self.at, COUNTED, self.counted(numbers)))
        try:
            self.within = True
            out = run(func, args, kwargs)
        except Exception:
            if name not in RESIZING:
                raise
            self.fault(wrong(args[1], predicted[0]))
            return self.instead(predicted, next(value.device for value in flat(args) if isinstance(value, Tensor)))[0]
        finally:
            self.within = False
        tensors = [value for value in flat(out) if isinstance(value, Tensor)]
        shapes = [tuple(value.shape) for value in tensors]
        if shapes == predicted:
            self.at += 1
            return out
        if len(shapes) != len(predicted):
            raise Differs(FIXED)
        self.fault(wrong(args[1] if name in RESIZING else shapes[0], predicted[0]))
        made = self.instead(predicted, tensors[0].device)
        return made[0] if isinstance(out, Tensor) else type(out)(made) if isinstance(out, (tuple, list)) else out

    def counted(self, numbers: tuple[float, ...]) -> tuple[int, ...]:
        """The dimension that was read whose size the numbers follow, as it is, its root, or the inverse of either; () if none."""
        step = self.steps[self.at]
        for old, new in zip(step.numbers, numbers):
            for d, dim in reversed([*enumerate(step.read)]):  # nearly always the last
                grown = self.size(dim) / dim.shape[1] if dim.shape[1] else 1.0
                if old and new and grown != 1 and any(math.isclose(new / old, grown**p) for p in (1, -1, 0.5, -0.5, 0.25, -0.25)):
                    return (d,)
        return ()

    def aligned(self, name: str) -> bool:
        """Whether the next step is this operator. Steps of layout may be left out: code may spare itself a repetition by one."""
        for at in range(self.at, len(self.steps)):
            if alike(self.steps[at].op, name):
                self.at = at
                return True
            if self.steps[at].op not in LAYOUT:
                return False
        return False

    def predicted(self) -> list[tuple[int, ...]]:
        return [tuple(self.size(dim) for dim in dims) for dims in self.steps[self.at].made]

    def fault(self, dims: tuple[int, ...]) -> None:
        self.faults.append(Fault(self.at, FIXED, dims))

    def stopped(self, error: BaseException) -> Fault:
        """What the user's code raises about a size that did not follow."""
        if isinstance(error, Differs):
            return Fault(self.at, str(error))
        sized = self.at < len(self.steps) and alike(self.steps[self.at].op, "aten::view")
        return Fault(self.at, FIXED if sized else f"the smaller model fails ({type(error).__name__}) in")

    def guarded(self, path: str, forward: Callable[..., object]) -> Callable[..., object]:
        """`forward`; where it stops, the run goes on behind it with what it should have given back."""

        def run(*args: object, **kwargs: object) -> object:
            span = self.spans[self.calls] if self.calls < len(self.spans) else None
            self.calls += 1
            try:
                return forward(*args, **kwargs)
            except (Differs, Exception) as error:
                if span is None or span.path != path or span.out is None or not span.start <= self.at <= span.end:
                    raise
                self.faults.append(self.stopped(error))
                self.at, self.calls, self.within = span.end, span.then, True
                try:
                    return each(self.given_back, span.out)
                finally:
                    self.within = False

        return run

    def given_back(self, leaf: object) -> object:
        return like([self.size(dim) for dim in leaf.dims], leaf.strides, leaf.dtype, leaf.device) if isinstance(leaf, Made) else leaf

    def instead(self, shapes: list[tuple[int, ...]], device: torch.device) -> list[Tensor]:
        """Tensors of the predicted shapes, to go on with."""
        step, self.within = self.steps[self.at], True
        self.at += 1
        made = [like(*each, device) for each in zip(shapes, step.strides, step.types)]
        self.within = False
        return made


def like(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros in the order of memory that these strides have: which operators a call runs may depend on it."""
    order = sorted(range(len(shape)), key=lambda d: -strides[d])
    return torch.zeros([shape[d] for d in order], dtype=dtype, device=device).permute([order.index(d) for d in range(len(shape))])


LAYOUT = {
    f"aten::{op}"
    for op in ("view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "transpose", "permute", "t", "squeeze", "unsqueeze", "slice")
}
RESIZING = {"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::_reshape_alias", "aten::expand"}


def wrong(asked: Sequence[int], predicted: Sequence[int]) -> tuple[int, ...]:
    """The first dimension in which another size is asked for than predicted; the others may be right once that one is kept whole."""
    if len(asked) != len(predicted):
        return ()
    return tuple(d for d, (size, right) in enumerate(zip(asked, predicted)) if size not in (-1, right))[:1]


class Refused(Whole):
    """Notices the calls that refuse their sizes before an operator runs, and goes on with the predicted shape."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(watch.step)
        self.watch = watch

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        at = self.watch.at
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except Differs:
            raise
        except Exception:
            watch, name = self.watch, getattr(func, "__name__", "").split(".")[0]
            if name not in CHECKED or watch.at != at or at >= len(watch.steps):
                raise
            with torch._C.DisableTorchFunction():
                predicted, asked = watch.predicted(), [leaf for leaf in flat(args[1:]) if isinstance(leaf, int)]
                if name == "unflatten":
                    d = asked[0] % args[0].dim()
                    asked = [*args[0].shape[:d], *asked[1:], *args[0].shape[d + 1 :]]
                watch.fault(wrong(asked, predicted[0]) if name in VIEWS else ())
                return watch.instead(predicted, args[0].device)[0]


def alike(a: str, b: str) -> bool:
    """Whether two names are of one operator, or of forms of a view between which strides decide."""
    return a == b or {a, b} <= {"aten::view", "aten::_unsafe_view", "aten::_reshape_alias", "aten::reshape"}


def watch(
    small: nn.Module, inputs: object, steps: Sequence[Step], size: Callable[[Dim], int], backward: bool = False, spans: Sequence[Span] = ()
) -> list[Fault]:
    """The differences between the run of `small`, forward (and backward), and the prediction, in their order; [] where there is none."""
    mode = Watch(steps, size, spans)
    try:
        with like_the_trace(small), torch.set_grad_enabled(backward):
            with mode, Refused(mode), opaque_as_steps(small, mode.step), wrapped(small, mode.guarded):
                outputs = call(small, inputs)
            if backward and not mode.faults:
                differentiate(small, outputs)
    except (Differs, Exception) as error:
        return mode.faults or [mode.stopped(error)]  # a run that goes astray after a fault may do so because of it
    return mode.faults


def backward_fails(model: nn.Module, inputs: object) -> str:
    """The name of the error that a run forward and backward raises, or ""."""
    try:
        with like_the_trace(model), torch.enable_grad():
            differentiate(model, call(model, inputs))
    except Exception as error:  # the user's code, whatever it raises
        return type(error).__name__
    return ""


def runs_in_training(model: nn.Module, inputs: object) -> bool:
    try:
        with like_the_trace(model), torch.no_grad():
            for module in model.modules():
                module.training = True
            call(model, inputs)
    except Exception:  # the user's code, whatever it raises
        return False
    return True


def differentiate(model: nn.Module, outputs: object) -> None:
    """Gradients of the sum of all outputs."""
    total = sum(value.sum() for value in flat(outputs) if isinstance(value, Tensor) and value.requires_grad)
    try:
        if isinstance(total, Tensor):
            with Quick():  # type: ignore[no-untyped-call]
                torch.autograd.backward(total)
    finally:
        model.zero_grad()


@contextmanager
def like_the_trace(model: nn.Module) -> Iterator[None]:
    """The switches under which all runs take the same operators: plain kernels, no fused attention, evaluation mode, random state kept.

    Tensors that a model without values makes have none either.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    mkldnn = torch._C._get_mkldnn_enabled()  # torch.backends.mkldnn.flags would also set (and warn about) TF32
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
            if all(value.is_meta for value in model.parameters()):
                stack.enter_context(torch.device("meta"))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch._C._set_mkldnn_enabled(mkldnn)
