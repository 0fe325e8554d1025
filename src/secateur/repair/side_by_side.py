"""The dense model and the pruned one, run side by side on all batches, and halted at every weight: what one lacks of the other there.

Met at a weight: sums of products over samples and positions, of u, what it reads in the pruned model, and r, what is missing of the dense
model's output, with themselves and with each other. Whatever is fitted by squares is fitted by these. It is changed before the runs go on.

The pruned model is the masked one, and where units leave that are counted in (by a norm's statistic, a softmax), so that zeros are not the
same as less, the smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..flows.reading import ROWS, Halting, Made, Reading, Readings, matrix_of, weight_of
from ..flows.watch import Call
from ..plan import Plan
from ..structure.cut import Kept, twin
from ..surgery import mask, masks, shrink
from ..task import Task, call, device_of, evaluating, no_labels, running_on, seeded
from ..tree import Tree
from .lockstep import Run, running

HELD = 5  # of so many samples of a batch, the last one is held out; of so many batches of one, too
STILL = 1e-9  # a sum of squared deviations this small beside that of the squares is rounding
PART = 2**27  # bytes of rows that are summed at a time
MEMORY = 2**31  # bytes of activations of all batches that are looked at
BATCHES = 2**10  # that are looked at: each has two threads
HELD_BY_A_RUN = 6  # times the largest input and output of a call: of two models what comes in, what goes out, and what waits to be added

WAY_OUT = (
    "So its weights cannot be fitted. Give inputs that all go the same way through it; in prune, repair='statistics' takes any."
)  # fmt: skip

Progress = Callable[[int, "int | None"], None]


@dataclass
class Sums:
    """Sums of products over rows, in float64: of (u, 1) with itself and with r, (groups, inputs + 1, ...), and of r with itself."""

    gram: Tensor
    cross: Tensor
    square: Tensor

    @staticmethod
    def none(u: Tensor, r: Tensor) -> Sums:
        groups, inputs, outputs = len(u), u.shape[2] + 1, r.shape[2]
        shapes = (groups, inputs, inputs), (groups, inputs, outputs), (groups, outputs)
        return Sums(*(torch.zeros(shape, dtype=torch.float64, device=u.device) for shape in shapes))

    def add(self, u: Tensor, r: Tensor) -> None:
        rows = max(1, PART // (8 * u.shape[2]))
        for some, wanted in zip(torch.split(u, rows, 1), torch.split(r, rows, 1)):
            one, wanted = torch.cat([some, torch.ones_like(some[..., :1])], -1).double(), wanted.double()
            self.gram += one.mT @ one
            self.cross += one.mT @ wanted
            self.square += wanted.square().sum(1)

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.gram + other.gram, self.cross + other.cross, self.square + other.square)

    def without(self, lost: Tensor) -> Sums:
        """sum of |(u, 1) D - r - (u, 1) lost|^2, as sums for D."""
        made = self.gram @ lost
        return Sums(self.gram, self.cross + made, self.square + (lost * (2 * self.cross + made)).sum(1))

    def of(self, outputs: Tensor) -> Sums:
        return Sums(self.gram, self.cross[..., outputs], self.square[..., outputs])

    def error(self, change: Tensor) -> float:
        """sum of |(u, 1) D - r|^2."""
        return float((change * (self.gram @ change - 2 * self.cross)).sum() + self.square.sum())

    @property
    def number(self) -> Tensor:
        """Of rows; one, where there is none."""
        return self.gram[:, -1:, -1:].clamp(min=1)

    def deviations(self, shifts: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """C_uu, C_ur and the means of u and r; where nothing can take a shift, the sums themselves, and zero for the means.

        An input that stands still deviates by rounding only: it counts as zero.
        """
        if not shifts:
            return self.gram[:, :-1, :-1], self.cross[:, :-1], torch.zeros(()), torch.zeros(())
        number = self.number
        u, r = self.gram[:, -1:, :-1] / number, self.cross[:, -1:] / number
        uu, ur = self.gram[:, :-1, :-1] - number * u.mT @ u, self.cross[:, :-1] - number * u.mT @ r
        still = uu.diagonal(dim1=1, dim2=2) <= STILL * self.gram.diagonal(dim1=1, dim2=2)[:, :-1]
        return uu.masked_fill(still[:, :, None] | still[:, None], 0), ur.masked_fill(still[..., None], 0), u, r


class Met(NamedTuple):
    """What all batches say of one weight. factor: s, (groups, 1, outputs)."""

    reading: Reading
    train: Sums
    held: Sums
    factor: Tensor

    def without(self, gone: Tensor) -> Met:
        """The same, when what is missing is also what `gone`, a part of the weight, makes: r + s u W_gone."""
        lost = matrix_of(gone.double(), self.reading) * self.factor
        lost = torch.cat([lost, torch.zeros_like(lost[:, :1])], 1)
        return self._replace(train=self.train.without(lost), held=self.held.without(lost))


Step = Callable[[Tree, Tree, Met], "set[str]"]  # values, what is kept, what is met -> names of the values that it changed in place


def in_lockstep(
    model: nn.Module,
    plan: Plan,
    data: Iterable[object],
    wanted: dict[str, set[int] | None],
    step: Step,
    memory: int = MEMORY,
    progress: Progress | None = None,
    sequential: bool = True,
    in_front: bool = True,
) -> Tree:
    """New values, when at each of these weights `step` has changed some by what the two models make there.

    wanted: weight -> the dimensions along which it may be read that count; None, any. sequential: the pruned model goes on with them; else
    the dense model is what runs. in_front: of a residual sum, if there is one behind the weight; else at its call.
    """
    smaller, device = sequential and counted_in(plan), device_of(model)
    if device.type == "meta":
        raise BadInput("The model has no values (it is on meta), so nothing can be fitted. Load it; or prune it on disk, by prune_shards.")
    pruned, kept = (shrink(model, plan), {}) if smaller else (mask(model, plan), masks(plan))
    dense = original(model)
    run = pruned if sequential else original(model)
    whole = dict(model.named_parameters())
    batches = (inputs for inputs, _ in Task(pruned, data, no_labels).batches())
    values = dict([*pruned.named_parameters(), *pruned.named_buffers()])
    changed: set[str] = set()
    with torch.no_grad(), seeded(0, device), evaluating(pruned), evaluating(run), evaluating(dense):
        first = next(batches)
        readings = readings_of(pruned, wanted, first)
        found, number = readings.once(), max(1, min(BATCHES, memory // (HELD_BY_A_RUN * readings.largest)))
        if not in_front:
            found = {call: replace(reading, summed=False) for call, reading in found.items()}
        some = [first, *islice(batches, number - 1)]
        bodies = [partial(halting, shared(one), found, *pair) for one in (run, dense) for pair in enumerate(some)]
        with running(bodies, device) as runs:
            for number in range(1, len(found) + 1):
                met = meeting(runs[: len(some)], runs[len(some) :], plan.kept if smaller else {})
                if met is not None:
                    name = met.reading.weight
                    changed |= step(values, kept, met if sequential else met.without(whole[name] - values[name]))
                if progress:
                    progress(number, len(found))
    new = {name: values[name].detach() for name in changed}
    return grown(new, model, plan) if smaller else new


def counted_in(plan: Plan) -> bool:
    """Whether units leave of which the smaller model is not what the mask makes."""
    return any(name in plan.keep and not plan.keep[name].all() for name in plan.approximate)


def grown(values: Tree, model: nn.Module, plan: Plan) -> Tree:
    """What the smaller model has, at the places where the dense one has it; what is removed is zero."""
    before, zero = dict([*model.named_parameters(), *model.named_buffers()]), masks(plan)
    new = {name: before[name].detach() * zero.get(name, torch.ones(())).to(before[name]) for name in values}
    for name, value in values.items():
        kept = enumerate(plan.kept.get(name, (None,) * value.dim()))
        lines = [torch.arange(value.shape[dim]) if index is None else index for dim, index in kept]
        new[name][torch.meshgrid(*lines, indexing="ij")] = value
    return new


def taker(reading: Reading, values: Tree) -> str | None:
    """What takes up a shift of the output: the bias, or the running mean of the batch norm behind it; None where there is neither."""
    return reading.bias or (reading.mean if reading.mean in values else None)


def kept_matrix(kept: Tree, weight: Tensor, reading: Reading) -> Tensor:
    """Where the weight is kept, (groups, inputs, outputs)."""
    return matrix_of(kept.get(reading.weight, torch.ones((), dtype=torch.bool)).to(weight.device).expand(weight.shape), reading)


def change_by(change: Tensor, values: Tree, reading: Reading) -> set[str]:
    """Add to the weight, and the last row to what takes up a shift; their names. change: (groups, inputs + 1, outputs)."""
    weight, shift = values[reading.weight], taker(reading, values)
    weight += weight_of(change[:, :-1], weight, reading)
    if shift is not None:
        values[shift] += (change if reading.bias else -change)[:, -1].flatten()
    return {reading.weight, *([shift] if shift else [])}


def check_plan(plan: Plan) -> None:
    if not isinstance(plan, Plan):
        raise BadInput(f"The second argument is the plan, but this is a {type(plan).__name__}. Give (model, plan, data).")


def original(model: nn.Module) -> nn.Module:
    """One that shares the parameters; some modules count in evaluation, too, so it has buffers of its own."""
    buffers = dict(model.named_buffers())
    return twin(model, lambda name, value: value.clone() if name in buffers else value)


def shared(model: nn.Module) -> nn.Module:
    """One that has the same tensors, but modules of its own: what these keep of a run is not another run's."""
    return twin(model, lambda name, value: value)


