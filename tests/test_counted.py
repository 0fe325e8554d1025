from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.criteria import CRITERIA
from secateur.errors import BadInput, BadLoss
from secateur.structure import weights
from secateur.task import Task
from toy import mlp

NONE = -100
NAN = float("nan")
Pair = Callable[[Tensor, Tensor], Tensor]


def there(targets: Tensor) -> Tensor:
    return targets != NONE


def over_those_that_count(z: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(z, t, ignore_index=NONE, reduction="sum") / there(t).sum()


MEANS: dict[str, Pair] = {  # the mean is over the targets that count
    "cross entropy": F.cross_entropy,
    "nll": lambda z, t: F.nll_loss(z.log_softmax(1), t),
    "of an image": lambda z, t: F.cross_entropy(z.T[None, :, :, None], t[None, :, None]),
    "smoothed": lambda z, t: F.cross_entropy(z, t, label_smoothing=0.1),
    "a quotient": over_those_that_count,
    "chosen ones": lambda z, t: F.cross_entropy(z, t, reduction="none")[there(t)].mean(),
    "chosen rows": lambda z, t: F.cross_entropy(z[there(t)], t[there(t)]),
    "squares": lambda z, t: F.mse_loss(z[there(t)], 2 * z.detach()[there(t)]),
    "magnitudes": lambda z, t: F.l1_loss(z[there(t)], 2 * z.detach()[there(t)]),
    "smooth": lambda z, t: F.smooth_l1_loss(z[there(t)], 2 * z.detach()[there(t)]),
    "huber": lambda z, t: F.huber_loss(z[there(t)], 2 * z.detach()[there(t)]),
    "by logits": lambda z, t: F.binary_cross_entropy_with_logits(z[there(t)], (z.detach()[there(t)] < 0).double()),
    "two terms": lambda z, t: F.cross_entropy(z, t) + F.mse_loss(z[there(t)], 2 * z.detach()[there(t)]),
}


def gradients(loss: Pair, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    (found,) = Task(mlp(5, 7, 3), [(x, y)], loss).gradients()
    return found


@pytest.mark.parametrize("loss", MEANS.values(), ids=MEANS)
def test_a_mean_over_none_is_0_and_so_is_its_derivative(loss: Pair) -> None:
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.full((4,), NONE)
    assert loss(x, y).isnan()
    assert not any(value.any() for value in gradients(loss, x, y).values())
    y[1] = 2
    assert all(value.any() for value in gradients(loss, x, y).values())


learned = torch.zeros(3, dtype=torch.float64, requires_grad=True)
OTHERS: dict[str, Pair] = {  # NaN for another reason, too
    "a term that counts": lambda z, t: F.cross_entropy(z, t) + z.square().mean(),
    "outputs": lambda z, t: F.cross_entropy(z * NAN, t),
    "a constant": lambda z, t: F.cross_entropy(z, t.clamp(0)) + NAN,
    "a logarithm that is cut": lambda z, t: -(-1 - z.square()).log().clamp(min=-100).mean(),
    "NaN targets that are cut": lambda z, t: (1 - z * NAN).clamp(min=0).mean(),
    "no direction": lambda z, t: (z * 0 / (z * 0).norm()).sum(),
    "weights of its own": lambda z, t: F.cross_entropy(z, t) + learned.sum(),
    "infinity": lambda z, t: z.square().sum() / there(t).sum(),
    "a masked quotient": lambda z, t: (F.cross_entropy(z, t.clamp(0), reduction="none") * there(t)).sum() / there(t).sum(),
    "no model": lambda z, t: F.cross_entropy(torch.zeros_like(z).requires_grad_(), t),
}


@pytest.mark.parametrize("loss", OTHERS.values(), ids=OTHERS)
def test_any_other_loss_that_is_not_finite_is_refused(loss: Pair) -> None:
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.full((4,), NONE)
    with pytest.raises(BadLoss, match=r"batch 0 the loss is (nan|inf)"):
        gradients(loss, x, y)


def test_the_way_out_of_a_mean_over_none_that_shows_no_derivative() -> None:
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.full((4,), NONE)
    with pytest.raises(BadLoss, match="and none does, let it divide by at least 1"):
        gradients(OTHERS["a masked quotient"], x, y)
    mended = gradients(lambda z, t: (z.sum(1) * there(t)).sum() / there(t).sum().clamp(min=1), x, y)
    assert not any(value.any() for value in mended.values())


class WithLoss(nn.Module):
    """As language models give it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(5, 7, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits.float(), labels), "logits": logits}


def test_a_loss_that_the_model_computes() -> None:
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.full((4,), NONE)
    task = Task(WithLoss(), [{"x": x, "labels": y}], lambda outputs, _: outputs["loss"])  # type: ignore[index]
    (found,) = task.gradients()
    assert found and not any(value.any() for value in found.values())


# measured -------------------------------------------------------------------------------------------------------------------------------


def per_position(z: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(z.flatten(0, 1), t.flatten())


OF_THE_LOSS = [
    "gradient", "taylor", "snip", "grasp", "fisher", "movement", "gradient_activation", "exact_hessian", "fisher_sample", "taylor_sample",
    "fisher_diagonal",
]  # fmt: skip


@pytest.mark.parametrize("criterion", OF_THE_LOSS)
def test_a_sample_without_targets_is_a_context_of_zeros(criterion: str) -> None:
    model, x = mlp(5, 7, 3), torch.randn(4, 2, 5, dtype=torch.float64)
    y = torch.tensor([[0, 1], [NONE, 2], [NONE, NONE], [1, 1]])
    structure, some = sc.channels(model, x), [0, 1, 3]
    whole, less = (
        sc.measure(Task(model, [batch], per_position), structure, criterion, contexts="sample") for batch in ((x, y), (x[some], y[some]))
    )
    assert (whole.count, whole.samples) == (4, 4)
    for name, value in less.global_.items():
        torch.testing.assert_close(whole.global_[name], value * 3 / 4)
        torch.testing.assert_close(whole.local[name], less.local[name].clamp(min=0))


@pytest.mark.parametrize("criterion", [*CRITERIA])
def test_every_criterion_takes_such_a_sample_as_well_as_others(criterion: str) -> None:
    model, x = mlp(5, 7, 3), torch.randn(3, 2, 5, dtype=torch.float64)
    y = torch.tensor([[0, 1], [NONE, NONE], [1, 1]])
    structure = sc.channels(model, x)
    try:
        sc.measure(Task(model, [(x, y.clamp(0))], per_position), structure, criterion, contexts="sample")
    except BadInput:
        return  # it is not for this structure
    measured = sc.measure(Task(model, [(x, y)], per_position), structure, criterion, contexts="sample")
    assert all(value.isfinite().all() and value.any() for value in measured.global_.values())


def test_a_key_without_targets_and_connections() -> None:
    model, x = mlp(5, 7, 3), torch.randn(6, 5, dtype=torch.float64)
    y = torch.tensor([0, NONE, 1, NONE, 2, NONE])
    measured = sc.measure(Task(model, [(x, y)], F.cross_entropy), weights(model), "taylor", contexts="class")
    assert [*measured.keys] == ["-100", "0", "1", "2"]
    assert {key: any(value.any() for value in scores.values()) for key, scores in measured.keys.items()}["-100"] is False
