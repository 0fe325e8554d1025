"""The k smallest of very many scores, without sorting them and without gathering them.

The bits of a float, read as an integer, are in the order of the floats (once those of negative ones are turned round), so the k-th
smallest is found digit by digit, as in a radix sort that only looks: a histogram of the first eleven bits says in which bin it lies, one
of the next eleven, of that bin alone, says where in it, and so on: three passes over float32, six over float64, a chunk at a time.
Histograms of parts add up, so parts may lie in several processes: `add` is called with every histogram (an all-reduce, say).

Equal scores leave in the order they stand in, as after a stable sort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import BadInput

DIGIT = 11  # bits a pass
BINS = 1 << DIGIT
WHOLE = 1 << 53  # up to which float64 has every whole number
CHUNK = 1 << 19  # scores at a time: what a pass takes beside them is a few MB

Parts = Tensor | Mapping[str, Tensor] | Sequence[Tensor]
Add = Callable[[Tensor], Tensor]  # the histogram of this process -> that of all processes


@dataclass(frozen=True)
class Threshold:
    """Where the k smallest end: all scores below `value` are among them, and `ties` of the scores that equal it.

    below, equal: how many scores are lower, and how many are the same.
    """

    value: float
    below: int
    equal: int
    ties: int


def threshold(chunks: Parts, k: int, add: Add | None = None, bits: int | None = None) -> Threshold:
    """The k-th smallest of all scores in `chunks` (k from 1 on), found in passes that each read a chunk at a time.

    chunks: a tensor, or a dict or list of them, gone through several times; scores are finite.
    add: sums a histogram over all processes; each calls this with its own chunks, all get the same answer. `k` counts the scores of all.
    bits: 32 where no process has float64 or whole numbers; by default 64 with `add`, for processes must agree, and what fits without.
    Raises BadInput where there are fewer than k scores.
    """
    parts = [*tensors(chunks)]
    most = bits or (64 if add is not None else bits_of(parts))
    found = descend([parts], lambda removed: int(removed.sum()) >= k, most, add) if k > 0 else None
    if found is None:
        raise BadInput(f"The {k} smallest scores were asked for, of fewer. Ask for at least one, and for no more than there are.")
    return Threshold(float_of(found.key, most), int(found.below), int(found.equal), k - int(found.below))


def smallest(values: Tensor, k: int) -> Tensor:
    """A bool for every score: whether it is among the k smallest, equal ones in their order."""
    if not 0 < k < values.numel():
        return torch.full(values.shape, k > 0, dtype=torch.bool, device=values.device)
    end = threshold(values, k)
    return up_to(values, end.value, end.ties)


def up_to(values: Tensor, end: float, ties: int) -> Tensor:
    """A bool for every score: whether it is below `end`, or among the first `ties` that equal it."""
    chosen = torch.empty(values.shape, dtype=torch.bool, device=values.device)
    for part, marks in zip(torch.split(values.reshape(-1), CHUNK), torch.split(chosen.view(-1), CHUNK)):
        torch.lt(part, end, out=marks)
        if ties:
            places = (part == end).nonzero()[:ties, 0]
            marks[places] = True
            ties -= len(places)
    return chosen


@dataclass(frozen=True)
class Found:
    """key: of the last score that is needed. below, equal: for each group, how many of its scores are lower, and the same."""

    key: int
    below: Tensor
    equal: Tensor


def descend(groups: Sequence[Sequence[Tensor]], enough: Callable[[Tensor], bool], bits: int, add: Add | None = None) -> Found | None:
    """The lowest key such that removing all scores up to it is `enough`, which is asked with the number removed of each group.

    `enough` must stay true once it is. None where even all are not enough.
    """
    low, below = -(1 << (bits - 1)), torch.zeros(len(groups), dtype=torch.int64)
    left = bits
    while left:
        digit = min(DIGIT, left)
        left -= digit
        counts = torch.stack([histogram(parts, low, low + (1 << (left + digit)), bits) for parts in groups])
        counts = counts if add is None else add(counts)
        sums = counts.cumsum(1).add_(below[:, None])
        if left + digit == bits and not enough(sums[:, -1]):
            return None
        first, last = 0, BINS - 1
        while first < last:
            middle = (first + last) // 2
            first, last = (first, middle) if enough(sums[:, middle]) else (middle + 1, last)
        below = sums[:, first] - counts[:, first]
        low += first << left
    return Found(low, below, counts[:, first])


def histogram(chunks: Parts, low: int, high: int, bits: int) -> Tensor:
    """How many scores have a key in each of the 2,048 bins from `low` up to `high`; the others do not count. (2048,), int64.

    key: the integer of so many `bits` that orders like the score (`keys`). A span of fewer than 2,048 keys has bins of one.
    """
    shift = max(0, (high - low).bit_length() - 1 - DIGIT)
    whole = high - low == 1 << bits
    first = low >> shift
    counts = torch.zeros(BINS, dtype=torch.int64)
    for part in tensors(chunks):
        for values in torch.split(part.detach().reshape(-1), CHUNK):
            bins = keys(values, bits).bitwise_right_shift_(shift).sub_(first)
            if not whole:
                bins = bins[(bins >= 0) & (bins < min(BINS, high - low))]
            counts += torch.bincount(bins, minlength=BINS).cpu()
    return counts


def keys(values: Tensor, bits: int) -> Tensor:
    """Integers in the order of the scores: equal where they are equal, 0.0 and -0.0 included."""
    kind, integer = (torch.float64, torch.int64) if bits == 64 else (torch.float32, torch.int32)
    raw = (values.to(kind) + 0.0).view(integer)  # -0.0 + 0.0 is 0.0
    return raw.bitwise_xor_(raw.bitwise_right_shift(bits - 1).bitwise_and_((1 << (bits - 1)) - 1))


def float_of(key: int, bits: int) -> float:
    """The score that has this key."""
    raw = torch.tensor([key], dtype=torch.int64 if bits == 64 else torch.int32)
    raw ^= (raw >> (bits - 1)) & ((1 << (bits - 1)) - 1)
    return float(raw.view(torch.float64 if bits == 64 else torch.float32))


def bits_of(parts: Sequence[Tensor]) -> int:
    """Bits of the float that holds all of them exactly: 32 for floats of up to 32, else 64.

    Raises BadInput for whole numbers beyond 2^53, which float64 does not tell apart.
    """
    for part in parts:
        if not part.is_floating_point() and part.element_size() == 8 and part.numel():
            least, most = (int(end) for end in part.aminmax())
            if max(-least, most) > WHOLE:
                raise BadInput(f"Some scores are whole numbers beyond 2^53 ({least} to {most}), which are not told apart. Scale them.")
    small = all(part.is_floating_point() and part.element_size() <= 4 for part in parts)
    return 32 if small else 64


def tensors(chunks: Parts) -> Iterator[Tensor]:
    yield from [chunks] if isinstance(chunks, Tensor) else chunks.values() if isinstance(chunks, Mapping) else chunks
