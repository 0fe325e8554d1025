"""The pipeline in one call."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from cases import CASES
from test_channels import outputs, same


def residual() -> nn.Module:
    return next(case for case in CASES if case.name == "option a").model()


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64), torch.randint(0, 3, (8,), generator=generator))
        for _ in range(count)
    ]


@pytest.mark.parametrize("structure", ["channels", "weights", "blocks", "4x1"])
@pytest.mark.parametrize("of", ["units", "parameters", "macs", "bytes"])
def test_the_budget_is_met_and_the_model_untouched(structure: str, of: str):
    model, data = residual(), batches()
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    pruned = sc.prune(model, data[0][0], data, F.cross_entropy, structure=structure, of=of, amount=0.3, contexts="class", local=0.3)
    dense, now = pruned.plan.cost[of]
    assert now <= 0.7 * dense
    assert torch.equal(torch.get_rng_state(), state) and model.training and all(value.grad is None for value in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert pruned.plan.made["criterion"] == "taylor" and pruned.plan.made["local"] == 0.3


def test_one_call_is_the_stages_one_by_one():
    model, data = residual(), batches()
    pruned = sc.prune(model, data[0][0], data, F.cross_entropy, amount=0.4, of="macs", local=0.5, contexts="class")
    structure = sc.channels(model, data[0][0])
    measured = sc.measure(sc.Task(model, data, F.cross_entropy), structure, "taylor", contexts="class")
    plan = sc.select(sc.merge(measured, local=0.5), structure, amount=0.4, of="macs")
    assert all(torch.equal(pruned.plan.keep[name], keep) for name, keep in plan.keep.items())
    small = sc.shrink(sc.with_values(model, sc.least_squares(model, plan, data)), plan)
    same(outputs(small, data[0][0]), outputs(pruned.model, data[0][0]))


def test_pruning_nothing_changes_nothing():
    model, data = residual(), batches()
    pruned = sc.prune(model, data[0][0], data, F.cross_entropy, amount=0.0)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), pruned.model.state_dict().values()))


@pytest.mark.parametrize(
    "options, then",
    [
        ({"amount": 0.3}, [(done, 4) for done in range(1, 5)]),  # three convolutions and a linear layer
        ({"amount": 0.3, "repair": "moments"}, [(done, 4) for done in range(1, 5)]),
        ({"amount": 0.3, "repair": "statistics"}, []),
        ({"amount": 0.3, "repair": None}, []),
        ({"drop": 100.0}, [(done, 7) for done in range(8)]),
    ],
)
def test_progress_is_told_of_batches_and_then_of_weights_or_trials(options: dict[str, object], then: list[tuple[int, int]]):
    model, data, told = residual(), batches(), []
    sc.prune(model, data[0][0], data, F.cross_entropy, validation=batches(1), progress=lambda *now: told.append(now), **options)
    assert told == [(1, 3), (2, 3), (3, 3), *then]


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"amount": 1.5}, sc.BadInput, "0..1"),
        ({"amount": 0.9999, "of": "macs"}, sc.BudgetUnreachable, "at most 0."),
        ({"amount": 0.5, "structure": "neurons"}, sc.BadInput, "no structure 'neurons'"),
        ({"amount": 0.5, "structure": "4x0"}, sc.BadInput, "no structure '4x0'. Choose .*weights, blocks, or by their sizes 4x1"),
        ({"amount": 0.5, "structure": "2:4"}, sc.BadInput, "2:4 itself says how much goes.*Leave amount= out"),
        ({"amount": 0.5, "repair": "magic"}, sc.BadInput, "no repair 'magic'"),
        ({"amount": 0.5, "criterion": "magic"}, sc.BadInput, "magic"),
        ({"amount": 0.5, "of": "dollars"}, sc.BadInput, "dollars"),
    ],
)
def test_bad_arguments_say_so(options, error, words):
    data = batches(1)
    with pytest.raises(error, match=words):
        sc.prune(residual(), data[0][0], data, F.cross_entropy, **options)


def test_data_that_is_none_is_told():
    with pytest.raises(sc.BadInput, match="data is of type NoneType"):
        sc.prune(residual(), batches(1)[0][0], None, F.cross_entropy, amount=0.5)


@pytest.mark.parametrize("repair", ["least-squares", "statistics", "moments", None])
def test_data_that_can_be_read_once_will_do_where_nothing_is_repaired(repair):
    data, read = batches(2), []
    once = (read.append(batch) or batch for batch in data)
    if repair is None:
        assert sc.prune(residual(), data[0][0], once, F.cross_entropy, amount=0.5, repair=None).plan
    else:
        with pytest.raises(sc.BadInput, match="only once"):
            sc.prune(residual(), data[0][0], once, F.cross_entropy, amount=0.5, repair=repair)
        assert not read


def test_a_model_without_a_prunable_unit_is_refused():
    model = nn.Linear(4, 3)
    with pytest.raises(sc.NothingToPrune, match="no unit"):
        sc.prune(model, torch.randn(2, 4), [(torch.randn(2, 4), torch.tensor([0, 1]))], F.cross_entropy, amount=0.5)


def test_budgets_that_run_the_model_are_made_by_name():
    model, data = residual(), batches()
    given = {"model": model, "example": data[0][0], "data": data, "loss": F.cross_entropy}
    one = sc.prune(**given, amount=0.3, of="activations").plan
    assert one.cost["activations"][1] <= 0.7 * one.cost["activations"][0] and one.made["of"] == "activations"
    both = sc.prune(**given, amount={"macs": 0.2, "activations": 0.1}, scope="per-mac", least=2).plan
    assert all(both.cost[of][1] <= (1 - share) * both.cost[of][0] for of, share in (("macs", 0.2), ("activations", 0.1)))
    assert all(int(mask.sum()) >= 2 for mask in both.keep.values())
    limit = 0.9 * one.cost["activations"][0]
    mixed = sc.prune(**given, amount=0.25, of="macs", budget={"activations": limit, "bytes": "1 MB"}).plan
    assert mixed.cost["activations"][1] <= limit and mixed.cost["macs"][1] <= 0.75 * mixed.cost["macs"][0]
    assert mixed.made["amount"] == {"macs": 0.25}


@pytest.mark.parametrize(("scope", "of"), [("per-activations", "macs"), ("per-activations", "activations")])
def test_scores_per_cost_of_a_run_go_by_name(scope: str, of: str):
    model, data = residual(), batches()
    made = sc.prune(model, data[0][0], data, F.cross_entropy, amount=0.2, of=of, scope=scope)
    own = sc.select(made.scores, made.structure, 0.2, "macs" if of == "macs" else sc.Activations(model, data[0][0]),
                    scope=sc.per(sc.Activations(model, data[0][0])))  # fmt: skip
    assert made.plan.made["scope"] == "per-activations"
    assert all(torch.equal(made.plan.keep[name], own.keep[name]) for name in own.keep)


@pytest.mark.parametrize("scope", ["per-ms", "per-latency"])
def test_scores_per_millisecond_take_the_clock_that_the_budget_has(scope: str):
    """One object tells one plan one time."""

    class Clock:
        name = "latency"

        def __call__(self, structure, keep):
            return float(sum((1 + number) * int(mask.sum()) for number, mask in enumerate(keep.values())))

    model, data = residual(), batches()
    clock = Clock()
    made = sc.prune(model, data[0][0], data, F.cross_entropy, amount=0.2, of=clock, scope=scope)
    own = sc.select(made.scores, made.structure, 0.2, clock, scope=sc.per(clock))
    assert made.plan.made["scope"] == "per-latency" and all(torch.equal(made.plan.keep[name], own.keep[name]) for name in own.keep)


def test_a_drop_of_what_has_no_classes_says_what_it_needs():
    model, data = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), [(torch.randn(8, 6), torch.randn(8, 4))]
    with pytest.raises(sc.BadInput, match=r"points of top1, which needs class scores and one class.*targets are .*an amount, a budget"):
        sc.prune(model, data[0][0], data, F.mse_loss, drop=1.0, validation=data)


@pytest.mark.parametrize("drop", [0.0, 30.0, 100.0])
def test_as_much_is_removed_as_the_drop_allows(drop: float):
    model, data = residual(), batches()
    held = [(inputs, model(inputs).argmax(1).detach()) for inputs, _ in batches(2)]  # what the dense model says, so that it is right
    pruned = sc.prune(model, data[0][0], data, F.cross_entropy, drop=drop, validation=held, of="macs")
    made = pruned.plan.made
    assert made["dense"] == 1.0 and made["reached"] >= 1 - drop / 100
    assert sc.evaluate(pruned.model, held, ["top1"])["top1"] == made["reached"]
    assert len(made["trials"]) == 7 and [made["amount"], made["reached"]] in [*made["trials"], [0.0, 1.0]]
    failed = [amount for amount, value in made["trials"] if value is None or value < 1 - drop / 100]
    assert all(amount > made["amount"] for amount in failed)


@pytest.mark.parametrize(
    "wrong", [{"drop": 1.0}, {"drop": 1.0, "validation": [], "amount": 0.5}, {"drop": 1.0, "validation": [], "budget": "1 MB"}]
)
def test_a_drop_needs_held_out_data_and_no_other_target(wrong: dict[str, object]):
    model, data = residual(), batches()
    with pytest.raises(sc.BadInput, match="drop= finds the amount itself"):
        sc.prune(model, data[0][0], data, F.cross_entropy, **wrong)


@pytest.fixture(scope="module")
def by_curves() -> dict[str, object]:
    """What `prune` is given, and curves of the scores that it finds then, with a metric of two values before the loss."""
    model, data = residual(), batches()
    given = {"model": model, "example": data[0][0], "data": data, "loss": F.cross_entropy, "criterion": "fisher", "multiple": 2}
    found = sc.prune(**given, amount=0.0)  # type: ignore[arg-type]
    metrics = {"worst": "worst_class", "loss": F.cross_entropy}
    return given | {"curves": sc.curves(model, found.structure, found.scores, data, metrics, (0.25, 0.5, 0.75), multiple=2)}


@pytest.mark.parametrize("losses", [False, True])
def test_curves_share_the_budget_as_select_by_curves_does(by_curves, losses: bool):
    drawn = sc.Curves.from_json(by_curves["curves"].to_json())
    assert drawn == by_curves["curves"] and drawn.metrics == ("worst", "loss")
    metric = "loss" if losses else next(iter(drawn.dense))
    given = by_curves | {"curves": drawn.losses("loss") if losses else drawn}
    pruned = sc.prune(**given, amount=0.3, of="macs", least=2)
    own = sc.select_by_curves(pruned.scores, pruned.structure, drawn.losses(metric), 0.3, "macs", multiple=2, least=2)
    assert all(torch.equal(pruned.plan.keep[name], own.keep[name]) for name in own.keep)
    assert pruned.plan.cost["macs"][1] <= 0.7 * pruned.plan.cost["macs"][0] and pruned.plan.made["scope"] == "each"
    assert pruned.plan.made["criterion"] == "fisher" and pruned.plan.made["amounts"] == own.made["amounts"]
    assert any(gone for gone, _ in pruned.plan.removed().values())


def test_curves_meet_a_budget_and_a_drop(by_curves):
    budget = sc.prune(**by_curves, budget={"parameters": 450}).plan
    assert budget.cost["parameters"][1] <= 450 and budget.made["scope"] == "each"
    model = by_curves["model"]
    held = [(inputs, model(inputs).argmax(1).detach()) for inputs, _ in batches(1)]
    made = sc.prune(**by_curves, drop=100.0, validation=held, of="macs").plan.made
    assert len(made["trials"]) == 7 and made["scope"] == "each"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"amount": 0.3, "scope": "layer"}, "Leave threshold= and scope= out"),
        ({"threshold": 0.1}, "Leave threshold= and scope= out"),
        ({"amount": 0.3, "criterion": "magnitude"}, "of other scores. Measure them of what prune"),
        ({"amount": 0.3, "multiple": 1}, "of other scores"),
        ({"amount": {"macs": 0.3, "parameters": 0.2}}, "The solver meets one budget"),
        ({"amount": 0.3, "structure": "weights"}, "of other units"),
    ],
)
def test_curves_that_make_no_sense_are_refused(by_curves, options: dict[str, object], words: str):
    with pytest.raises(sc.BadInput, match=words):
        sc.prune(**by_curves | options)


@pytest.mark.parametrize("nothing", [{}, "", " ; "])
def test_a_budget_of_nothing_is_refused_before_anything_is_measured(nothing: str | dict[str, float]):
    def unread(outputs: object, targets: object) -> torch.Tensor:
        raise AssertionError("it was measured")

    with pytest.raises(sc.BadInput, match=r"The budget is empty \(.*\), so it asks for nothing"):
        sc.prune(residual(), batches()[0][0], batches(), unread, budget=nothing)
