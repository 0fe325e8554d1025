"""Contexts: the pieces of the data that local sensitivity is measured on. Each way of cutting turns batches into batches of one context."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from numpy import concatenate, generic, ndarray
from torch import Tensor

from .errors import BadInput, SecateurError
from .task import describe, each, first_line, split_batch

WHOLE = re.compile("-?[0-9]{1,20}")
WAITING = 8  # batches' worth of samples that may wait for others of their key


class Piece(NamedTuple):
    """Some data of one context: its key (None where contexts have no name), its number of samples, and the batch.

    waiting: how many keys were met before it of which there was no piece yet.
    """

    key: str | None
    samples: int
    batch: object
    waiting: int = 0


class Column(list[object]):
    """One text or number for every sample: what a list in a batch becomes when samples are taken from it."""


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
    What is the only piece of its key in the end goes in two halves, so that they can be compared. A list of as many texts or numbers as
    the batch has samples is cut with them.
    """

    def cut(data: Iterable[object]) -> Iterator[Piece]:
        waiting: dict[tuple[str, Layout], Piece] = {}
        given: Counter[str | None] = Counter()
        size = 0

        def give(piece: Piece) -> Piece:
            given[piece.key] += 1
            return piece._replace(waiting=len({key for key, _ in waiting} - given.keys()))

        for batch in data:
            named = names_of(keys, batch)
            if isinstance(named, str):
                yield give(Piece(named, samples_in(batch), batch))
                continue
            form, size = layout(batch), max(size, len(named))
            for key, members in places(named).items():
                piece = Piece(key, len(members), take(batch, torch.tensor(members), form))
                if (key, form) in waiting:
                    piece = join(waiting.pop((key, form)), piece, form)
                if piece.samples > size:  # so something of the key comes afterwards
                    yield give(first(piece, size, form))
                    piece = rest(piece, size, form)
                waiting[key, form] = piece
            while sum(piece.samples for piece in waiting.values()) > WAITING * size:
                key, form = max(waiting, key=lambda kind: waiting[kind].samples)
                yield give(waiting.pop((key, form)))
        left = Counter(key for key, _ in waiting)
        for key, form in [*waiting]:
            piece = waiting.pop((key, form))
            half = piece.samples // 2 if given[key] + left[key] == 1 else 0
            yield from map(give, [first(piece, half, form), rest(piece, half, form)] if half else [piece])

    return cut


