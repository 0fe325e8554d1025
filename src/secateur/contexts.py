"""Contexts: the pieces of the data that local sensitivity is measured on. Each way of cutting turns batches into batches of one context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import BadInput
from .task import describe, each, split_batch

WAITING = 8  # batches' worth of samples that may wait for others of their class


class Piece(NamedTuple):
    """Some data of one context: its key (None where contexts have no name), its number of samples, and the batch."""

    key: str | None
    samples: int
    batch: object


Layout = tuple[tuple[bool, tuple[int, ...], str], ...]
Cut = Callable[[Iterable[object]], Iterator[Piece]]


def by_batch(data: Iterable[object]) -> Iterator[Piece]:
    """Every batch is a context, as it comes."""
    for batch in data:
        yield Piece(None, samples_in(batch), batch)


def by_sample(data: Iterable[object]) -> Iterator[Piece]:
    """Every sample is a context: a batch of n becomes n batches of one."""
    for batch in data:
        for index in range(sliceable(batch)):
            yield Piece(None, 1, take(batch, torch.tensor([index]), layout(batch)))


def by_class(data: Iterable[object]) -> Iterator[Piece]:
    """Every class is a context: samples wait for others of their class until they fill a batch.

    At most 8 batches' worth of samples wait; beyond that the fullest class goes on, so that memory does not grow with the data and the
    batches stay nearly as large as they came. Samples of different shapes (padding) are not mixed.
    """
    waiting: dict[tuple[object, Layout], Piece] = {}
    size = 0
    for batch in data:
        labels, form = labels_of(batch), layout(batch)
        size = max(size, len(labels))
        for label in torch.unique(labels).tolist():
            members = (labels == label).nonzero().flatten()
            piece = Piece(str(label), len(members), take(batch, members, form))
            if (label, form) in waiting:
                piece = join(waiting.pop((label, form)), piece, form)
            if piece.samples >= size:
                yield first(piece, size, form)
                piece = rest(piece, size, form)
            if piece.samples:
                waiting[label, form] = piece
        while sum(piece.samples for piece in waiting.values()) > WAITING * size:
            yield waiting.pop(max(waiting, key=lambda kind: waiting[kind].samples))
    yield from waiting.values()


CONTEXTS: dict[str, Cut] = {"batch": by_batch, "sample": by_sample, "class": by_class}


@dataclass
class Stream:
    """Data cut into contexts, which remembers the piece it handed out last: that is the one a criterion's next scores belong to.

    taken: batches taken from the data in this pass.
    handed: pieces handed out in this pass.
    """

    data: Iterable[object]
    cut: Cut
    taken: int = 0
    handed: int = 0
    key: str | None = None
    samples: int = 0

    def __iter__(self) -> Iterator[object]:
        self.taken = self.handed = 0
        for piece in self.cut(self.counted()):
            self.handed += 1
            self.key, self.samples = piece.key, piece.samples
            yield piece.batch

    def counted(self) -> Iterator[object]:
        for batch in self.data:
            self.taken += 1
            yield batch


def leaves(batch: object) -> list[object]:
    found: list[object] = []
    each(found.append, batch)
    return found


def samples_in(batch: object) -> int:
    """The first dimension of the first tensor; 1 where there is none."""
    return next((leaf.shape[0] for leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()), 1)


def sliceable(batch: object) -> int:
    """The number of samples, where inputs and targets agree on it; else BadInput."""
    inputs, targets = split_batch(batch)
    if samples_in(inputs) != samples_in(targets):
        raise BadInput(
            f"This batch cannot be cut into samples: its inputs are {describe(inputs)} and its targets {describe(targets)}. "
            'Put samples along the first dimension of both, or use contexts="batch".'
        )
    return samples_in(inputs)


def labels_of(batch: object) -> Tensor:
    """One class a sample: the targets, or a dict's "labels" or "label"."""
    _, targets = split_batch(batch)
    labels = targets.get("labels", targets.get("label")) if isinstance(targets, Mapping) else targets
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point() or len(labels) != sliceable(batch):
        raise BadInput(
            f'Contexts of one class need a whole number for every sample as its label (in a dict: "labels" or "label"), '
            f'but the targets are {describe(targets)}. Use contexts="batch" or "sample", or give such labels.'
        )
    return labels.cpu()


def layout(batch: object) -> Layout:
    """Of every leaf, whether it is cut along its first dimension, and what must be equal in another batch to join the two."""
    samples = samples_in(batch)
    return tuple(
        (True, tuple(leaf.shape[1:]), str(leaf.dtype))
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == samples
        else (False, tuple(leaf.shape), str(leaf.tolist()))
        if isinstance(leaf, Tensor)
        else (False, (), repr(leaf))
        for leaf in leaves(batch)
    )


def rebuild(batch: object, new: Iterable[object]) -> object:
    """The same containers with other leaves."""
    following = iter(new)
    return each(lambda _: next(following), batch)


def take(batch: object, index: Tensor, form: Layout) -> object:
    """Some samples of a batch, copied, so that the rest can go."""
    parts = [leaf[index.to(leaf.device)] if cut and isinstance(leaf, Tensor) else leaf for leaf, (cut, *_) in zip(leaves(batch), form)]
    return rebuild(batch, parts)


def join(a: Piece, b: Piece, form: Layout) -> Piece:
    pairs = zip(leaves(a.batch), leaves(b.batch), form)
    parts = [torch.cat([x, y]) if cut and isinstance(x, Tensor) and isinstance(y, Tensor) else x for x, y, (cut, *_) in pairs]
    return Piece(a.key, a.samples + b.samples, rebuild(a.batch, parts))


def first(piece: Piece, size: int, form: Layout) -> Piece:
    return Piece(piece.key, size, take(piece.batch, torch.arange(size), form))


def rest(piece: Piece, size: int, form: Layout) -> Piece:
    return Piece(piece.key, piece.samples - size, take(piece.batch, torch.arange(size, piece.samples), form))
