"""Which numbers belong to which sample: along an axis of their own, or along one that is merged with positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Axis(NamedTuple):
    """Where the samples are: along an axis of their own ("whole"), or as the "outer" or "inner" part of one that they share."""

    axis: int
    how: str

    def split(self, x: Tensor, samples: int) -> Tensor:
        """Samples along an axis of their own: `place`."""
        if self.how == "whole":
            return x
        return torch.unflatten(x, self.axis, (samples, -1) if self.how == "outer" else (-1, samples))

    @property
    def place(self) -> int:
        return self.axis + (self.how == "inner")


def apart(x: Tensor, samples: Axis | None, count: int) -> Tensor:
    """Samples along the first axis, and the others in their order. Without a place for the samples, all are one."""
    return x.unsqueeze(0) if samples is None else samples.split(x, count).movedim(samples.place, 0)


def behind(x: Tensor, samples: Axis | None, axis: int) -> int:
    """Where an axis of x, counted from the end, is in `apart`, counted from the end: samples that lay behind it are gone from there."""
    return axis + (samples is not None and samples.how == "whole" and samples.axis > x.dim() + axis)


def summed(x: Tensor, samples: Axis | None, count: int, axes: Sequence[int]) -> Tensor:
    """(samples, *sizes of the axes, which are counted from the end and in order): the sum over all else."""
    y = apart(x, samples, count)
    kept = [y.dim() + behind(x, samples, axis) for axis in axes]
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    others = [d for d in range(1, y.dim()) if d not in kept]
    return y.sum(others) if others else y


def rows(x: Tensor, samples: Axis | None, count: int, axis: int) -> Tensor:
    """(samples, positions, size of the axis, which is counted from the end)."""
    return apart(x, samples, count).movedim(behind(x, samples, axis), -1).unsqueeze(1).flatten(1, -2)


def sample_axis(two: Tensor, three: Tensor) -> Axis | None:
    """Where the samples are, from a tensor of two samples and the same one of those and a third.

    It is the one axis that grows with the samples, and the part of it that leaves the first two as they were; None where there is none.
    """
    fits = [axis for axis in grown(two, three) if unmoved(axis, two, three)]
    return fits[0] if len(fits) == 1 else None


def dependent(two: Tensor, three: Tensor) -> bool:
    """Whether an axis grows with the samples, but no part of it leaves the first two as they were."""
    possible = grown(two, three)
    return bool(possible) and not any(unmoved(axis, two, three) for axis in possible)


def grown(two: Tensor, three: Tensor) -> list[Axis]:
    """The parts of the one axis that grows with the samples, as far as sizes tell."""
    if two.dim() != three.dim():
        return []
    longer = [axis for axis in range(two.dim()) if two.shape[axis] != three.shape[axis]]
    if len(longer) != 1 or 3 * two.shape[longer[0]] != 2 * three.shape[longer[0]]:
        return []
    return [Axis(longer[0], how) for how in (("whole",) if two.shape[longer[0]] == 2 else ("outer", "inner"))]


def unmoved(axis: Axis, two: Tensor, three: Tensor) -> bool:
    return close(axis.split(two, 2), axis.split(three, 3).narrow(axis.place, 0, 2))


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, which may go another way in a larger batch."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    error = torch.finfo(a.dtype).eps ** 0.5
    return torch.allclose(a, b, rtol=error, atol=error * float(a.abs().nan_to_num(0, 0, 0).max()) if a.numel() else 0, equal_nan=True)
