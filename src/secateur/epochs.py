"""The batches of each epoch of a training run: the same ones whether the run was interrupted or not.

What comes from torch's random numbers (a loader's order, an augmentation) follows the seed and the number of the epoch. Data that has
`set_epoch(k)`, or whose sampler has, is told; of data that has `epoch(k)`, that is iterated. Other data is iterated again as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager

import torch
from torch import Tensor

from .task import each


def batches_of(data: Iterable[object], epoch: int, seed: int) -> tuple[Iterable[object], int]:
    """The batches of an epoch (from 0), and their number, 0 where it is not known. Seeds torch's global random state."""
    draw = (seed * 1_000_003 + epoch) % 2**63
    torch.manual_seed(draw)
    if isinstance(generator := getattr(data, "generator", None), torch.Generator):
        generator.manual_seed(draw)
    for owner in (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None)):
        if callable(tell := getattr(owner, "set_epoch", None)):
            tell(epoch)
    batches: Iterable[object] = of_epoch(epoch) if callable(of_epoch := getattr(data, "epoch", None)) else data
    try:
        return batches, len(batches) if isinstance(batches, Sized) else 0
    except TypeError:  # a loader has a length only where its data set has one
        return batches, 0


@contextmanager
def generator_kept(data: Iterable[object]) -> Iterator[None]:
    """A loader's own generator is as it was afterwards."""
    generator = getattr(data, "generator", None)
    state = generator.get_state() if isinstance(generator, torch.Generator) else None
    try:
        yield
    finally:
        if isinstance(generator, torch.Generator) and state is not None:
            generator.set_state(state)


def samples_of(inputs: object) -> int:
    """How many samples a batch has: the length of its first tensor."""
    sizes: list[int] = []
    each(lambda leaf: sizes.append(len(leaf)) if isinstance(leaf, Tensor) and leaf.dim() else None, inputs)
    return sizes[0] if sizes else 1
