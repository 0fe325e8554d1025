from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.cost import cost
from secateur.errors import BadInput
from secateur.scope import SCOPES, Scope, per, place
from secateur.structure import Structure, all_kept, weights
from secateur.tree import Keep, Scores
from toy import Hidden, mlp

NET = Hidden(mlp(3, 4, 2, 2))


def scoped(name: str | Scope, scores: Scores, structure: Structure = NET, keep: Keep | None = None) -> Scores:
    return (SCOPES[name] if isinstance(name, str) else name)(scores, structure, keep or all_kept(structure))


def test_global_leaves_scores_as_they_are() -> None:
    scores = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0])}
    assert scoped("global", scores) is scores


def test_a_layers_scores_are_places_in_the_layer() -> None:
    scores = {"a": torch.tensor([30.0, 10.0, 20.0, 40.0]), "b": torch.tensor([[0.2, 0.1]])}
    places = scoped("layer", scores)
    assert places["a"].tolist() == [5 / 8, 1 / 8, 3 / 8, 7 / 8]
    assert places["b"].tolist() == [[3 / 4, 1 / 4]]


def test_equal_scores_keep_their_order() -> None:
    assert place(torch.zeros(4)).tolist() == [1 / 8, 3 / 8, 5 / 8, 7 / 8]
    assert place(torch.zeros(0)).shape == (0,)


def test_ranks_have_the_groups_level_and_no_outliers() -> None:
    scores = {"a": torch.tensor([1.0, 97.0, 2.0, 0.0])}
    assert scoped("ranks", scores)["a"].tolist() == [25 * 3 / 4, 25 * 7 / 4, 25 * 5 / 4, 25 * 1 / 4]
    assert scoped("ranks", scores)["a"].sum() == scores["a"].sum()


