from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from laws import left_alone
from secateur.allocate import select_by_curves
from secateur.curves import Curves, curves
from secateur.errors import BadInput, Unreadable
from secateur.evaluate import evaluate
from secateur.select import select_each

AMOUNTS = (0.25, 0.5)
module = sys.modules["secateur.curves"]  # the package has a function of that name


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(x).relu()).relu())


def loss(outputs: object, targets: object) -> Tensor:
    assert isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    return F.cross_entropy(outputs, targets)


METRICS = {"top1": "top1", "loss": loss}


@pytest.fixture
def given() -> Iterator[tuple[nn.Module, sc.Structure, dict[str, Tensor], list[tuple[Tensor, Tensor]]]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data = Net(), [(torch.randn(7, 5), torch.randint(0, 3, (7,))) for _ in range(3)]
        structure = sc.channels(model, data[0][0])
        yield model, structure, {name: torch.rand(group.size) for name, group in structure.groups.items()}, data


def test_every_point_is_the_model_without_that_share_of_that_group(given) -> None:
    model, structure, scores, data = given
    told: list[tuple[int, int | None]] = []
    found = left_alone(model, lambda: curves(model, structure, scores, data, METRICS, AMOUNTS, progress=lambda *now: told.append(now)))
    assert isinstance(found, Curves)
    assert found.dense == evaluate(model, data, METRICS)
    assert set(found.points) == {"a", "b"} and told[0] == (0, 4) and told[-1] == (4, 4)
    for name, points in found.points.items():
        assert list(points) == list(AMOUNTS)
        for amount, point in points.items():
            small = sc.shrink(model, select_each(scores, structure, {name: amount}))
            assert point == evaluate(small, data, METRICS)


def test_losses_are_how_much_worse_it_gets(given) -> None:
    found = Curves({"top1": 0.9, "loss": 1.0}, {"a": {0.5: {"top1": 0.7, "loss": 1.5}, 0.25: {"top1": 0.95, "loss": 1.0}}})
    assert found.losses("top1")["a"] == pytest.approx({0.0: 0.0, 0.25: -0.05, 0.5: 0.2})
    assert found.losses("loss") == {"a": {0.0: 0.0, 0.25: 0.0, 0.5: 0.5}}
    assert found.losses("loss", falls=True)["a"][0.5] == -0.5
    with pytest.raises(BadInput, match=r"no 'top5' in these curves\. Choose top1, loss"):
        found.losses("top5")


def test_curves_are_enough_for_a_plan(given) -> None:
    model, structure, scores, data = given
    found = curves(model, structure, scores, data, METRICS, (0.25, 0.5, 0.75))
    plan = select_by_curves(scores, structure, found.losses("loss"), 0.4, "macs")
    assert plan.cost["macs"][1] <= 0.6 * plan.cost["macs"][0]
    assert sc.shrink(model, plan)(data[0][0]).shape == (7, 3)


class Killed(BaseException):
    pass


def test_a_run_that_was_killed_goes_on_behind_its_last_point(given, tmp_path: Path) -> None:
    model, structure, scores, data = given
    file = tmp_path / "curves.json"
    whole = curves(model, structure, scores, data, METRICS, AMOUNTS)
    counted = mock.Mock(side_effect=[*[mock.DEFAULT] * 3, Killed()], wraps=evaluate)
    with mock.patch.object(module, "evaluate", counted), pytest.raises(Killed):
        curves(model, structure, scores, data, METRICS, AMOUNTS, file=file)
    assert len(json.loads(file.read_text())["points"]["a"]) == 2
    with mock.patch.object(module, "evaluate", wraps=evaluate) as again:
        assert curves(model, structure, scores, data, METRICS, AMOUNTS, file=file) == whole
    assert again.call_count == 2, "the two points that are missing"
    with mock.patch.object(module, "evaluate", wraps=evaluate) as third:
        more = curves(model, structure, scores, data, METRICS, (0.25, 0.75), groups=["b"], file=file)
    assert third.call_count == 1 and list(more.points) == ["b"] and list(more.points["b"]) == [0.25, 0.75]
    assert more.points["b"][0.25] == whole.points["b"][0.25]


@pytest.mark.parametrize("changed", ["scores", "metrics", "model", "multiple"])
def test_a_file_of_other_curves_is_refused(given, tmp_path: Path, changed: str) -> None:
    model, structure, scores, data = given
    file = tmp_path / "curves.json"
    curves(model, structure, scores, data, METRICS, (0.5,), ["a"], file=file)
    other = Net() if changed == "model" else model
    asked = {
        "structure": sc.channels(other, data[0][0]) if changed == "model" else structure,
        "scores": {name: value + 1 for name, value in scores.items()} if changed == "scores" else scores,
        "metrics": ("top1",) if changed == "metrics" else METRICS,
        "multiple": 2 if changed == "multiple" else 1,
    }
    with pytest.raises(BadInput, match="of another model, other scores or other metrics"):
        curves(other, data=data, amounts=(0.5,), groups=["a"], file=file, **asked)  # type: ignore[arg-type]


DAMAGED = (
    "", "[]", "{}", '{"version": 1}', '{"version": 9, "dense": {}, "points": {}, "key": ""}',
    '{"version": 1, "key": "", "dense": {"a": []}, "points": {}}',
)  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_is_said(given, tmp_path: Path, text: str) -> None:
    model, structure, scores, data = given
    file = tmp_path / "curves.json"
    file.write_text(text)
    with pytest.raises(Unreadable, match=r"curves\.json has (no curves|curves of version).*Delete it and measure again"):
        curves(model, structure, scores, data, METRICS, (0.5,), file=file)


def test_json_and_back(given) -> None:
    model, structure, scores, data = given
    found = curves(model, structure, scores, data, METRICS, AMOUNTS, groups=["a"])
    assert Curves.from_json(found.to_json()) == found
    with pytest.raises(BadInput, match="No group is called c"):
        curves(model, structure, scores, data, groups=["c"])
