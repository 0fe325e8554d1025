"""Prune connections of a model that memory does not hold: weight after weight, read from disk and written there.

    for each weight, in the order in which the model calls them, all runs halting there:
        A, C_ur  <-  what it reads in the pruned model, and what is missing of the dense model's output
        mask     <-  what costs least around the optimum                                    (`choose`)
        W, b     <-  least squares over what stays, written to disk                         (`least_squares`, `parts`)

Two models run side by side on all batches (`lockstep`): the dense one, and the one that is pruned up to here. Both have their parameters
on `meta`, and on disk (`streamed`). In memory are the weights at the halt, sums of inputs x inputs, and what the runs hold there: the
activations of one layer, of all batches, or, of those that wait, on disk (`spill`). So peak memory grows with the widest layer and, but for
those, with the data, not with the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import torch
from torch import nn

from ..budget import fraction
from ..contexts import leaves
from ..errors import BadInput, NothingToPrune
from ..floors import floors, of_group
from ..flows.reading import Halting, Made, Reading, Readings, matrix_of
from ..flows.watch import Call
from ..resume import digest
from ..structure.kinds import SIZED, block_of, n_of_m_in, refuse_amount
from ..structure.structure import Group
from ..task import call, evaluating, running_on, seeded, split_batch
from ..tree import Tree
from .choose import Asked, mask_for
from .least_squares import refit
from .lockstep import running
from .parts import Parts, Told
from .side_by_side import Met, meeting, original, taker
from .spill import Spill, Spilling
from .stored import stored
from .streamed import Loading, Shelf, built, names_in, with_buffers

Amount = float | Mapping[str, float]


@dataclass(frozen=True)
class PrunedShards:
    """folder: of the result.

    weights: of each that was pruned, the share `removed`, and what the sum of squares of what is missing of its output, over all positions,
        is with the mask alone (`masked`) and once what stays is fitted (`fitted`). left: those that stay whole, and why.
    """

    folder: Path
    weights: dict[str, Told]
    left: dict[str, str]


def prune_shards(
    build: Callable[[], nn.Module],
    source: str | Path,
    target: str | Path,
    data: Iterable[object],
    amount: Amount | None = None,
    structure: str = "weights",
    keep: Collection[str] = (),
    spill: str | Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> PrunedShards:
    """Remove connections of the model in `source`, adjust those that stay, and write the model to the folder `target`.

    build: the architecture; what values it gives its parameters does not matter. It runs in the types that build() gives them; what is
        written has the types of the files.
    source: a folder of `model.safetensors`, or of `model.safetensors.index.json` and what it names; or one file. It stays as it is.
    target: has the same files in the end, JSON included, and `secateur.json`, which says what was done. A call that was stopped or killed
        goes on where it was when it is given again, and makes the same files bit for bit.
    data: batches of (inputs, targets) or dicts; targets are not looked at. All of them are held, and run side by side.
    amount: the share that leaves of every weight, or by names or patterns ("*.mlp.*"): 0 of those that none matches.
    structure: "weights"; "2:4" (no amount: it says itself how much goes); blocks, "1x4" (outputs x inputs).
    keep: names or patterns of weights that stay as they are: ("lm_head.weight",).
    spill: a folder on disk, in which lies what the runs on all batches but one have made while these wait: slower, and memory holds the
        activations of one batch. None: those of all batches stay in memory. The result is the same bit for bit.
    progress: called with (weights done, weights in all).
    Pruned are weights of linear layers, matrix products and convolutions, each called once in a run; `left` says which are not, and why.
    Raises BadInput, Unreadable for files that are missing or damaged, PlanMismatch where they are not of this model.
    """
    asked = asked_for(structure, amount)
    if spill is not None and not (isinstance(spill, (str, Path)) and Path(spill).is_dir()):
        raise BadInput(f"spill={str(spill)!r} is no folder. Make one, on a disk with room for the activations of all batches.")
    files, pruned = stored(source), built(build)
    names = names_in(pruned, files)
    batches = [split_batch(batch)[0] for batch in data]
    if not batches:
        raise BadInput("The data has no batch (an iterator that was used up has none, either). Give at least one (inputs, targets).")
    shapes = [(name, str(value.dtype), list(value.shape)) for name, value in pruned.named_parameters()]
    settings: dict[str, object] = {
        "structure": structure,
        "amount": dict(amount) if isinstance(amount, Mapping) else amount,
        "keep": [keep] if isinstance(keep, str) else list(keep),
        "source": files.digest(),
        "model": digest(shapes),
        "data": digest(leaves(batches)),
    }
    parts = Parts(target, files, settings)
    if parts.left is None:
        with torch.no_grad(), seeded(0, torch.device("cpu")), evaluating(pruned):
            parts.finish(fill(pruned, names, batches, parts, asked, amount, keep, spill, progress))
    assert parts.left is not None  # it is finished
    return PrunedShards(parts.folder, parts.done, parts.left)


def asked_for(structure: str, amount: Amount | None) -> Asked:
    run, block = n_of_m_in(structure), block_of(structure)
    if structure != "weights" and run is None and block is None:
        raise BadInput(f"Shards lose connections: there is no structure {structure!r} for them. Choose weights, or {SIZED}.")
    refuse_amount(structure, **{"amount=": amount is not None})
    if amount is None and run is None:
        raise BadInput("How much of every weight is to leave is not said. Give amount=0.5, or structure='2:4', which says it itself.")
    for value in amount.values() if isinstance(amount, Mapping) else [amount or 0]:
        fraction(value)
    return Asked(run, block)


def fill(
    pruned: nn.Module, names: Mapping[str, tuple[str, ...]], batches: list[object], parts: Parts, asked: Asked, amount: Amount | None,
    keep: Collection[str], spill: str | Path | None, progress: Callable[[int, int | None], None] | None,
) -> dict[str, str]:  # fmt: skip
    """Fit what is not fitted yet; which weights stay whole, and why."""
    buffers = dict(pruned.named_buffers())
    dense = original(pruned)
    with_buffers(dense, names, parts.source.read)
    with_buffers(pruned, names, parts.read)
    shelf, other = Shelf(pruned, lambda name: parts.read(names[name][0])), Shelf(dense, lambda name: parts.source.read(names[name][0]))
    with evaluating(dense), ExitStack() as files:
        groups, left, found = wanted(dense, other, batches[0], asked, amount, keep)
        for name in groups:
            parts.source.type(names[name][0])  # or it is refused, before anything is done
        todo = {call: reading for call, reading in found.items() if reading.weight not in parts.done}
        count = len(batches)
        spills = [None if spill is None else Spill(files.enter_context(TemporaryFile(dir=spill))) for _ in range(2 * count)]
        runs_of = [(one, own, *pair) for one, own in ((pruned, shelf), (dense, other)) for pair in enumerate(batches)]
        bodies = [
            partial(halting, own.beside(one), own, todo, its, number, inputs) for its, (one, own, number, inputs) in zip(spills, runs_of)
        ]
        with running(bodies if todo else []) as runs:

            def seen(batch: int) -> None:
                for run, its in ((runs[k], spills[k]) for k in (batch, count + batch)):
                    if its is not None and run.at is not None:
                        its.out(run.at, [*shelf.held.values(), *other.held.values()])

            for number in range(len(found) - len(todo), len(found)):
                met = meeting(runs[:count], runs[count:], seen=seen)
                assert met is not None  # both are of one size
                name = met.reading.weight
                values = {key: shelf.held[key] for key in (name, met.reading.bias) if key is not None} | buffers
                changed, told = fitted_one(met, values, names, parts, groups[name], amount_of(name, amount))
                new = {key: values[one].detach().to(parts.source.type(key)) for one in changed for key in names[one]}
                parts.add(number, name, new, told)
                del met, values, new
                if progress:
                    progress(number + 1, len(found))
    return left


def wanted(
    model: nn.Module, shelf: Shelf, inputs: object, asked: Asked, amount: Amount | None, keep: Collection[str]
) -> tuple[dict[str, Group], dict[str, str], dict[Call, Reading]]:
    """By weight its units; those that stay whole, and why; and where those that do not are read, in the order of a run."""
    weights = {name: value for name, value in model.named_parameters() if value.dim() >= 2 and value.is_floating_point()}
    whole = {name: Group(name, (2,)) for name in weights}
    if isinstance(amount, Mapping):
        floors(whole, keep=amount.keys())  # refuses a pattern that none matches
    kept = {name for name, stay in floors(whole, keep=keep).items() if stay > 1}
    watch = Readings(dict.fromkeys(weights))
    with watch, Loading(shelf, watch), running_on(inputs, 0):
        call(model, inputs)
    found, groups, left = {}, {}, {}
    once = {reading.weight: (call, reading) for call, reading in watch.once().items()}
    for name, value in weights.items():
        if name in kept:
            left[name] = "keep="
        elif name not in once:
            left[name] = why_not(watch.met[name])
        elif asked.run and value.shape[once[name][1].reads] % asked.run[1]:
            left[name] = f"its {value.shape[once[name][1].reads]} inputs are no multiple of {asked.run[1]}"
        elif asked.block and (groups_of := once[name][1].groups) > 1 and value.shape[0] // groups_of % asked.block[0]:
            left[name] = f"blocks of {asked.block[0]} outputs span its groups of {value.shape[0] // groups_of}"
        elif asked.run is None and amount_of(name, amount) == 0:
            left[name] = "amount="
        else:
            groups[name] = asked.group(once[name][1], value.shape)
    found = {call: reading for call, reading in watch.once().items() if reading.weight in groups}
    if not groups:
        why = ": ".join(next(iter(left.items()), ("it has none", "of two dimensions")))
        raise NothingToPrune(f"No weight can be pruned ({why}). Give a model with linear layers or convolutions, and keep fewer of them.")
    return groups, left, found


def why_not(times: int) -> str:
    if times > 1:
        return f"it is used {times} times in a run"
    if times:
        return "what reads with it is no product (an embedding)"
    return "no operator that is looked into reads with it (it may be a recurrent layer's, or what a weight is computed from)"


def amount_of(name: str, amount: Amount | None) -> float:
    return float(of_group(name, amount, 0.0)) if amount is not None else 0.0


def halting(
    model: nn.Module, shelf: Shelf, found: dict[Call, Reading], spill: Spill | None, number: int, inputs: object,
    halt: Callable[[Made], None],
) -> None:  # fmt: skip
    """One run of a model, in a thread. It draws what every run on these inputs draws."""
    watch = Halting(found, halt) if spill is None else Spilling(found, halt, spill)
    with torch.no_grad(), seeded(number, torch.device("cpu")), watch, Loading(shelf, watch), running_on(inputs, number):
        call(model, inputs)


def fitted_one(
    met: Met, values: Tree, names: Mapping[str, tuple[str, ...]], parts: Parts, group: Group, amount: float
) -> tuple[set[str], Told]:
    """Prune and fit the weight at this halt, in `values`, which the runs go on with; what has changed, and what is told of it.

    Values are rounded to what the files hold, so that a run that reads them from there goes on with the same.
    """
    reading = met.reading
    weight, shift = values[reading.weight], taker(reading, values)
    mask = mask_for(met, weight, group, amount, shift is not None)
    then = met.without(weight * ~mask)
    weight *= mask
    before = {name: values[name].detach().to(torch.float64, copy=True) for name in (reading.weight, shift) if name is not None}
    changed = refit(values, {reading.weight: mask}, then)
    for name in changed:
        values[name].copy_(values[name].to(parts.source.type(names[name][0])))
    change = matrix_of(weight.double() - before[reading.weight], reading) * met.factor
    moved = torch.zeros_like(change[:, 0])
    if shift is not None:
        moved = (values[shift].double() - before[shift]).view(moved.shape) * met.factor[:, 0] * (1 if reading.bias else -1)
    sums = then.train + then.held
    told = {"masked": float(sums.square.sum()), "fitted": sums.error(torch.cat([change, moved[:, None]], 1))}
    return changed, {"removed": float((~mask).double().mean()), **told}