def test_ranks_of_negative_scores_keep_order_and_level() -> None:
    scores = {"a": torch.tensor([-100.0, -103.0, -101.0, -102.0]), "b": torch.tensor([3.0, -1.0])}
    found = scoped("ranks", scores)
    for name, values in scores.items():
        assert found[name].argsort().tolist() == values.argsort().tolist()
        assert found[name].sum().item() == pytest.approx(values.sum().item())
    assert found["b"].tolist() == [1 + 1, 1 - 1]
    structure = Hidden(mlp(3, 4, 4, 2))
    helpful = {"h0": torch.tensor([-103.0, -102.0, -101.0, -100.0]), "h1": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    assert sc.select(helpful, structure, 3 / 8, scope="ranks").removed() == {"h0": (3, 4), "h1": (0, 4)}


def test_lamp_is_the_share_of_the_squares_from_there_on() -> None:
    scores = {"a": torch.tensor([3.0, 1.0, 2.0, 1.0]), "b": torch.zeros(3)}
    found = scoped("lamp", scores)
    assert found["a"].tolist() == pytest.approx([9 / 9, 1 / 15, 4 / 13, 1 / 14])
    assert found["b"].tolist() == [0, 0, 0]
    assert found["a"].argmax() == 0 and found["a"].max() == 1  # the largest of every group stays longest
    tiny = scoped("lamp", {"a": scores["a"] * 1e-30})  # squares of float32 would be zero
    torch.testing.assert_close(tiny["a"], found["a"], rtol=1e-5, atol=0)
    with pytest.raises(BadInput, match="group a are negative"):
        scoped("lamp", {"a": torch.tensor([-1.0])})


class Twins(nn.Module):
    """Two blocks alike, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 6)) for n in (10, 10, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x)) + self.a(x))


def test_units_of_like_structure_compete_and_each_class_loses_the_same_fraction() -> None:
    structure = sc.channels(Twins(), torch.randn(2, 6))
    inner = {name for name in structure.groups if name.endswith(".0")}
    assert inner == {"a.0", "b.0", "c.0"}
    scores = {name: torch.rand(group.size) + (name == "b.0") + 5 * (name == "c.0") for name, group in structure.groups.items()}
    gone = {name: number for name, (number, _) in sc.select(scores, structure, 0.5, scope="isomorphic").removed().items()}
    assert gone["a.0"] + gone["b.0"] == 10 and gone["a.0"] == 9  # the best stays
    assert gone["c.0"] == 4
    layered = sc.select(scores, structure, 0.5, scope="layer").removed()
    assert layered["a.0"] == (5, 10) and layered["b.0"] == (5, 10)


@pytest.mark.parametrize("scope", ["per-mac", "per-parameter", "per-byte"])
@pytest.mark.parametrize("thin", [False, True])
def test_scores_per_cost_divide_by_what_leaves_with_the_unit(scope: str, thin: bool) -> None:
    of = {"per-mac": "macs", "per-parameter": "parameters", "per-byte": "bytes"}[scope]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    structure = sc.channels(net, torch.randn(2, 3, 16, 16))
    keep = all_kept(structure)
    if thin:
        keep["0"][:3] = False
    scores = {name: torch.ones(int(mask.sum())) for name, mask in keep.items()}
    found = scoped(scope, scores, structure, keep)
    for name, values in found.items():
        less = {**keep, name: keep[name].clone()}
        less[name][keep[name].nonzero()[0]] = False
        assert 1 / values[0].item() == pytest.approx(cost(structure, keep, of) - cost(structure, less, of), rel=1e-5)


def test_of_units_whose_removal_helps_those_go_first_that_save_more() -> None:
    """Negative scores are multiplied by the price; they stay below the positive ones, and a mean price leaves the sign's forms equal."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
    structure = sc.channels(net, torch.randn(1, 3, 12, 12))
    dear, cheap = "0", "2"
    alike = {name: -torch.ones(group.size) for name, group in structure.groups.items()}
    found = scoped("per-mac", alike, structure)
    assert found[dear].max() < found[cheap].min()
    plan = sc.select(alike, structure, 3 / 8, scope="per-mac")
    assert plan.removed() == {dear: (3, 4), cheap: (0, 4)}
    up = scoped("per-mac", {name: -values for name, values in alike.items()}, structure)
    saved = {name: 1 / float(values[0]) for name, values in up.items()}
    mean = (saved[dear] + saved[cheap]) / 2
    for name in structure.groups:
        assert found[name].tolist() == pytest.approx([-saved[name] / mean**2] * 4)
    mixed = scoped("per-mac", {dear: torch.tensor([-1.0, 2.0, 0.0, 3.0]), cheap: torch.tensor([1.0, -1e-6, -5.0, 4.0])}, structure)
    assert mixed[dear][0] < 0 < mixed[dear][1] and mixed[dear][2] == 0 and mixed[cheap][1] < 0 < mixed[cheap][0]


def test_a_cost_of_ones_own_is_shared_by_the_units_of_a_group() -> None:
    def seconds(structure: Structure, keep: object) -> float:
        counts = structure.count(keep)  # type: ignore[arg-type]
        return sum(counts.values()) / 1000

    scope = per(seconds)
    assert scope.__name__ == "per-seconds"
    scores = {"h0": torch.ones(4), "h1": torch.ones(2)}
    found = scoped(scope, scores)
    assert 1 / found["h0"].tolist()[0] == pytest.approx((3 + 1 + 2) / 1000) and 1 / found["h1"].tolist()[0] == pytest.approx(
        (4 + 1 + 2) / 1000
    )
    plan = sc.select(scores, NET, 0.2, of=seconds, scope=scope)
    assert plan.made["of"] == "seconds" and plan.made["scope"] == "per-seconds" and plan.cost["seconds"][1] <= 0.8 * plan.cost["seconds"][0]
    with pytest.raises(BadInput, match="No unit saves any free"):
        scoped(per(free), scores)


def free(structure: Structure, keep: object) -> float:
    return 1.0


def test_what_saves_nothing_leaves_last() -> None:
    """An embedding multiplies nothing."""
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    structure = weights(net, torch.tensor([[1, 2]]))
    scores = {name: torch.ones(group.shape) for name, group in structure.groups.items()}
    plan = sc.select(scores, structure, 0.3, scope="per-mac")
    assert plan.removed() == {"0.weight": (0, 20), "1.weight": (10, 12)}
