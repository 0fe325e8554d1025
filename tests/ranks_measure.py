"""What the processes of tests/test_distributed.py do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from secateur import tree
from secateur.criteria import CRITERIA
from secateur.errors import BadInput
from secateur.measure import measure
from secateur.sensitivity_file import read_sensitivity, write_sensitivity
from secateur.structure import Structure
from secateur.task import Task
from secateur.tree import Scores
from toy import Hidden, batches, mlp

CASES = {
    f"{criterion}-{contexts}-{count}": (criterion, contexts, count)
    for criterion, contexts, count in [
        *((name, "batch", 7) for name in CRITERIA),
        *(("taylor", contexts, 37) for contexts in ("sample", "class", "key")),
        ("hessian", "class", 5),
        ("taylor", "batch", 1),  # fewer batches than processes
        ("gradient", "class", 1),
    ]
}


def odd_or_even(batch: tuple[Tensor, Tensor]) -> list[str]:
    return ["odd" if label % 2 else "even" for label in batch[1].tolist()]


def task(count: int, seed: int = 0) -> tuple[Task, Hidden]:
    model = mlp(6, 5, 4, 3)
    return Task(model, batches(count, 8, 6, 3, seed), F.cross_entropy, seed=3), Hidden(model)


def measured_all(folder: str) -> None:
    """Every case, into one file for each case and process."""
    rank = dist.get_rank() if dist.is_initialized() else "alone"
    for name, (criterion, contexts, count) in CASES.items():
        for local in ("max", 0.7):
            keys = odd_or_even if contexts == "key" else contexts
            write_sensitivity(Path(folder) / f"{name}-{local}-{rank}", measure(*task(count), criterion, keys, local))


def one_fails(folder: str) -> None:
    """A piece of the second process has a score that is not finite: both say so, and neither waits."""
    seen: list[int] = []

    def mine(task: Task, structure: Structure) -> Iterator[Scores]:
        for number, _ in enumerate(task.batches()):
            seen.append(task.place(number))
            ones = {name: torch.ones(group.shape) for name, group in structure.groups.items()}
            yield tree.scale(ones, float("nan") if task.place(number) == 5 else 1.0)

    try:
        measure(*task(40), mine)
    except BadInput as error:
        print(error, seen[-1])


def aggregates(folder: str) -> None:
    def mine(task: Task, structure: Structure) -> Iterator[Scores]:
        list(task.batches())
        yield {name: torch.ones(group.shape) for name, group in structure.groups.items()}

    try:
        measure(*task(40), mine)
    except BadInput as error:
        print(error)


def other_models(folder: str) -> None:
    model = mlp(6, 5, 4, 3, seed=dist.get_rank())
    try:
        measure(Task(model, batches(4, 8, 6, 3), F.cross_entropy), Hidden(model))
    except BadInput as error:
        print(error)


def own_data(folder: str) -> None:
    """Each process has a loader of its own share: of 5 batches the first has 3."""
    one, structure = task(5)
    x, y = (torch.cat(values) for values in zip(*one.data))
    data = TensorDataset(x, y)
    order = torch.arange(40).view(5, 8)
    for name, loader, split in (
        ("given", [(x[rows], y[rows]) for rows in order[dist.get_rank() :: 2]], False),
        ("sampler", DataLoader(data, 4, sampler=DistributedSampler(data, shuffle=False)), None),
    ):
        found = measure(Task(one.model, loader, one.loss), structure, split=split)
        write_sensitivity(Path(folder) / f"{name}-{dist.get_rank()}", found)


def stops_early(folder: str) -> None:
    found = measure(*task(400), enough=0.8, watch=(lambda now: print("seen", now.count)) if dist.get_rank() else None)
    write_sensitivity(Path(folder) / f"enough-{dist.get_rank()}", found)


class Killed(KeyboardInterrupt):
    pass


def killed(folder: str, at: str) -> None:
    """Stopped after so many batches (0: not at all), with a checkpoint at every meeting."""
    from secateur import resume

    resume.Checkpoint.due = property(lambda self: True)  # type: ignore[method-assign, assignment]

    def tell(done: int, total: int | None) -> None:
        if done == int(at):
            raise Killed

    try:
        found = measure(*task(60), "hessian", "class", progress=tell, checkpoint=Path(folder) / "checkpoint")
        write_sensitivity(Path(folder) / f"resumed-{dist.get_rank()}", found)
    except Killed:
        print(read_position(Path(folder) / "checkpoint"))


def read_position(path: Path) -> int:
    import json

    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["facts"])["place"][0]


__all__ = ["read_sensitivity"]
