"""Batch-norm statistics after pruning: what a batch norm sees has changed, so what it subtracts and divides by must follow.

The difference form: running mean += mean(pruned) - mean(dense), running variance *= var(pruned) / var(dense), per channel of a batch norm's
input, over the same data, both models in evaluation mode. The statistics of training stay, moved by the change that pruning made, and by
nothing else: where nothing was pruned, nothing moves, however few the data. Plain re-estimation replaces them by those of the data at hand.

Correcting one batch norm changes the input of the next. So each batch is run through the pruned model with every batch norm corrected by
that very batch, as a batch norm in training does, and what is stored at the end comes from the mean and variance over all samples.
"""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import BadInput, PlanMismatch
from ..plan import Plan
from ..surgery.hold import held, hold
from ..task import call, device_of, evaluating, split_batch, to

STILL = 1e-6  # a variance this small beside the other one is rounding: the channel stands still

Meet = Callable[[str, _BatchNorm, Tensor], tuple[Tensor, Tensor]]  # name, batch norm, its input -> running mean and variance to use


@dataclass
class Moments:
    """Mean and sum of squared deviations of a stream, in float64 (Chan, Golub, LeVeque, 1979)."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    m2: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def update(self, count: int, mean: Tensor, var: Tensor) -> None:
        mean, var = mean.cpu().double(), var.cpu().double()
        shift, total = mean - self.mean, self.count + count
        self.mean = self.mean + shift * (count / total)
        self.m2 = self.m2 + var * count + shift**2 * (self.count * count / total)
        self.count = total


def reestimate(pruned: nn.Module, dense: nn.Module, data: Iterable[object], plan: Plan | None = None) -> nn.Module:
    """A copy of `pruned` whose batch-norm statistics follow what pruning changed; those of an unpruned model stay bit for bit.

    data: batches of (inputs, targets) or dicts; targets are not looked at.
    plan: needed where `pruned` was shrunk: which channels of a batch norm of `dense` are left. Batch norms are matched by name.
    A channel that stands still in either model (dead, or masked) has no variance to compare: its running variance stays.
    Raises PlanMismatch where the models do not fit, BadInput where the data or what the models make of it cannot be used.
    """
    result, original = copy.deepcopy(pruned), _norms(dense)
    hold(result, held(pruned))  # a copy loses the hooks that keep its zeros
    norms = _norms(result)
    kept = {name: _kept(name, norm, original, plan) for name, norm in norms.items()}
    before: defaultdict[str, Moments] = defaultdict(Moments)
    after: defaultdict[str, Moments] = defaultdict(Moments)
    seen: defaultdict[str, deque[tuple[Tensor, Tensor]]] = defaultdict(deque)  # per batch norm, a pair for each of its calls in this batch

    def look(name: str, norm: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
        if name in kept:
            indices = kept[name]
            mean, var = (value if indices is None else value[indices.to(value.device)] for value in _moments(x))
            seen[name].append((mean, var))
            before[name].update(_count(x), mean, var)
        return _running(norm)

    def correct(name: str, norm: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = _moments(x)
        after[name].update(_count(x), mean, var)
        if not seen[name]:
            raise PlanMismatch(f"The pruned model calls {name} more often than the dense one. Give the model it was pruned from.")
        return _moved(norm, mean, var, *(value.to(mean.device) for value in seen[name].popleft()))

    with torch.no_grad(), _random_state(result), evaluating(dense), evaluating(result), _meeting(dense, look), _meeting(result, correct):
        for inputs in _inputs(data):
            with _random_state(dense):  # both draw the same
                call(dense, to(inputs, device_of(dense)))
            call(result, to(inputs, device_of(result)))
            seen.clear()
        for name, moments in after.items():
            _check(name, moments)
            a, b = moments, before[name]
            mean, var = _moved(norms[name], a.mean, a.m2 / a.count, b.mean, b.m2 / b.count)
            _running(norms[name])[0].copy_(mean)
            _running(norms[name])[1].copy_(var)
    return result


def reestimate_plain(model: nn.Module, data: Iterable[object]) -> nn.Module:
    """A copy of `model` whose batch-norm statistics are those of `data`: running mean = mean, running variance = var (unbiased).

    The usual way (as in torch.optim.swa_utils.update_bn, but with the variance over all samples at once). It costs an unpruned model, too.
    """
    result = copy.deepcopy(model)
    hold(result, held(model))
    norms = _norms(result)
    stream: defaultdict[str, Moments] = defaultdict(Moments)

    def replace(name: str, norm: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = _moments(x)
        stream[name].update(_count(x), mean, var)
        return mean, var

    with torch.no_grad(), _random_state(result), evaluating(result), _meeting(result, replace):
        for inputs in _inputs(data):
            call(result, to(inputs, device_of(result)))
        for name, moments in stream.items():
            _check(name, moments)
            _running(norms[name])[0].copy_(moments.mean)
            _running(norms[name])[1].copy_(moments.m2 / max(moments.count - 1, 1))
    return result


# the equation ---------------------------------------------------------------------------------------------------------------------------


def _moved(norm: _BatchNorm, mean: Tensor, var: Tensor, dense_mean: Tensor, dense_var: Tensor) -> tuple[Tensor, Tensor]:
    """running mean + mean - dense_mean, running variance * var / dense_var. Equal statistics change not a bit: x + 0 and x * 1."""
    running_mean, running_var = (value.to(mean.device) for value in _running(norm))
    still = (var <= STILL * dense_var) | (dense_var <= STILL * var)
    ratio = torch.where(still, 1.0, var / torch.where(still, 1.0, dense_var))
    return running_mean + (mean - dense_mean), running_var * ratio


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel, over samples and places."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(x, [dim for dim in range(x.dim()) if dim != 1], correction=0)
    return mean, var


def _count(x: Tensor) -> int:
    return x.numel() // x.shape[1]


# around it ------------------------------------------------------------------------------------------------------------------------------


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms with running statistics, by name."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    return {name: norm for name, norm in norms.items() if norm.running_mean is not None and norm.running_var is not None}


def _running(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None  # _norms chose it by that
    return norm.running_mean, norm.running_var


def _kept(name: str, norm: _BatchNorm, dense: dict[str, _BatchNorm], plan: Plan | None) -> Tensor | None:
    """Which of the dense batch norm's channels are left; None: all."""
    if name not in dense:
        raise PlanMismatch(f"The pruned model has a batch norm {name}, but the dense one has none. Give the model it was pruned from.")
    now, then = _running(norm)[0].numel(), _running(dense[name])[0].numel()
    if now == then:
        return None
    indices = next(iter(plan.kept.get(f"{name}.running_mean", (None,))), None) if plan else None
    if indices is None or indices.numel() != now or int(indices.max()) >= then:
        raise PlanMismatch(f"Batch norm {name} has {now} channels, but {then} in the dense model. Give the plan it was shrunk by.")
    return indices


