"""criteria/unlabelled.py, against the second derivative of the distance between the full and the gated model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.criteria.curvature import exact_hessian
from secateur.criteria.unlabelled import kl_loss, mse_loss, output_features, output_kl, output_mse, output_norm, to_itself
from secateur.errors import BadInput
from secateur.structure import as_graph, weights
from secateur.task import Task
from toy import Hidden, batches, mlp


def toy() -> tuple[Task, Hidden]:
    model = mlp(4, 5, 3)
    return Task(model, batches(1, 6, 4, 3), F.cross_entropy, seed=1), Hidden(model)


def gated(task: Task, structure: Hidden, gates: Tensor) -> Tensor:
    masks = structure.expand({"h0": gates})
    values = {name: value * masks[name] for name, value in task.parameters().items()}
    return torch.func.functional_call(task.model, values, (task.data[0][0],))


def half_second_derivatives(distance: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.autograd.functional.hessian(distance, torch.ones(5, dtype=torch.float64)).diag() / 2


@pytest.mark.parametrize(("criterion", "loss"), [(output_mse, mse_loss), (output_kl, kl_loss)])
def test_the_score_is_the_second_order_term_of_the_distance(criterion, loss) -> None:  # type: ignore[no-untyped-def]
    task, structure = toy()
    ones = torch.ones(5, dtype=torch.float64)
    full = gated(task, structure, ones).detach()
    expected = half_second_derivatives(lambda gates: loss(gated(task, structure, gates), full).mean())
    (few,) = criterion(task, structure, draws=10)
    (many,) = criterion(task, structure, draws=1000)
    assert (many["h0"] - expected).norm() < 0.1 * expected.norm() < (few["h0"] - expected).norm()


def test_features_are_what_the_last_matrix_reads() -> None:
    task, structure = toy()
    (scores,) = output_features(task, structure, draws=1000)
    x = task.data[0][0]

    def distance(gates: Tensor) -> Tensor:
        w = {name: value * structure.expand({"h0": gates})[name] for name, value in task.parameters().items()}
        features = torch.tanh(F.linear(x, w["0.weight"], w["0.bias"]))
        return (features - task.model[:2](x).detach()).square().sum(1).mean() / 2

    expected = half_second_derivatives(distance)
    assert (scores["h0"] - expected).norm() < 0.1 * expected.norm()


class ByHand(nn.Module):
    """The same function without a layer, its last matrix computed, and both kept under the same names."""

    def __init__(self, model: nn.Module, last: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        for name, value in model.named_parameters():
            self.register_module(name[0], getattr(self, name[0], nn.Module()))
            getattr(self, name[0]).register_parameter(name[2:], value)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.get_submodule("0"), self.get_submodule("2")
        features = torch.zeros(len(x), 5, dtype=x.dtype)
        features[:] = torch.tanh_(x @ first.weight.T + first.bias)
        return self.last(features, second.weight) + second.bias


LAST = {
    "a product": lambda x, w: x @ w.T,
    "a function": lambda x, w: F.linear(x, w),
    "einsum": lambda x, w: torch.einsum("ni,oi->no", x, w),
    "masked": lambda x, w: x @ (w * torch.ones(5, dtype=w.dtype)).mT,
    "normed": lambda x, w: F.linear(x, torch._weight_norm(w, w.norm(dim=1, keepdim=True))),
    "a convolution": lambda x, w: F.conv1d(x[:, :, None], w[:, :, None])[:, :, 0],
}


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, where it copies what it exported
@pytest.mark.parametrize("kind", [*LAST, "exported", "as graph"])
def test_features_without_a_layer_are_those_with_it(kind: str) -> None:
    task, structure = toy()
    x = task.data[0][0]
    made = {"exported": lambda: torch.export.export(task.model, (x,)).module(), "as graph": lambda: as_graph(task.model, x)}
    model = made[kind]() if kind in made else ByHand(task.model, LAST[kind])
    (expected,) = output_features(task, structure)
    before = model.forward
    (found,) = output_features(replace(task, model=model), structure)
    torch.testing.assert_close(found["h0"], expected["h0"])
    assert model.forward == before


def test_no_matrix_no_features() -> None:
    scale = nn.BatchNorm1d(5, dtype=torch.float64)
    task = Task(scale, [(torch.randn(3, 5, dtype=torch.float64), None)], lambda *_: None)  # type: ignore[arg-type, return-value]
    _, structure = toy()
    with pytest.raises(BadInput, match="nothing went into a layer with a matrix"):
        list(output_features(task, structure))


def test_the_distance_of_a_model_to_itself_is_zero_and_curved() -> None:
    task, _ = toy()
    for loss in (mse_loss, kl_loss):
        itself = to_itself(task, loss)
        (value, _), (gradients,) = next(itself.losses()), itself.gradients()
        assert abs(value.item()) < 1e-12 and all(g.abs().max() < 1e-12 for g in gradients.values())
        (scores,) = exact_hessian(itself, weights(task.model))
        assert scores["2.weight"].min() > 0
    (many,) = output_mse(task, weights(task.model), draws=1000)  # at a distance of zero, Gauss-Newton is the Hessian
    (exact,) = exact_hessian(to_itself(task, mse_loss), weights(task.model))
    assert (many["2.weight"] - exact["2.weight"]).norm() < 0.1 * exact["2.weight"].norm()


def test_the_outputs_norm_is_differentiated_by_the_gate() -> None:
    task, structure = toy()
    norm = lambda gates: gated(task, structure, gates).square().sum(1).mean()
    (expected,) = torch.autograd.grad(norm(gates := torch.ones(5, dtype=torch.float64, requires_grad=True)), gates)
    (scores,) = output_norm(task, structure)
    torch.testing.assert_close(scores["h0"], expected.abs())


def test_labels_are_not_looked_at() -> None:
    task, structure = toy()
    other = Task(task.model, [(task.data[0][0], None)], lambda *_: None, seed=1)  # type: ignore[arg-type, return-value]
    for criterion in (output_mse, output_kl, output_features, output_norm):
        torch.testing.assert_close(list(criterion(task, structure)), list(criterion(other, structure)), rtol=0, atol=0)


class Answers(nn.Module):
    """A model that answers in a dictionary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"hidden": self.inner[0](x), "logits": self.inner(x)}