def leaves_of(model: nn.Module) -> Tree:
    return {name: value.requires_grad_() for name, value in model.named_parameters() if value.is_floating_point()}


def readings_of(model: nn.Module, wanted: dict[str, set[int] | None], inputs: object) -> Readings:
    readings = Readings(wanted)
    with readings.on(leaves_of(model)), running_on(inputs, 0):
        call(model, inputs)
    return readings


def halting(model: nn.Module, found: dict[Call, Reading], number: int, inputs: object, halt: Callable[[Made], None]) -> None:
    """One run of the model, in a thread. It draws what every run on these inputs draws."""
    with torch.no_grad(), seeded(number, device_of(model)), Halting(found, halt).on(leaves_of(model)), running_on(inputs, number):
        call(model, inputs)


def meeting(
    pruned: Sequence[Run[Made]],
    dense: Sequence[Run[Made]],
    left: Kept = MappingProxyType({}),
    seen: Callable[[int], None] = lambda number: None,
) -> Met | None:
    """Let all runs go on to the next halt. None: a smaller model makes less there in other ways, too, which cannot be told apart.

    left: which indices of its weights a smaller model has. seen: called once what the runs on this batch hold there has been looked at.
    """
    met: Met | None = None
    for number, (one, other) in enumerate(zip(pruned, dense)):
        made, wanted = one.on(), other.on()
        if made is None or wanted is None or made.reading != wanted.reading or (met and met.reading != made.reading):
            raise BadInput(f"The model calls its weights in another order for some inputs, or some of them not at all. {WAY_OUT}")
        total = of_less(wanted, left)
        if made.out.shape != total.shape:
            if left:
                continue
            where = f"What {made.reading.weight} makes has other sizes once units are removed (what it reads may be routed)."
            raise BadInput(f"{where} {WAY_OUT}")
        some = made.drawn(ROWS // len(pruned), number)
        u, r = made.read(some), made.rows(total - made.total, some)
        met = met or Met(made.reading, Sums.none(u, r), Sums.none(u, r), made.factor().double())
        cut = max(1, u.shape[1] * (HELD - 1) // HELD) if u.shape[1] > 1 else int((number + 1) % HELD > 0)
        met.train.add(u[:, :cut], r[:, :cut])
        met.held.add(u[:, cut:], r[:, cut:])
        seen(number)
    if met is None:
        return None
    if not all(value.isfinite().all() for sums in (met.train, met.held) for value in (sums.gram, sums.cross)):
        where = f"What {met.reading.weight} reads or makes is not finite on this data."
        raise BadInput(f"{where} Look at the data, and at the weights before it.")
    return met


def of_less(made: Made, left: Kept) -> Tensor:
    """What the dense model makes, of the outputs that the weight has in the smaller one."""
    ((dim, axis),) = made.use.makes.items()
    index = left.get(made.reading.weight, (None,) * (dim + 1))[dim]
    return made.total if index is None else made.total.index_select(axis, index.to(made.out.device))