@contextmanager
def _meeting(model: nn.Module, meet: Meet) -> Iterator[None]:
    """Every batch norm asks `meet` for the statistics to normalise this input with, and has its own back afterwards."""
    own: list[tuple[_BatchNorm, Tensor, Tensor]] = []
    hooks = []

    def before(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def hook(norm: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            assert isinstance(norm, _BatchNorm)
            x = args[0] if args else kwargs["input"]
            mean, var = meet(name, norm, x)
            own.append((norm, *_running(norm)))
            norm.running_mean, norm.running_var = (new.to(old.dtype) for new, old in zip((mean, var), _running(norm)))

        return hook

    def restore(*_: object) -> None:
        norm, mean, var = own.pop()
        norm.running_mean, norm.running_var = mean, var

    try:
        for name, norm in _norms(model).items():
            hooks += [norm.register_forward_pre_hook(before(name), with_kwargs=True), norm.register_forward_hook(restore)]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        while own:
            restore()


@contextmanager
def _random_state(model: nn.Module) -> Iterator[None]:
    """A loader that shuffles, or a model that draws in evaluation mode, leaves the caller's random state as it was."""
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _inputs(data: Iterable[object]) -> Iterator[object]:
    batch = None
    for batch in data:
        yield batch if isinstance(batch, Tensor) else split_batch(batch)[0]
    if batch is None:
        raise BadInput("The data has no batch: no statistics can be measured on it. Give at least one batch of (inputs, targets).")


def _check(name: str, moments: Moments) -> None:
    if not (torch.isfinite(moments.mean).all() and torch.isfinite(moments.m2).all()):
        raise BadInput(f"The input of batch norm {name} is not finite on this data. Look at the data and at the weights before it.")
