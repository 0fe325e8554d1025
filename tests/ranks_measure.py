"""What the processes of tests/test_distributed.py do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from secateur import tree
from secateur.contexts import Keys
from secateur.criteria import CRITERIA, IN_ORDER
from secateur.distributed import Processes
from secateur.errors import BadInput, SecateurError
from secateur.measure import measure
from secateur.resume import Checkpoint
from secateur.sensitivity_file import write_sensitivity
from secateur.structure import Structure
from secateur.task import Task
from secateur.tree import Scores
from toy import Hidden, batches, mlp

module = import_module("secateur.measure")  # the package has a function of that name

def odd_or_even(batch: tuple[Tensor, Tensor]) -> list[str]:
    return ["odd" if label % 2 else "even" for label in batch[1].tolist()]


def keys_of(contexts: str) -> str | Keys:
    return odd_or_even if contexts == "key" else contexts


def task(count: int, seed: int = 0) -> tuple[Task, Hidden]:
    model = mlp(6, 5, 4, 3)
    return Task(model, batches(count, 8, 6, 3, seed), F.cross_entropy, seed=3), Hidden(model)


def yields(name: str) -> str:
    """When a criterion yields: for each "batch", for each in "order", at the "end" of all, without "data"; "never" on this model."""
    one, structure = task(3)
    read: list[object] = []

    class Read:
        def __iter__(self) -> Iterator[object]:
            for batch in one.data:
                read.append(batch)
                yield batch

    try:
        count = len(list(CRITERIA[name](replace(one, data=Read()), structure)))
    except SecateurError:
        return "never"
    if CRITERIA[name] in IN_ORDER:
        return "order"
    return "batch" if count == 3 else "end" if read else "data"


WHEN = {name: yields(name) for name in CRITERIA}
CASES = {
    f"{criterion}-{contexts}-{count}": (criterion, contexts, count)
    for criterion, contexts, count in [
        *((name, "batch", 7) for name, when in WHEN.items() if when in ("batch", "data")),
        *(("taylor", contexts, 37) for contexts in ("sample", "class", "key")),
        ("hessian", "class", 5),
        ("taylor", "batch", 1),  # fewer batches than processes
        ("gradient", "class", 1),
    ]
}


def cases(folder: Path, rank: int) -> None:
    """Every case, into one file for each case and process."""
    for name, (criterion, contexts, count) in CASES.items():
        for local in ("max", 0.7):
            write_sensitivity(folder / f"{name}-{local}-{rank}", measure(*task(count), criterion, keys_of(contexts), local))


def said(run: Callable[[], object]) -> None:
    try:
        run()
    except BadInput as error:
        print(error)


def failures(folder: Path, rank: int) -> None:
    """What both must say, and neither wait for the other."""

    def ones(structure: Structure) -> Scores:
        return {name: torch.ones(group.shape) for name, group in structure.groups.items()}

    def failing(task: Task, structure: Structure) -> Iterator[Scores]:
        for number, _ in enumerate(task.batches()):  # the sixth piece is the second process's
            yield tree.scale(ones(structure), float("nan") if task.place(number) == 5 else 1.0)

    def aggregating(task: Task, structure: Structure) -> Iterator[Scores]:
        list(task.batches())
        yield ones(structure)

    for name, when in WHEN.items():
        if when in ("end", "order"):
            said(lambda name=name: measure(*task(40), name))  # type: ignore[misc]
    other = mlp(6, 5, 4, 3, seed=rank)
    said(lambda: measure(*task(40), failing))
    said(lambda: measure(*task(40), aggregating))
    said(lambda: measure(Task(other, batches(4, 8, 6, 3), F.cross_entropy), Hidden(other)))
    said(lambda: measure(*task(4), checkpoint=folder / "c", split=False))


def own_data(folder: Path, rank: int) -> None:
    """Each process has a loader of its own share: of 5 batches the first has 3."""
    one, structure = task(5)
    x, y = (torch.cat(values) for values in zip(*one.data))
    order = torch.arange(40).view(5, 8)
    ways = {
        "given": ([(x[rows], y[rows]) for rows in order[rank::2]], False),
        "sampler": (DataLoader(data := TensorDataset(x, y), 4, sampler=DistributedSampler(data, shuffle=False)), None),
    }
    for name, (loader, split) in ways.items():
        write_sensitivity(folder / f"{name}-{rank}", measure(Task(one.model, loader, one.loss), structure, split=split))


def stops_early(folder: Path, rank: int) -> None:
    """One process looks at every meeting."""
    module.WATCHED, module.SHARE = 0.0, float("inf")
    seen: list[int] = []
    found = measure(*task(200, 2), enough=0.9, amount=0.3, watch=(lambda now: seen.append(now.count)) if rank else None)
    write_sensitivity(folder / f"enough-{rank}", found)
    if rank:
        print("seen", *seen)


class Killed(KeyboardInterrupt):
    pass


def stopped(folder: Path, rank: int) -> None:
    """Both are stopped after 40 of 60 batches, with a checkpoint at every meeting, and begin again."""
    Checkpoint.due = property(lambda self: True)  # type: ignore[method-assign, assignment]

    def stop(done: int, total: int | None) -> None:
        if done >= 40:
            raise Killed

    try:
        measure(*task(60), "hessian", "class", progress=stop, checkpoint=folder / "checkpoint")
        raise AssertionError("it was not stopped")
    except Killed:
        pass
    dist.barrier()
    shutil.copy(folder / "checkpoint", folder / f"checkpoint-{rank}")
    dist.barrier()
    read: list[int] = []
    found = measure(*task(60), "hessian", "class", checkpoint=folder / "checkpoint", progress=lambda done, total: read.append(done))
    assert min(read) > 30, "it began from the start"
    write_sensitivity(folder / f"resumed-{rank}", found)
    module.processes = Processes  # now each is alone
    write_sensitivity(folder / f"resumed-alone-{rank}", measure(*task(60), "hessian", "class", checkpoint=folder / f"checkpoint-{rank}"))


def everything(folder: str) -> None:
    for part in (cases, failures, own_data, stops_early, stopped):
        part(Path(folder), dist.get_rank())
