"""The laws of a structure, each a function that raises AssertionError where it is broken: for cases, random nets and broken rules alike."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import secateur.structure.channels  # noqa: F401
from oracles import OVER_KEPT, KeptOnly, masked, mean_over, permuted
from secateur.structure import Channels
from secateur.structure.calls import Whole
from secateur.structure.cut import cut
from secateur.structure.rules import flat, name_of
from secateur.structure.trace import Trace
from secateur.structure.watch import like_the_trace
from secateur.surgery.verify import apart
from secateur.task import call, evaluating
from secateur.tree import Keep, Scores

CLOSE = 1e-9
structure_of_channels = sys.modules["secateur.structure.channels"]  # the package has a function of that name


def outputs(model: nn.Module, inputs: object) -> list[Tensor]:
    with torch.no_grad(), evaluating(model):
        return [value for value in flat(call(model, inputs)) if isinstance(value, Tensor)]


def same(a: list[Tensor], b: list[Tensor], close: float = CLOSE) -> None:
    assert len(a) == len(b)
    assert apart(a, b) <= close, f"they differ by {apart(a, b):.1e} of the largest output"


def small_of(model: nn.Module, structure: Channels, keep: Keep) -> nn.Module:
    return cut(model, structure.kept(keep), structure.sizes(keep))


def shrunk_equals_masked(model: nn.Module, inputs: object, exact: Channels, keep: Keep, close: float = CLOSE) -> None:
    assert not any(group.approximate for group in exact.groups.values())
    same(outputs(masked(model, exact, keep), inputs), outputs(small_of(model, exact, keep), inputs), close)


def approximate_equals_statistics_over_what_is_kept(model: nn.Module, inputs: object, structure: Channels, keep: Keep) -> None:
    """The kept indices of all that a run reads come from the labels of the very trace that the structure was made of."""
    with mock.patch.object(structure_of_channels, "gathered", wraps=structure_of_channels.gathered) as gathered:
        results: list[tuple[Channels, np.ndarray]] = []
        gathered.side_effect = lambda *args: results.append(gathered._mock_wraps(*args)) or results[-1]
        structure_of_channels.channels(model, inputs, False, structure_of_channels.ALL_KINDS)
    found, numbers = results[-1]
    (trace,) = (value for value in gathered.call_args.args if isinstance(value, Trace))
    whole = {name: torch.ones(group.size, dtype=torch.bool) for name, group in found.groups.items()}  # some were frozen afterwards
    gates = found._gates({**whole, **{name: keep[name] for name in structure.groups}}).numpy()
    steps = [step for step in trace.steps if step.op in OVER_KEPT]
    reads = [[gates[numbers[trace.labels.resolve(dim)]].all(0) for dim in step.read] for step in steps]
    mode, model = Statistics(reads), masked(model, structure, keep)
    with like_the_trace(model), torch.no_grad(), Whole(mode.step), mode:
        oracle = [value for value in flat(call(model, inputs)) if isinstance(value, Tensor)]
    same(oracle, outputs(small_of(model, structure, keep), inputs))


def rms_norm(seen: Tensor, out: Tensor, x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    y = x / (mean_over(seen, x * x, tuple(range(-len(shape), 0))) + (torch.finfo(x.dtype).eps if eps is None else eps)).sqrt()
    return y if weight is None else y * weight


OVER_KEPT.setdefault("aten::rms_norm", rms_norm)


class Statistics(KeptOnly):
    """Follows the statistics only: around them a real run may take other operators than the trace (a fused cell, a list made a tensor)."""

    busy = False

    def __torch_dispatch__(self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return func(*args, **(kwargs or {})) if self.busy else self.step(func, args, kwargs or {})

    def step(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.busy = True
        try:
            if name_of(func) not in OVER_KEPT:
                return func(*args, **kwargs)
            out = super().step(func, args, kwargs)
            return out.nan_to_num(neginf=0) if name_of(func) == "aten::amax" else out  # of nothing: it meets zeros later
        finally:
            self.busy = False


def reduce_is_the_derivative_of_expand(structure: Channels) -> None:
    if not structure.groups:
        return
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(structure.shapes[name], dtype=torch.float64, generator=generator) for name in structure.numel}

    def inner(gates: Scores) -> Tensor:
        return torch.stack([(values[name] * mask).sum() for name, mask in structure.expand(gates).items()]).sum()

    gates = {name: torch.ones(group.size, dtype=torch.float64, requires_grad=True) for name, group in structure.groups.items()}
    expected = dict(zip(gates, torch.autograd.grad(inner(gates), list(gates.values()))))
    found = structure.reduce(values)
    assert list(found) == list(expected)
    way = {name: torch.randn(group.size, dtype=torch.float64, generator=generator) for name, group in structure.groups.items()}
    step = 1e-6
    with torch.no_grad():
        up, down = (inner({name: 1 + sign * step * way[name] for name in way}) for sign in (1, -1))
    difference = (up - down) / (2 * step)
    slope = sum((found[name] * way[name]).sum() for name in way)
    torch.testing.assert_close(difference, slope, rtol=1e-5, atol=1e-5 * sum(value.abs().sum().item() for value in values.values()) / 100)
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


def order_does_not_matter(model: nn.Module, inputs: object, structure: Channels) -> None:
    before = outputs(model, inputs)
    for name, group in structure.groups.items():
        order = torch.randperm(group.size, generator=torch.Generator().manual_seed(1)).tolist()
        same(before, outputs(permuted(model, structure, name, order), inputs))


def counts_are_those_of_the_smaller_model(model: nn.Module, structure: Channels, keep: Keep) -> None:
    small = small_of(model, structure, keep)
    assert structure.count(keep) == {name: value.numel() for name, value in small.named_parameters()}
    kept = structure.kept(keep)
    for name, value in [*small.named_parameters(), *small.named_buffers()]:
        indices = kept.get(name, (None,) * value.dim())
        assert value.shape == tuple(n if index is None else len(index) for n, index in zip(structure.shapes[name], indices))


def never_emptied(model: nn.Module, inputs: object, structure: Channels) -> None:
    """With one unit left in each group (as few as there may be), whichever."""
    dense = outputs(model, inputs)
    for last in (False, True):
        keep = {}
        for name, group in structure.groups.items():
            gates = torch.arange(group.size) < group.multiple
            keep[name] = gates.flip(0) if last else gates
        small = small_of(model, structure, keep)
        assert all(value.numel() for value in small.parameters())
        assert [value.shape for value in outputs(small, inputs)] == [value.shape for value in dense]


def left_alone(model: nn.Module, work: Callable[[], object]) -> object:
    """The result of `work`, which leaves the model, its mode, gradients, hooks and attributes, and the random state as they were."""
    state, modes, random = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()], torch.get_rng_state()
    attributes = {name: {key: type(value) for key, value in vars(module).items()} for name, module in model.named_modules()}
    hooks = {name: hooks_of(module) for name, module in model.named_modules()}  # some norms of weights are one
    result = work()
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(value.grad is None for value in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name, module in model.named_modules():
        assert {key: type(value) for key, value in vars(module).items()} == attributes[name]
        assert hooks_of(module) == hooks[name]
    return result


def hooks_of(module: nn.Module) -> list[object]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
