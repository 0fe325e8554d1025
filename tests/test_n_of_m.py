"""Of every m connections along the inputs n stay: against a loop over the runs."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from laws import outputs, same
from secateur.structure import Run
from secateur.structure.n_of_m import best_of


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.BatchNorm2d(12), nn.ReLU(),
            nn.ConvTranspose2d(12, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        ).double()  # fmt: skip


X = torch.randn(6, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
INPUTS = {"2.weight": 1, "5.weight": 0, "8.weight": 1}  # the dimension along which the inputs lie


def runs(value: Tensor, dim: int, m: int) -> list[Tensor]:
    """Every run of m, one by one."""
    others = [range(size) for d, size in enumerate(value.shape) if d != dim]
    lines = [value.movedim(dim, -1)[place] for place in itertools.product(*others)]
    return [line[start : start + m] for line in lines for start in range(0, len(line), m)]


COUNTS = st.integers(2, 5).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m)))


@given(COUNTS, st.integers(0, 2), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_the_best_of_every_run_stay_and_of_equals_the_later(counts: tuple[int, int], dim: int, ties: bool, seed: int) -> None:
    n, m = counts
    shape = [2, 3, 2]
    shape[dim] = 2 * m
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    scores = scores.round() if ties else scores
    keep = best_of(scores, Run(n, m, dim))
    assert keep.shape == scores.shape and keep.is_contiguous()
    for values, stays in zip(runs(scores, dim, m), runs(keep, dim, m)):
        order = sorted(range(m), key=lambda place: (float(values[place]), place))
        assert stays.nonzero().flatten().tolist() == sorted(order[m - n :])


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (3, 4)])
def test_every_run_keeps_n_and_what_does_not_divide_is_left_alone(n: int, m: int) -> None:
    model = net()
    pruned = sc.prune(model, X, [(X, Y)], F.cross_entropy, structure=f"{n}:{m}", criterion="magnitude", repair=None)
    assert pruned.plan.structure == f"{n}:{m}" and {group.kind for group in pruned.structure.groups.values()} == {"connection"}
    weights = dict(pruned.model.named_parameters())
    assert pruned.plan.frozen == {"0.weight": f"its 3 inputs are no multiple of {m}"} and list(pruned.plan.keep) == list(INPUTS)
    assert torch.equal(weights["0.weight"], model[0].weight)
    for name, dim in INPUTS.items():
        kept, dense = weights[name].detach(), model.state_dict()[name]
        for mine, was in zip(runs(kept, dim, m), runs(dense, dim, m)):
            assert int(mine.count_nonzero()) == n
            assert float(mine.abs().sum()) == pytest.approx(float(was.abs().sort().values[m - n :].sum()))
    units = float(sum(model.state_dict()[name].numel() for name in INPUTS))
    assert pruned.plan.cost["units"] == (units, units * n / m)
    assert pruned.plan.made["amount"] is None and pruned.plan.made["cut"] is None


def test_it_comes_back_from_disk(tmp_path: Path) -> None:
    pruned = sc.prune(net(), X, [(X, Y)], F.cross_entropy, structure=sc.n_of_m(net(), example=X))
    sc.save(tmp_path / "out", pruned.model, pruned.plan)
    same(outputs(sc.load(tmp_path / "out", net), X), outputs(pruned.model, X), 0.0)
    plan = sc.read_plan(tmp_path / "out")
    assert plan.structure == "2:4" and all(torch.equal(plan.keep[name], mask) for name, mask in pruned.plan.keep.items())
    rows = sc.compare({"dense": net(), "2:4": pruned.model}, data=[(X, Y)]).rows
    assert rows["dense"]["nonzeros"] - rows["2:4"]["nonzeros"] == plan.cost["units"][0] - plan.cost["units"][1] > 0


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"amount": 0.5}, "amount="), ({"budget": "1 MB"}, "budget="), ({"threshold": 0.1}, "threshold="), ({"multiple": 2}, "multiple="),
        ({"least": 0.2}, "least="), ({"most": 0.3}, "most="),
    ],
)  # fmt: skip
def test_nothing_else_says_how_much(asked: dict[str, object], what: str) -> None:
    structure = sc.n_of_m(net())
    scores = {name: torch.rand(group.shape) for name, group in structure.groups.items()}
    with pytest.raises(sc.BadInput, match=f"The structure 2:4 itself says how much goes.* Leave {what} out"):
        sc.select(scores, structure, **asked)  # type: ignore[arg-type]
    with pytest.raises(sc.BadInput, match="amounts of single groups"):
        sc.select_each(scores, structure, {"8.weight": 0.5})
    with pytest.raises(sc.BadInput, match="curves against the amount"):
        sc.curves(net(), structure, scores, [(X, Y)])
    with pytest.raises(sc.BadInput, match="the rounds"):
        next(sc.rounds(net(), X, [(X, Y)], F.cross_entropy, structure="2:4", amount=0.5))
    with pytest.raises(sc.BadInput, match="drop="):
        sc.prune(net(), X, [(X, Y)], F.cross_entropy, structure="2:4", drop=1.0, validation=[(X, Y)])


def test_whole_weights_can_be_left_as_they_are_and_an_earlier_plan_goes_on() -> None:
    model = net()
    structure = sc.n_of_m(model)
    scores = {name: torch.rand(group.shape, generator=torch.Generator().manual_seed(0)) for name, group in structure.groups.items()}
    plan = sc.select(scores, structure, keep=["2.*"])
    assert plan.keep["2.weight"].all() and plan.keep["8.weight"].sum() == 12 and plan.made["keep"] == ["2.*"]
    first = {name: torch.ones(group.shape, dtype=torch.bool) for name, group in structure.groups.items()}
    first["8.weight"][0] = torch.tensor([True, True, True, False, False, False, False, True])
    within = sc.select(scores, structure, within=first)
    assert [int(part.sum()) for part in within.keep["8.weight"][0].split(4)] == [2, 1]
    assert not (within.keep["8.weight"] & ~first["8.weight"]).any()


def test_what_multiplies_nothing_is_left_alone() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(9, 8), nn.Parameter(torch.zeros(1, 4, 8))
            self.rnn, self.out = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.out(self.rnn(self.words(x) + self.places)[0][:, -1])
            return made

    structure = sc.n_of_m(Words(), example=torch.zeros(2, 4, dtype=torch.long))
    assert set(structure.groups) == {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "out.weight"}
    assert {name: group.frozen for name, group in structure.frozen.items()} == dict.fromkeys(
        ("words.weight", "places"), "it multiplies nothing in the run"
    )
    assert "words.weight: 72 units, frozen: it multiplies nothing in the run" in structure.explain()


@pytest.mark.parametrize(("n", "m"), [(4, 4), (0, 4), (4, 2), (2.0, 4), (True, 4), ("2", 4)])
def test_numbers_that_are_none_are_refused(n: object, m: object) -> None:
    with pytest.raises(sc.BadInput, match="Of every m connections n stay"):
        sc.n_of_m(net(), n, m)  # type: ignore[arg-type]


def test_a_model_in_which_nothing_divides_says_so() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(sc.NothingToPrune, match="weight: its 3 inputs are no multiple of 4"):
        sc.prune(model, x, [(x, torch.tensor([0, 1, 0, 1]))], F.cross_entropy, structure="2:4")