def test_logits_are_found_in_a_dictionary() -> None:
    task, _ = toy()
    model = Answers(task.model)
    structure = weights(model)
    (scores,) = output_kl(Task(model, task.data, task.loss, seed=1), structure)
    (plain,) = output_kl(task, weights(task.model))
    torch.testing.assert_close(scores["inner.2.weight"], plain["2.weight"])


def test_what_has_no_logits_or_no_draws_is_said() -> None:
    task, structure = toy()
    flat = Task(nn.Sequential(task.model, nn.Flatten(0)), task.data, task.loss)
    with pytest.raises(BadInput, match=r"A divergence needs logits.*\(18,\).*choose the criterion output_mse"):
        list(output_kl(flat, weights(flat.model)))
    with pytest.raises(BadInput, match="draws is 0"):
        list(output_mse(task, structure, draws=0))
    constant = Task(nn.Sequential(task.model, Constant()), task.data, task.loss)
    with pytest.raises(BadInput, match="hold no tensor that depends on the weights"):
        list(output_mse(constant, weights(constant.model)))


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(3)


def test_more_draws_are_less_noisy() -> None:
    task, structure = toy()
    spread = []
    for draws in (1, 16):
        other = [Task(task.model, task.data, task.loss, seed) for seed in range(12)]
        runs = [next(functools.partial(output_mse, draws=draws)(each, structure))["h0"] for each in other]
        spread.append(float(torch.stack(runs).std(0).mean()))
    assert spread[1] < spread[0] / 2
