"""Contexts: the pieces of the data that local sensitivity is measured on. Each way of cutting turns batches into batches of one context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import BadInput
from .task import describe, each, split_batch

WAITING = 8  # batches' worth of samples that may wait for others of their key


class Piece(NamedTuple):
    """Some data of one context: its key (None where contexts have no name), its number of samples, and the batch."""

    key: str | None
    samples: int
    batch: object


Layout = tuple[tuple[bool, tuple[int, ...], str], ...]
Cut = Callable[[Iterable[object]], Iterator[Piece]]
Keys = Callable[[object], object]  # batch -> a key for every sample (a list, or a tensor of whole numbers), or one for the batch


def by_batch(data: Iterable[object]) -> Iterator[Piece]:
    """Every batch is a context, as it comes."""
    for batch in data:
        yield Piece(None, samples_in(batch), batch)


def by_sample(data: Iterable[object]) -> Iterator[Piece]:
    """Every sample is a context: a batch of n becomes n batches of one."""
    for batch in data:
        for index in range(sliceable(batch)):
            yield Piece(None, 1, take(batch, torch.tensor([index]), layout(batch)))


def by_key(keys: Keys) -> Cut:
    """Every key is a context (a domain, speaker, language, sensor, ...): samples wait for others of theirs until they fill a batch.

    keys: batch -> one key a sample, or one for the whole batch, which then goes on as it is. A key is a string or a whole number.
    At most 8 batches' worth of samples wait; beyond that the fullest key goes on, so that memory does not grow with the data and the
    batches stay nearly as large as they came. Samples of different shapes (padding) are not mixed.
    What is the only piece of its key in the end goes in two halves, so that they can be compared.
    """

    def cut(data: Iterable[object]) -> Iterator[Piece]:
        waiting: dict[tuple[str, Layout], Piece] = {}
        given: Counter[str | None] = Counter()
        size = 0
        for batch in data:
            named = names_of(keys, batch)
            if isinstance(named, str):
                given[named] += 1
                yield Piece(named, samples_in(batch), batch)
                continue
            form, size = layout(batch), max(size, len(named))
            for key, members in places(named).items():
                piece = Piece(key, len(members), take(batch, torch.tensor(members), form))
                if (key, form) in waiting:
                    piece = join(waiting.pop((key, form)), piece, form)
                if piece.samples > size:  # so something of the key comes afterwards
                    given[key] += 1
                    yield first(piece, size, form)
                    piece = rest(piece, size, form)
                waiting[key, form] = piece
            while sum(piece.samples for piece in waiting.values()) > WAITING * size:
                key, form = max(waiting, key=lambda kind: waiting[kind].samples)
                given[key] += 1
                yield waiting.pop((key, form))
        given.update(key for key, _ in waiting)
        for (key, form), piece in waiting.items():
            half = piece.samples // 2 if given[key] == 1 else 0
            yield from [first(piece, half, form), rest(piece, half, form)] if half else [piece]

    return cut


def names_of(keys: Keys, batch: object) -> list[str] | str:
    """The keys of a batch, as text: one for every sample, or one. Raises BadInput for anything else."""
    value = keys(batch)
    plain = value.tolist() if hasattr(value, "tolist") else value  # a tensor or an array
    if isinstance(plain, (str, int)):
        return str(plain)
    named = list(plain) if isinstance(plain, (list, tuple)) else None
    if named is None or len(named) != sliceable(batch) or not all(isinstance(key, (str, int)) for key in named):
        called = getattr(keys, "__name__", type(keys).__name__)
        found = describe(value) if named is None or isinstance(value, Tensor) else f"{len(named)} of them, such as {named[:1]}"
        raise BadInput(
            f"The contexts' function {called} gave keys {found} for a batch of {samples_in(batch)} samples. "
            "Return a list of one string or whole number for every sample, or a single one for the batch."
        )
    return [str(key) for key in named]


def places(named: list[str]) -> dict[str, list[int]]:
    """Of every key, where it stands."""
    found: dict[str, list[int]] = {key: [] for key in sorted(set(named), key=natural)}
    for place, key in enumerate(named):
        found[key].append(place)
    return found


def natural(key: str) -> tuple[int, int, str]:
    """Whole numbers in their order, before other keys."""
    return (0, int(key), key) if key.lstrip("-").isdecimal() else (1, 0, key)


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


by_class = by_key(labels_of)

CONTEXTS: dict[str, Cut] = {"batch": by_batch, "sample": by_sample, "class": by_class}
APART = (by_batch, by_sample)  # a piece is of one batch, so that reading can begin behind any batch


def cut_of(contexts: str | Keys) -> tuple[Cut, str]:
    """The way of cutting of that name or function of keys, and what it is called. Raises BadInput where there is none."""
    if not isinstance(contexts, str) and callable(contexts):
        return by_key(contexts), str(getattr(contexts, "__name__", type(contexts).__name__))
    if not isinstance(contexts, str) or contexts not in CONTEXTS:
        collected = " Training steps are collected while training: finetune(..., collect=Collector(structure))."
        steps = collected if "step" in str(contexts) else ""
        raise BadInput(f"There are no contexts {contexts!r}. Choose {', '.join(CONTEXTS)}, or give a function batch -> keys.{steps}")
    return CONTEXTS[contexts], contexts


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
