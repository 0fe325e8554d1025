"""Batches that can be read again and again, and one pile of samples split into training, validation and test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ..errors import BadInput, need
from ..task import describe


@dataclass(frozen=True)
class Arrays:
    """Samples along the first dimension of two tensors."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.inputs[indices], self.targets[indices]

    def labels(self) -> list[int] | None:
        return classes_in(self.targets)


@dataclass(frozen=True)
class Items:
    """Samples of a map-style data set, read when they are needed."""

    dataset: Sequence[object]
    collate: Callable[[list[object]], object] = default_collate

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, indices: Sequence[int]) -> object:
        items = [self.dataset[index] for index in indices]
        try:
            return self.collate(items)
        except (TypeError, RuntimeError, ValueError) as error:
            raise BadInput(
                f"Samples {indices[0]} to {indices[-1]} of the data do not go into one batch: {str(error).splitlines()[0].rstrip('.')}. "
                f"Let the data set give pairs of tensors (or numbers) of one size."
            ) from error

    def labels(self) -> list[int] | None:
        """From the data set's own list where it has one, or else by reading every sample once."""
        for known in (getattr(self.dataset, "targets", None), getattr(self.dataset, "labels", None)):
            if isinstance(known, Sized) and len(known) == len(self):
                return classes_in(known)
        items = (self.dataset[index] for index in range(len(self)))
        return classes_in([item[1] if isinstance(item, (tuple, list)) and len(item) == 2 else None for item in items])


PARTS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
Pile: TypeAlias = "Arrays | Items"


def pair_of(inputs: Tensor, targets: Tensor, what: str) -> Arrays:
    """Raises BadInput unless there is one target for each input."""
    if not inputs.dim() or not targets.dim() or len(inputs) != len(targets):
        raise BadInput(f"{what} has inputs {describe(inputs)} and targets {describe(targets)}, not as many. Give one target a sample.")
    if targets.dim() == 2 and targets.shape[1] == 1 and not targets.is_floating_point():
        targets = targets.squeeze(1)  # a column of class numbers
    return Arrays(inputs, targets)


def classes_in(targets: object) -> list[int] | None:
    """Targets as class numbers; None where they are something else."""
    if isinstance(targets, (list, tuple)) and all(isinstance(target, Tensor) and target.dim() == 0 for target in targets):
        targets = torch.stack(tuple(targets)) if targets else targets
    try:
        values = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        return None
    return values.tolist() if values.dim() == 1 and not values.is_floating_point() and not values.is_complex() else None


class Batches:
    """Batches of the samples `indices` of a pile, read anew by each iteration: in the same order, or, with a seed, in a new one each epoch.

    epoch: the number of the next iteration. Whoever goes on with training after a stop sets it (`set_epoch`, as torch's distributed
    sampler has it), and the order is what it would have been.
    """

    def __init__(self, pile: Pile, batch: int = 64, indices: Sequence[int] | None = None, shuffle_seed: int | None = None) -> None:
        if batch < 1:
            raise BadInput(f"A batch of {batch} samples is none. Give a batch size from 1 on.")
        self.pile = pile
        self.batch = batch
        self.indices = list(range(len(pile)) if indices is None else indices)
        self.shuffle_seed = shuffle_seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch)

    def __iter__(self) -> Iterator[object]:
        order = self.order(self.epoch)
        if self.shuffle_seed is not None:
            self.epoch += 1
        for start in range(0, len(order), self.batch):
            yield self.pile.take(order[start : start + self.batch])

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self, epoch: int) -> list[int]:
        """The samples in the order of one epoch, which depends on nothing but the seed and the epoch's number."""
        if self.shuffle_seed is None:
            return self.indices
        generator = torch.Generator().manual_seed(self.shuffle_seed * 1_000_003 + epoch)
        return [self.indices[place] for place in torch.randperm(len(self.indices), generator=generator).tolist()]

    def shuffled(self, seed: int = 0) -> Batches:
        """The same samples, in a new order each epoch."""
        return Batches(self.pile, self.batch, self.indices, seed)


@dataclass(frozen=True)
class Splits:
    """Re-iterable batches for training, for choosing (validation), and for the one look at the end (test).

    record: how they came about, as JSON values: seed, notes, and for each split its samples' numbers, None where it was given as it is.
    classes: the names of the classes, where they are known.
    """

    train: Iterable[object]
    validation: Iterable[object]
    test: Iterable[object]
    record: dict[str, object] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None


def split(pile: Pile, shares: Sequence[float], seed: int, what: str) -> tuple[list[list[int]], str]:
    """Sample numbers in parts of these shares, each class shared out alike, and a note on how it was done.

    Raises BadInput for fewer than ten samples, or where all are of one class.
    """
    if len(pile) < 10:
        raise BadInput(f"{what} has {len(pile)} samples, too few to split. Give ten or more, or training, validation and test data apart.")
    labels = pile.labels()
    if labels is not None and len(set(labels)) == 1:
        raise BadInput(
            f"All {len(labels)} samples of {what} are of the class {labels[0]}, so nothing can be told apart. Give two classes or more."
        )
    if labels is None:
        return parts(len(pile), shares, seed, None), "not stratified: the targets are not classes"
    try:
        return parts(len(pile), shares, seed, labels), "stratified"
    except ValueError:
        rare = min(labels.count(label) for label in set(labels))
        return parts(len(pile), shares, seed, None), f"not stratified: the rarest class has {rare} samples, too few for every split"


def parts(size: int, shares: Sequence[float], seed: int, labels: list[int] | None) -> list[list[int]]:
    """Cut off the shares one after the other, the last being what remains. Raises ValueError where a class cannot be shared out."""
    train_test_split = need("sklearn.model_selection", "data").train_test_split
    rest, cut, left = list(range(size)), [], 1.0
    for share in shares[:-1]:
        stratify = None if labels is None else [labels[index] for index in rest]
        part, rest = train_test_split(rest, train_size=share / left, random_state=seed, stratify=stratify)
        cut.append(part)
        left -= share
    return [*cut, rest]
