"""Criteria from a distribution over the weights: how far zero lies from what the data, or the training, says a weight is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from .. import tree
from ..errors import BadInput
from ..flows import sums
from ..structure import Structure
from ..task import Task, plain
from ..tree import Scores, Tree


@dataclass(frozen=True)
class Posterior:
    """A normal distribution of every weight, independent of the others."""

    mean: Tree
    variance: Tree


def laplace(task: Task, prior: float = 1.0) -> Posterior:
    """The posterior around the weights by Laplace's method, with the diagonal of the empirical Fisher for the curvature.

    1 / sigma_i^2 = sum over samples of g_i^2 + prior,    prior: the precision of the normal prior, as a weight decay

    The loss has to be the negative log-likelihood of a sample.
    """
    if not prior > 0:
        raise BadInput(f"The precision of the prior must be above zero, but it is {prior!r}. Try prior=1.0.")
    weights = task.parameters()
    precision = tree.apply(lambda value: torch.full_like(plain(value), prior), weights)
    for squares in sums(task, set(weights)):
        for name, value in precision.items():
            value.add_(squares[name])
    return Posterior(tree.apply(plain, weights), tree.apply(torch.reciprocal, precision))


@dataclass
class Iterates:
    """Mean and variance of the weights over training steps (the diagonal of SWAG, Maddox et al., 2019), by Welford's update.

    Call `add(model)` after steps of a training that has come to rest; `partial(snr, posterior=iterates.posterior())` is the criterion.
    """

    count: int = 0
    mean: Tree = field(default_factory=dict)
    squares: Tree = field(default_factory=dict)

    def add(self, model: nn.Module) -> None:
        weights = {name: plain(value) for name, value in model.named_parameters() if value.is_floating_point()}
        if not self.count:
            self.mean, self.squares = tree.apply(torch.zeros_like, weights), tree.apply(torch.zeros_like, weights)
        self.count += 1
        for name, value in weights.items():
            deviation = value - self.mean[name]
            self.mean[name] += deviation / self.count
            self.squares[name] += deviation * (value - self.mean[name])

    def posterior(self) -> Posterior:
        """Raises BadInput before the second step. A weight that never moved gets the smallest variance of its type above zero."""
        if self.count < 2:
            raise BadInput(f"A variance over training steps needs two or more, but {self.count} came. Call add(model) after each step.")
        spread = tree.apply(lambda value: (value / (self.count - 1)).clamp_min(torch.finfo(value.dtype).eps ** 2), self.squares)
        return Posterior(dict(self.mean), spread)


def snr(task: Task, structure: Structure, posterior: Posterior | None = None, prior: float = 1.0) -> Iterator[Scores]:
    """Signal to noise: how many standard deviations zero is away (Graves, 2011; Blundell et al., 2015, sec. 5.1).

    score_u = sqrt(sum over i in u of mu_i^2 / sigma_i^2),    of a connection |mu| / sigma

    That is Mahalanobis' distance of "u is zero" from the mean. The posterior is `laplace(task, prior)`, or one that is given
    (`Iterates.posterior()`: from training steps). Yields once, for all samples.
    """
    yield tree.apply(torch.sqrt, distance(structure, posterior or laplace(task, prior)))


def needed(task: Task, structure: Structure, posterior: Posterior | None = None, prior: float = 1.0) -> Iterator[Scores]:
    """The probability that the unit is needed: that a draw from the posterior lies nearer to its mean than zero does.

    score_u = P(chi^2 with n_u degrees of freedom < snr_u^2),    of a connection 2 Phi(|mu| / sigma) - 1

    One minus it is the level at which a test would just keep "u is zero". It says how sure one can be, but tells nothing apart among units
    that are surely needed (all 1) or of many weights each of which may be zero (all 0): rank by `snr`. Yields once, for all samples.
    """
    squares = distance(structure, posterior or laplace(task, prior))
    number = structure.reduce(tree.apply(torch.ones_like, task.parameters()))
    yield tree.apply(lambda square, count: torch.special.gammainc(count.double() / 2, square.double() / 2), squares, number)


def distance(structure: Structure, posterior: Posterior) -> Scores:
    """Sum of mu^2 / sigma^2."""
    return structure.reduce(tree.apply(lambda mean, variance: mean.square() / variance, posterior.mean, posterior.variance))