def names_of(keys: Keys, batch: object) -> list[str] | str:
    """The keys of a batch, as text: one for every sample, or one. Raises BadInput for anything else."""
    called = getattr(keys, "__name__", type(keys).__name__)
    try:
        value = keys(batch)
    except (SecateurError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise BadInput(
            f"The contexts' function {called} failed for a batch of {samples_in(batch)} samples, {describe(batch)}: "
            f"{type(error).__name__}: {first_line(error)}. Make it fit the data."
        ) from error
    plain = of_python(value)
    if is_key(plain):
        return str(plain)
    named = [of_python(key) for key in plain] if isinstance(plain, (list, tuple)) else None
    if named is None or len(named) != sliceable(batch) or not all(is_key(key) for key in named):
        wrong = ["a larger number" if isinstance(key, int) else key for key in named or () if not is_key(key)]
        found = describe(value) if named is None or isinstance(value, Tensor) else f"{len(named)} of them, such as {(wrong or named)[:1]}"
        raise BadInput(
            f"The contexts' function {called} gave keys {found} for a batch of {samples_in(batch)} samples. "
            "Return a list of one string or whole number (of 64 bits) for every sample, or a single one for the batch."
        )
    return [str(key) for key in named]


def of_python(value: object) -> object:
    """Lists and numbers instead of tensors, arrays and their numbers."""
    return value.tolist() if isinstance(value, (Tensor, ndarray, generic)) else value


def is_key(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and -(2**63) <= value < 2**64)


def places(named: list[str]) -> dict[str, list[int]]:
    """Of every key, where it stands."""
    found: dict[str, list[int]] = {key: [] for key in sorted(set(named), key=natural)}
    for place, key in enumerate(named):
        found[key].append(place)
    return found


def natural(key: str) -> tuple[int, int, str]:
    """Whole numbers in their order, before other keys."""
    return (0, int(key), key) if WHOLE.fullmatch(key) else (1, 0, key)


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


def leaves(batch: object, samples: int = 0) -> list[object]:
    """samples: of a batch as it came; a list of so many texts or numbers is a leaf. (A piece's columns are known.)"""
    found: list[object] = []
    each(found.append, batch, partial(is_column, samples=samples))
    return found


def is_column(value: object, samples: int) -> bool:
    if isinstance(value, Column):
        return True
    if not isinstance(value, (list, tuple)) or hasattr(value, "_fields"):
        return False
    return len(value) == samples > 0 and not any(isinstance(leaf, (Tensor, ndarray)) and leaf.ndim for leaf in leaves(value))


def samples_in(batch: object) -> int:
    """The first dimension of the first tensor; 1 where there is none."""
    return next((leaf.shape[0] for leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()), 1)


def sliceable(batch: object) -> int:
    """The number of samples, where inputs and targets agree on it; else BadInput."""
    inputs, targets = split_batch(batch)
    samples, parts = samples_in(inputs), leaves(targets, samples_in(inputs))
    only_columns = any(is_column(part, samples) for part in parts) and not any(isinstance(part, Tensor) and part.dim() for part in parts)
    if samples_in(targets) != samples and not only_columns:
        raise BadInput(
            f"This batch cannot be cut into samples: its inputs are {describe(inputs)} and its targets {describe(targets)}. "
            'Put samples along the first dimension of both, or use contexts="batch".'
        )
    return samples


def layout(batch: object) -> Layout:
    """Of every leaf, whether it is cut along its first dimension, and what must be equal in another batch to join the two."""
    samples = samples_in(batch)
    return tuple(
        (True, tuple(leaf.shape[1:]), str(leaf.dtype))
        if isinstance(leaf, (Tensor, ndarray)) and leaf.ndim and leaf.shape[0] == samples
        else (True, (), "a column")
        if is_column(leaf, samples)
        else (False, tuple(leaf.shape), str(leaf.tolist()))
        if isinstance(leaf, (Tensor, ndarray))
        else (False, (), repr(leaf))
        for leaf in leaves(batch, samples)
    )


def rebuild(batch: object, new: Iterable[object], samples: int = 0) -> object:
    """The same containers with other leaves."""
    following = iter(new)
    return each(lambda _: next(following), batch, partial(is_column, samples=samples))


def take(batch: object, index: Tensor, form: Layout) -> object:
    """Some samples of a batch as it came, copied, so that the rest can go."""
    return taken(batch, index, form, samples_in(batch))


def taken(batch: object, index: Tensor, form: Layout, samples: int = 0) -> object:
    parts = [some(leaf, index) if cut else leaf for leaf, (cut, *_) in zip(leaves(batch, samples), form)]
    return rebuild(batch, parts, samples)


def some(leaf: object, index: Tensor) -> object:
    if isinstance(leaf, Tensor):
        return leaf[index.to(leaf.device)]
    if isinstance(leaf, ndarray):
        return leaf[index.numpy()]
    assert isinstance(leaf, (list, tuple))
    return Column(leaf[place] for place in index.tolist())


def join(a: Piece, b: Piece, form: Layout) -> Piece:
    parts = [both(x, y) if cut else x for x, y, (cut, *_) in zip(leaves(a.batch), leaves(b.batch), form)]
    return Piece(a.key, a.samples + b.samples, rebuild(a.batch, parts))


def both(x: object, y: object) -> object:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return torch.cat([x, y])
    if isinstance(x, ndarray) and isinstance(y, ndarray):
        return concatenate([x, y])
    assert isinstance(x, (list, tuple)) and isinstance(y, (list, tuple))
    return Column([*x, *y])


def first(piece: Piece, size: int, form: Layout) -> Piece:
    return Piece(piece.key, size, taken(piece.batch, torch.arange(size), form))


def rest(piece: Piece, size: int, form: Layout) -> Piece:
    return Piece(piece.key, piece.samples - size, taken(piece.batch, torch.arange(size, piece.samples), form))
