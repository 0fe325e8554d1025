"""Criteria from what flows through the network: how large, how often, how varied it is where the weights read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import tree
from ..errors import BadInput
from ..flows import inputs
from ..structure import Structure
from ..task import Task, plain
from ..tree import Scores


def wanda(task: Task, structure: Structure) -> Iterator[Scores]:
    """Magnitude times the norm of what the weight is multiplied with (Sun et al., 2023, "Wanda", eq. 1).

    score_u = sum over i = (o, j) in u of |w_oj| |x_j|,    |x_j|: Euclidean norm over all samples and positions of the batch

    The paper compares the weights of one output with each other only: that is a matter of the scope. What multiplies no activation (a bias,
    a norm) counts nothing. Raises BadInput where of a unit's weights no activation is known: in recurrent layers, say.
    """
    weights = task.parameters()
    for lines in inputs(task, norm):
        terms, seen = tree.apply(lambda value: torch.zeros_like(plain(value)), weights), tree.apply(torch.zeros_like, weights)
        for (name, dim), value in lines.items():
            shape = [-1 if d == dim else 1 for d in range(weights[name].dim())]
            terms[name] = plain(weights[name]).abs() * value.view(shape)
            seen[name] = torch.ones_like(weights[name])
        check_seen(structure.reduce(seen), "wanda")
        yield structure.reduce(terms)


def mean_activation(task: Task, structure: Structure) -> Iterator[Scores]:
    """The mean magnitude of the unit's activation (after Molchanov et al., 2017, "Pruning convolutional neural networks", sec. 2.2).

    score_u = mean over samples and positions of |x_u|,    x_u: what the weights that read u are given

    Behind a ReLU it is the paper's mean. Where several weights read the unit, it is the mean over them.
    """
    yield from of_units(task, structure, lambda x: rows(x).abs().mean(1), "mean_activation")


def apoz(task: Task, structure: Structure) -> Iterator[Scores]:
    """How often the unit is active (Hu et al., 2016, "Network trimming", eq. 1: one minus the average percentage of zeros).

    score_u = fraction of samples and positions with x_u != 0

    It tells something where an activation gives exact zeros (ReLU). Behind a GELU or a tanh, all live units have 1.
    """
    yield from of_units(task, structure, lambda x: (rows(x) != 0).to(plain(x).dtype).mean(1), "apoz")


def hrank(task: Task, structure: Structure, threshold: float = 1e-2) -> Iterator[Scores]:
    """The mean rank of the unit's feature map (Lin et al., 2020, "HRank", eq. 4 and 5).

    score_u = mean over samples of #{singular values of the map > threshold x the largest}

    The map of an image's channel is (height, all further positions). In a sequence, where a sample has a row only, it is (samples, steps)
    of the batch. Where a weight reads values without positions, the rank is 1 if any of them is not zero: there it only tells the dead.
    """
    if not 0 <= threshold < 1:
        raise BadInput(f"The threshold is a fraction of the largest singular value, in 0..1, but it is {threshold!r}. Try 0.01.")
    yield from of_units(task, structure, lambda x: ranks(x, threshold), "hrank")


def of_units(task: Task, structure: Structure, statistic: Callable[[Tensor], Tensor], criterion: str) -> Iterator[Scores]:
    """A statistic of what weights read, averaged over the unit's places in all that read it."""
    if structure.kind != "channels":
        raise BadInput(
            f"The criterion {criterion} looks at the activation of a unit, which one of the structure {structure.kind} does not have. "
            "Choose wanda, taylor or fisher, or structure='channels'."
        )
    for lines in inputs(task, statistic):
        number = structure.gather({line: torch.ones_like(value) for line, value in lines.items()})
        check_seen(number, criterion)
        yield tree.apply(torch.div, structure.gather(lines), number)


def check_seen(number: Scores, criterion: str) -> None:
    for name, value in number.items():
        if not value.all():
            raise BadInput(
                f"The criterion {criterion} looks at what weights are multiplied with, but of some units of {name} none was seen to be "
                "(a recurrent layer's weights, one computed from parameters, an embedding). Choose taylor, fisher or magnitude."
            )


def rows(x: Tensor) -> Tensor:
    """(samples, channels, positions...) -> (channels, all else)."""
    return plain(x).movedim(1, 0).flatten(1)


def norm(x: Tensor) -> Tensor:
    return rows(x).norm(dim=1)


def ranks(x: Tensor, threshold: float) -> Tensor:
    values = plain(x)
    if values.dim() > 3:
        maps = values.flatten(3)
    elif values.dim() == 3:
        maps = values.movedim(1, 0)[None]
    else:
        maps = values.movedim(1, 0)[None, :, :, None]
    return torch.linalg.matrix_rank(maps, rtol=threshold).to(values.dtype).mean(0)
