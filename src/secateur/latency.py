"""Measured latency as a cost: milliseconds of the smaller model on this machine, told from a table of measured operators.

    latency(plan) = a + b x sum over the operators of a run of t(operator, its sizes)

t is measured where it is asked for, once a size: on a grid (eighths of every size that shrinks), linear in between. Two whole models are
measured, too, the dense one and one with half of every group, and a and b are such that both come out right: what a run takes beside its
operators, and by how much they are slower in a model than one at a time over and over, in a warm cache. b lies between 1/4 and 4: a slope
beyond that is noise (a negative one would make larger models faster), so both models are measured again, longer, and if that does not help,
b is the nearer end, the dense model comes out right, and a warning says so. `check` compares with measurements of other whole models. All
times are those of the fastest tenth of many runs, since whatever else the machine does only adds to them.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .activations import smaller
from .errors import BadInput
from .footprint import cuda_of, first_line, repeat, samples
from .speed import percentile, rounds
from .structure import Group, Structure, all_kept
from .task import call, describe, device_of, evaluating, to, without_collection
from .tree import Keep

GRID = 8  # a size is measured at so many of its parts
FAST = 0.1  # the percentile of many runs that counts
SLOPE = (0.25, 4.0)  # a slope beyond these is noise
AGAIN = 3  # times that both models are measured before that is taken for what it is, each three times as long
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """An operator that ran: its function, its arguments with tensors and whole numbers taken out, and those: shapes one after the other.

    A run of a smaller model makes the same calls with other sizes.
    """

    function: Callable[..., object]
    rest: tuple[object, ...]
    sizes: Sizes
    rebuild: Callable[[Sizes], tuple[tuple[Any, ...], dict[str, Any]]] = field(compare=False, repr=False)


class Latency:
    """Milliseconds of one run of the smaller model: `select(..., of=Latency(model, example))`.

    example: what the model is timed on: its first sample, `batch` times, or as often as the example has samples.
    whole: measure every plan that is asked for as a whole model instead, which is exact but for noise, and takes seconds a plan.
    seconds: how long a whole model is measured.
    What was measured once is remembered, so one object tells the same plan the same number; two tell what two measurements tell.
    """

    name = "latency"

    def __init__(self, model: nn.Module, example: object, batch: int | None = None, whole: bool = False, seconds: float = 1.0) -> None:
        if any(value.is_meta for value in model.parameters()):
            raise BadInput("The model has no values (it is on the meta device), so it cannot be timed. Give it weights first.")
        self.model, self.whole, self.seconds = model, whole, seconds
        self.example = to(repeat(example, samples(example) if batch is None else batch), device_of(model))
        self.measured: dict[Call, float] = {}  # milliseconds of an operator at these sizes
        self.models: dict[tuple[bytes, ...], float] = {}  # milliseconds of whole models
        self.dense: list[Call] = []
        self.line: tuple[float, float] | None = None  # a and b
        self.through_zero = 0.0  # where a is negative, the slope from no operators to half a model: no run takes less than nothing

    def __call__(self, structure: Structure, keep: Mapping[str, Tensor]) -> float:
        if self.whole:
            key = tuple(mask.bool().numpy().tobytes() for mask in keep.values())
            if key not in self.models:
                self.models[key] = measured_ms(smaller(self.model, structure, keep), self.example, self.seconds)
            return self.models[key]
        a, b = self.line = self.line or self.calibrated(structure)
        now = self.operators(smaller(self.model, structure, keep))
        return max(a + b * now, self.through_zero * now)

    def calibrated(self, structure: Structure) -> tuple[float, float]:
        """The line through the dense model and one of half the size; where that is noise, the nearest slope through the dense one."""
        half = smaller(self.model, structure, {name: first_half(group) for name, group in structure.groups.items()})
        self.dense = calls_of(self.model, self.example)
        dense, less = self.operators(self.model), self.operators(half)
        models, slope = {"dense": self.model, "half": half}, 0.0
        for number in range(AGAIN):
            whole = whole_ms(models, self.example, 2 * self.seconds * 3**number)
            if less >= 0.95 * dense:  # nothing gets smaller: no slope to be seen
                return line(whole["dense"], dense, 1.0)
            slope = (whole["dense"] - whole["half"]) / (dense - less)
            if SLOPE[0] <= slope <= SLOPE[1]:
                a = whole["dense"] - slope * dense
                self.through_zero = whole["half"] / less if a < 0 else 0.0
                return a, slope
        warnings.warn(
            f"The dense model took {whole['dense']:.3g} ms and one of half its size {whole['half']:.3g} ms, but their operators alone "
            f"{dense:.3g} and {less:.3g} ms: a slope of {slope:.2g}, taken for noise and set to the nearest in {SLOPE[0]:g}..{SLOPE[1]:g}. "
            "Latencies are rough: give more seconds=, a larger batch=, a machine that does nothing else, or whole=True.",
            stacklevel=2,
        )
        return line(whole["dense"], dense, min(max(slope, SLOPE[0]), SLOPE[1]))

    def operators(self, model: nn.Module) -> float:
        """The sum of t over one run."""
        found = calls_of(model, self.example)
        alike = [each.function for each in found] == [each.function for each in self.dense]
        then = self.dense if alike else found  # where layers are skipped, what is left has its sizes
        return sum(self.at(now, dense) for now, dense in zip(found, then))

    def at(self, now: Call, dense: Call) -> float:
        """Milliseconds of a call, linear between the measured sizes next to it."""
        alike = len(now.sizes) == len(dense.sizes) and now.rest == dense.rest
        if not alike or any(new != old and not 0 < new < old for new, old in zip(now.sizes, dense.sizes)):
            dense = now  # it is called in another way: measured as it is
        axes: dict[float, list[int]] = {}  # sizes that shrink by the same ratio go together
        for place, (new, old) in enumerate(zip(now.sizes, dense.sizes)):
            if new != old:
                axes.setdefault(new / old, []).append(place)
        sides = [[*side(ratio, [dense.sizes[place] for place in places])] for ratio, places in axes.items()]
        total = 0.0
        for corner in itertools.product(*sides):
            sizes, share = list(dense.sizes), 1.0
            for places, (parts, whole, weight) in zip(axes.values(), corner):
                share *= weight
                for place in places:
                    sizes[place] = dense.sizes[place] // whole * parts
            total += share * self.ms(Call(now.function, now.rest, tuple(sizes), now.rebuild), now) if share else 0.0
        return total

    def ms(self, call: Call, otherwise: Call) -> float:
        """Measured, once. An operator that does not run at sizes of the grid is measured at its own."""
        for each in (call, otherwise):
            if each in self.measured:
                return self.measured[each]
            try:
                self.measured[each] = operator_ms(each)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                if each is otherwise:
                    raise BadInput(f"The operator {call.function} could not be timed: {first_line(error)}. Use whole=True.") from error
            else:
                return self.measured[each]
        raise AssertionError


def line(whole: float, operators: float, slope: float) -> tuple[float, float]:
    """a and b of a line through one model; less steep where a would be negative."""
    b = min(slope, whole / operators) if operators else slope
    return whole - b * operators, b


def first_half(group: Group) -> Tensor:
    """Half of its units kept, or as many as have to stay, in a multiple of what they stay in."""
    kept = max(group.least, group.multiple * math.ceil(group.size / 2 / group.multiple))
    return (torch.arange(group.size) < kept).view(group.shape)


def side(ratio: float, sizes: Sequence[int]) -> list[tuple[int, int, float]]:
    """The grid points next to a ratio of these sizes, as (parts kept, of how many, weight); parts are what the sizes have in common."""
    whole = math.gcd(*sizes)
    grid = sorted({1, *(max(1, round(whole * step / GRID)) for step in range(1, GRID + 1))})
    parts = round(ratio * whole)  # a whole number, since all sizes times the ratio are
    above = next(point for point in grid if point >= parts)
    below = max(point for point in grid if point <= parts)
    if above == below:
        return [(above, whole, 1.0)]
    weight = (parts - below) / (above - below)
    return [(below, whole, 1 - weight), (above, whole, weight)]


# running and timing ---------------------------------------------------------------------------------------------------------------------


def calls_of(model: nn.Module, inputs: object) -> list[Call]:
    """The operators of one run that compute something, in their order."""
    recorder = Recorder()
    try:
        with evaluating(model), torch.inference_mode(), torch.random.fork_rng(cuda_of(model)), recorder:
            call(model, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise BadInput(
            f"The model does not run on the example {describe(inputs)}: {first_line(error)}. Give an example of the model's own inputs."
        ) from error
    return recorder.calls


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        results = func(*args, **(kwargs or {}))
        if not is_view(func) and any(isinstance(value, Tensor) for value in tree_leaves(results)):
            self.calls.append(recorded(func, args, kwargs or {}))
        return results


def is_view(func: Any) -> bool:
    """Whether its result is a look at its argument, which takes no time of its own."""
    return any(given.alias_info is not None and not given.alias_info.is_write for given in func._schema.returns)


def recorded(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    leaves, spec = tree_flatten((args, kwargs))
    sizes: list[int] = []
    rest: list[object] = [str(func), torch.get_num_threads()]
    makers: list[Callable[[Sizes], object]] = []
    for leaf in leaves:
        start = len(sizes)
        if isinstance(leaf, Tensor):
            sizes += leaf.shape
            strides = leaf.stride()
            order = tuple(sorted(range(leaf.dim()), key=lambda dim: (-strides[dim], dim)))
            rest.append((leaf.dtype, leaf.device, order))
            makers.append(maker(start, leaf.dim(), leaf.dtype, leaf.device, order))
        elif isinstance(leaf, int) and not isinstance(leaf, bool):
            sizes.append(leaf)
            rest.append(int)
            makers.append(lambda given, start=start: given[start])  # type: ignore[misc]
        else:
            rest.append(leaf if isinstance(leaf, (bool, float, str, type(None), torch.dtype, torch.device, torch.layout)) else str(leaf))
            makers.append(lambda given, leaf=leaf: leaf)  # type: ignore[misc]

    def rebuild(given: Sizes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return cast("tuple[tuple[Any, ...], dict[str, Any]]", tree_unflatten([make(given) for make in makers], spec))

    return Call(func, tuple(rest), tuple(sizes), rebuild)


def maker(start: int, dims: int, dtype: torch.dtype, device: torch.device, order: tuple[int, ...]) -> Callable[[Sizes], Tensor]:
    """Makes a tensor of a size: numbers of about one, indices of 0, in the same order of memory."""

    def make(given: Sizes) -> Tensor:
        shape = given[start : start + dims]
        values = torch.full([shape[dim] for dim in order], 0.5 if dtype.is_floating_point else 0, dtype=dtype, device=device)
        return values.permute([order.index(dim) for dim in range(dims)])

    return make


def operator_ms(call: Call, seconds: float = 0.01) -> float:
    """The time of one call: in rounds of a fifth of a millisecond or more, for so many seconds, five rounds at least."""
    args, kwargs = call.rebuild(call.sizes)
    cuda = any(isinstance(value, Tensor) and value.is_cuda for value in tree_leaves((args, kwargs)))

    def once(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            call.function(*args, **kwargs)
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1000 / number

    with torch.inference_mode(), torch.random.fork_rng(devices=[]), without_collection():
        once(2)
        number = max(1, math.ceil(0.2 / max(once(1), 1e-4)))
        end, times = time.perf_counter() + seconds, [once(number) for _ in range(5)]
        while time.perf_counter() < end:
            times.append(once(number))
    return percentile(times, FAST)


def measured_ms(model: nn.Module, inputs: object, seconds: float = 1.0) -> float:
    """The time of one run of the whole model."""
    return whole_ms({"model": model}, inputs, seconds)["model"]


def whole_ms(models: Mapping[str, nn.Module], inputs: object, seconds: float = 1.0) -> dict[str, float]:
    """The same of several models, run in turns."""
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
            stack.enter_context(torch.random.fork_rng(cuda_of(model)))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(without_collection())
        return {name: percentile(times, FAST) for name, times in rounds(models, inputs, 1000, seconds).items()}


@dataclass(frozen=True)
class Checked:
    """A plan's milliseconds as predicted, and as measured with the whole model."""

    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Of the measured time; positive where too much was predicted."""
        return self.predicted / self.measured - 1


def check(latency: Latency, structure: Structure, keeps: Sequence[Keep], seconds: float = 1.0) -> list[Checked]:
    """Predictions beside measurements, the dense model's first: the models run in turns, each for about so many seconds."""
    plans = [all_kept(structure), *keeps]
    predicted = [latency(structure, keep) for keep in plans]
    models = {str(number): smaller(latency.model, structure, keep) for number, keep in enumerate(plans)}
    measured = whole_ms(models, latency.example, seconds * len(models))
    return [Checked(value, measured[str(number)]) for number, value in enumerate(predicted)]
