"""Quality against counting by hand; nothing of the caller's is changed; what does not fit is said in one sentence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import BadInput, MissingExtra, SecateurError
from secateur.evaluate import METRICS, compare, evaluate, metrics_module

try:
    metrics_module()
except MissingExtra as error:
    pytest.skip(str(error), allow_module_level=True)


def batches(classes: int, sizes: tuple[int, ...] = (7, 7, 3), seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 4, generator=generator), torch.randint(classes, (size,), generator=generator)) for size in sizes]


def net(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, classes))


def by_hand(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Sample by sample."""
    model.eval()
    first, five, seen, right = 0, 0, {}, {}
    for inputs, targets in data:
        for row, label in zip(model(inputs).tolist(), targets.tolist()):
            order = sorted(range(len(row)), key=lambda place: -row[place])
            first, five = first + (order[0] == label), five + (label in order[:5])
            seen[label], right[label] = seen.get(label, 0) + 1, right.get(label, 0) + (order[0] == label)
    model.train()
    count = sum(seen.values())
    return {"top1": first / count, "top5": five / count, "worst_class": min(right[label] / seen[label] for label in seen)} | {
        f"class {label}": right[label] / seen[label] for label in seen
    }


@pytest.mark.parametrize("classes", [2, 5, 6, 10])
def test_quality_is_what_counting_by_hand_gives(classes):
    model, data = net(classes), batches(classes)
    wanted = by_hand(model, data)
    measured = evaluate(model, data, list(METRICS))
    which = int(measured.pop("worst_class_is"))
    assert wanted[f"class {which}"] == wanted["worst_class"]
    if classes < 6:
        del wanted["top5"]  # it says nothing of so few classes
    assert measured == pytest.approx(wanted)


def test_a_class_without_samples_is_not_the_worst():
    data = [(torch.eye(3), torch.tensor([0, 0, 2]))]
    measured = evaluate(nn.Identity(), data, ("worst_class", "classes"))
    assert measured == {"worst_class": 0.5, "worst_class_is": 0.0, "class 0": 0.5, "class 2": 1.0}


def test_own_metrics_by_function_and_by_object():
    kept = metrics_module().MulticlassF1Score(num_classes=3)
    model, data = net(3), batches(3)

    def error(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    measured = evaluate(model, data, {"f1": kept, "error": error, "first": "top1"})
    inputs, targets = (torch.cat(parts) for parts in zip(*data))
    outputs = model.eval()(inputs)
    assert set(measured) == {"f1", "error", "first"}
    assert measured["error"] == pytest.approx(error(outputs, targets).item())
    assert measured["f1"] == pytest.approx(kept.clone()(outputs, targets).item())
    assert kept.update_count == 0


def test_batches_that_are_dicts():
    class Net(nn.Module):
        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"logits": x}

    data = [{"x": torch.eye(3), "labels": torch.tensor([0, 1, 1])}]
    assert evaluate(Net(), data, "top1") == {"top1": pytest.approx(2 / 3)}


def test_the_model_and_the_random_state_are_as_they_were():
    model = net(3)
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    data = torch.utils.data.DataLoader(list(zip(*batches(3)[0])), batch_size=2, shuffle=True)
    assert evaluate(model, data) == evaluate(model, data)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "data", "metrics", "said"),
    [
        (nn.Identity(), [], "top1", "no batch"),
        (nn.Identity(), [(torch.eye(3), torch.tensor([0, 1, 3]))], "top1", "from 0 to 3, but the model tells 3 classes"),
        (nn.Identity(), [(torch.eye(3), torch.tensor([0, -1, 2]))], "top1", "from -1 to 2"),
        (nn.Identity(), [(torch.eye(3), torch.tensor([0, 1]))], "top1", "one class number per sample"),
        (nn.Identity(), [(torch.eye(3), torch.eye(3))], "top1", "one class number per sample"),
        (nn.Identity(), [(torch.zeros(3, 2, 2), torch.tensor([0, 1, 1]))], "top1", "shape (samples, classes)"),
        (nn.Linear(4, 2), [(torch.eye(3), torch.tensor([0, 1, 1]))], "top1", "does not run"),
        (nn.Identity(), [torch.eye(3)], "top1", "(inputs, targets)"),
        (nn.Identity(), [(torch.eye(3), torch.tensor([0, 1, 2]))], "top2", "no metric 'top2'"),
        (nn.Identity(), [(torch.eye(3), torch.tensor([0, 1, 2]))], [3], "Give a name"),
        (nn.Identity(), [(torch.eye(3), torch.zeros(3, 2))], torch.sub, "sub could not be computed"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(model, data, metrics, said):
    with pytest.raises(BadInput) as caught:
        evaluate(model, data, metrics if isinstance(metrics, (str, list)) else [metrics])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_compare_measures_what_it_is_given_and_nothing_else():
    models = {"small": net(3), "dense": net(3)}
    assert set(compare(models).columns) == {"parameters", "nonzeros", "bytes", "compressed"}
    table = compare(models, batches(3), example=torch.zeros(2, 4), batches=(1, 2), memory=False, dense="dense")
    assert list(table.rows) == ["dense", "small"]
    assert list(table.columns)[:3] == ["top1", "worst_class", "worst_class_is"]
    assert {"macs", "ms_1", "ms_2_p95"} <= set(table.columns) and "memory" not in table.columns
    assert table.rows["dense"]["macs"] == 4 * 16 + 16 * 3


def test_compare_refuses_nothing_to_compare():
    with pytest.raises(SecateurError, match="no model to compare"):
        compare({})
    with pytest.raises(SecateurError, match="Name one of a"):
        compare({"a": net(3)}, dense="b")
