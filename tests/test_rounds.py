"""Gradual pruning: budgets along the way, optimizers that go on, runs that resume."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.surgery import masks
from test_api import batches, residual
from test_channels import outputs, same


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    model.train()
    for inputs, targets in data:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("structure", ["channels", "weights", "2x2"])
@pytest.mark.parametrize("schedule", ["linear", "cubic"])
@pytest.mark.parametrize("of", ["units", "macs"])
def test_each_round_meets_its_share_and_the_last_the_amount(structure: str, schedule: str, of: str):
    model, data = residual(), batches()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    amounts = []
    for step in sc.rounds(model, data[0][0], data, F.cross_entropy, structure=structure, schedule=schedule, amount=0.5, of=of, steps=3):
        optimizer = step.rebind(optimizer)
        train(step.model, optimizer, data)
        share = sc.SCHEDULES[schedule](step.number / 3)
        assert step.amount >= 0.5 * share - 1e-9
        assert step.plan.cost[of][1] <= (1 - 0.5 * share) * step.plan.cost[of][0] + 1e-6
        amounts.append(step.amount)
        if structure == "weights":
            dead = sum(int((value == 0).sum()) for value in step.model.parameters())
            assert dead >= sum(int((~keep).sum()) for keep in step.plan.keep.values())
    assert amounts == sorted(amounts) and len(amounts) == 3


def test_the_plan_of_a_round_leads_from_the_dense_model_to_its_shapes():
    model, data = residual(), batches()
    for step in sc.rounds(model, data[0][0], data, F.cross_entropy, amount=0.6, of="macs", steps=3, repair=None):
        again = sc.shrink(model, step.plan)
        assert {name: value.shape for name, value in again.state_dict().items()} == {
            name: value.shape for name, value in step.model.state_dict().items()
        }
        same(outputs(again, data[0][0]), outputs(step.model, data[0][0]))  # nothing was trained in between


def test_a_run_that_stopped_goes_on_behind_its_last_finished_round(tmp_path):
    model, data = residual(), batches()
    settings = {"amount": 0.5, "of": "macs", "steps": 4}

    def go(folder, stop=None):
        made = []
        for step in itertools.islice(sc.rounds(model, data[0][0], data, F.cross_entropy, checkpoint=folder, **settings), stop):
            train(step.model, torch.optim.SGD(step.model.parameters(), lr=0.01), data)
            made.append(step)
        return made

    whole = go(tmp_path / "whole")
    assert [step.number for step in go(tmp_path / "cut", 3)] == [1, 2, 3]
    rest = go(tmp_path / "cut")  # the third was handed over, but nobody came back from training it
    assert [step.number for step in rest] == [3, 4]
    same(outputs(rest[-1].model, data[0][0]), outputs(whole[-1].model, data[0][0]))
    assert all(torch.equal(whole[-1].plan.keep[name], keep) for name, keep in rest[-1].plan.keep.items())
    assert go(tmp_path / "cut") == []


@pytest.mark.parametrize("structure", ["channels", "weights", "1x4"])
@pytest.mark.parametrize("repair", sc.api.REPAIRS)
def test_every_repair_of_every_structure_gives_the_same_bits_after_a_stop(repair: str | None, structure: str, tmp_path):
    model, data = residual(), batches()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"amount": 0.4, "structure": structure, "steps": 3, "schedule": "linear", "repair": repair}

    def go(folder, stop=None):
        made = []
        for step in itertools.islice(sc.rounds(model, data[0][0], data, F.cross_entropy, checkpoint=folder, **options), stop):
            handed = {name: value.clone() for name, value in step.model.state_dict().items()}
            plain = sc.shrink(step.before, step.cut).state_dict()
            assert any(not torch.equal(value, plain[name]) for name, value in handed.items()) == (repair is not None)
            train(step.model, torch.optim.SGD(step.model.parameters(), lr=0.01, momentum=0.9), data)
            made.append((step, handed, dict(step.model.state_dict())))
        return made

    whole = go(tmp_path / "whole")
    assert len(go(tmp_path / "cut", 2)) == 2
    rest = go(tmp_path / "cut")
    assert [step.number for step, _, _ in rest] == [2, 3]  # the second was handed over, but nobody came back from training it
    for (step, *states), (then, *others) in zip(rest, whole[1:], strict=True):
        for state, other in zip(states, others, strict=True):
            assert state.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in state.items())
        assert all(torch.equal(then.plan.keep[name], keep) for name, keep in step.plan.keep.items())
        assert step.plan.made == then.plan.made and step.plan.made["repair"] == repair
        if structure != "channels":
            assert all(not step.model.get_parameter(name)[~kept].any() for name, kept in masks(step.plan).items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_script_that_is_run_again_can_rebind_a_fresh_optimizer(tmp_path):
    data = batches()

    def script(stop=None):
        model = residual()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        going = sc.rounds(model, data[0][0], data, F.cross_entropy, amount=0.5, of="macs", steps=3, checkpoint=tmp_path)
        for step in itertools.islice(going, stop):
            optimizer = step.rebind(optimizer)
            assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in step.model.parameters()}
            train(step.model, optimizer, data)
        return step.number

    assert script(2) == 2 and script() == 3


def test_what_is_out_of_reach_in_the_end_is_said_before_the_first_round():
    data = batches(1)
    with pytest.raises(sc.BudgetUnreachable, match=r"0\.999 is out of reach"):
        next(sc.rounds(residual(), data[0][0], data, F.cross_entropy, amount=0.999, of="macs", steps=3))


@pytest.mark.parametrize("structure", ["weights", "2x2"])
def test_masks_are_held_after_resuming(structure: str, tmp_path):
    model, data = residual(), batches()
    settings = {"amount": 0.5, "structure": structure, "steps": 3, "checkpoint": tmp_path}
    last = None
    for _ in itertools.islice(sc.rounds(model, data[0][0], data, F.cross_entropy, **settings), 2):
        pass
    for step in sc.rounds(model, data[0][0], data, F.cross_entropy, **settings):
        train(step.model, torch.optim.Adam(step.model.parameters(), lr=0.01), data)
        assert all((dict(step.model.named_parameters())[name][~kept] == 0).all() for name, kept in masks(step.plan).items())
        assert last is None or not any((step.plan.keep[name] & ~keep).any() for name, keep in last.keep.items())
        last = step.plan


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    model, data = residual(), batches()
    for _ in sc.rounds(model, data[0][0], data, F.cross_entropy, amount=0.5, steps=2, checkpoint=tmp_path):
        pass
    with pytest.raises(sc.BadInput, match=r"amount 0.5, but this one has 0.4"):
        next(sc.rounds(model, data[0][0], data, F.cross_entropy, amount=0.4, steps=2, checkpoint=tmp_path))
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(sc.BadInput, match="digest"):
        next(sc.rounds(model, data[0][0], data, F.cross_entropy, amount=0.5, steps=2, checkpoint=tmp_path))


def test_damaged_settings_of_a_round_are_refused(tmp_path):
    model, data = residual(), batches()
    for _ in sc.rounds(model, data[0][0], data, F.cross_entropy, amount=0.5, steps=2, checkpoint=tmp_path):
        pass
    for text in ("", "[1]", "{"):
        (tmp_path / "round-2" / "settings.json").write_text(text)
        with pytest.raises(sc.Unreadable, match=r"settings\.json"):
            next(sc.rounds(model, data[0][0], data, F.cross_entropy, amount=0.5, steps=2, checkpoint=tmp_path))


@pytest.mark.parametrize("structure", ["channels", "weights"])
def test_every_round_goes_back_to_the_survivors_of_an_earlier_epoch(structure: str):
    model, data, early = residual(), batches(), residual()
    with torch.no_grad():
        for number, value in enumerate(early.parameters()):
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(number)))
    arguments, options = (model, data[0][0], data, F.cross_entropy), {"amount": 0.5, "structure": structure, "steps": 3}
    for step, other in zip(sc.rounds(*arguments, **options, rewind=early), sc.rounds(*arguments, **options)):
        for name, value in step.model.state_dict().items():
            expected = dict([*early.named_parameters(), *early.named_buffers()])[name]
            for dim, index in enumerate(step.plan.kept.get(name, ())):
                expected = expected if index is None else expected.index_select(dim, index)
            if structure == "weights" and name in step.plan.keep:
                expected = expected * step.plan.keep[name]
            assert torch.equal(value, expected), name
        if step.number == 1:  # chosen by the model as it was trained
            assert all(torch.equal(step.plan.keep[name], mask) for name, mask in other.plan.keep.items())
        train(step.model, torch.optim.SGD(step.model.parameters(), lr=0.01), data)
    assert step.number == 3 and step.plan.cost["units"][1] <= 0.5 * step.plan.cost["units"][0]


def test_rewinding_goes_on_after_a_stop_and_with_the_same_epoch_only(tmp_path):
    model, data, early, other = residual(), batches(), residual(), residual()
    with torch.no_grad():
        next(early.parameters()).add_(1), next(other.parameters()).add_(2)

    def go(folder, stop=None, rewind=early):
        made = []
        for step in itertools.islice(
            sc.rounds(model, data[0][0], data, F.cross_entropy, amount=0.5, steps=3, checkpoint=folder, rewind=rewind), stop
        ):
            train(step.model, torch.optim.SGD(step.model.parameters(), lr=0.01), data)
            made.append(step)
        return made

    whole = go(tmp_path / "whole")
    go(tmp_path / "cut", 2)
    for rewind in (other, None):
        with pytest.raises(sc.BadInput, match="with rewind"):
            go(tmp_path / "cut", rewind=rewind)
    same(outputs(go(tmp_path / "cut")[-1].model, data[0][0]), outputs(whole[-1].model, data[0][0]))


@pytest.mark.parametrize("rewound", [False, True])
def test_progress_is_told_of_batches_and_then_of_weights_in_every_round(rewound: bool):
    model, data, told = residual(), batches(), []
    options = {"amount": 0.3, "steps": 2, "rewind": residual() if rewound else None, "progress": lambda *now: told.append(now)}
    for step in sc.rounds(model, data[0][0], data, F.cross_entropy, **options):
        fitted = [] if rewound else [(done, 4) for done in range(1, 5)]  # three convolutions and a linear layer
        assert told == [(1, 3), (2, 3), (3, 3), *fitted] * step.number


@pytest.mark.parametrize("repair", ["least-squares", "statistics", None])
@pytest.mark.parametrize("rewound", [False, True])
def test_a_plan_tells_the_repair_that_was_made(repair: str | None, rewound: bool, tmp_path):
    model, data = residual(), batches()
    options = {"amount": 0.3, "steps": 2, "repair": repair, "rewind": residual() if rewound else None, "checkpoint": tmp_path}
    for step in sc.rounds(model, data[0][0], data, F.cross_entropy, **options):
        assert step.plan.made["repair"] == (None if rewound else repair)
    assert sc.read_plan(tmp_path / "round-1").made["repair"] == (None if rewound else repair)


def test_a_graph_goes_back_to_the_graph_of_the_earlier_epoch():
    model, data, early = residual(), batches(), residual()
    with torch.no_grad():
        next(early.parameters()).add_(1)
    (step,) = sc.rounds(model, data[0][0], data, F.cross_entropy, amount=0.5, steps=1, as_graph=True, rewind=early)
    same(outputs(step.model, data[0][0]), outputs(sc.shrink(sc.as_graph(early, data[0][0]), step.plan), data[0][0]))


def test_an_earlier_epoch_of_another_network_is_refused():
    data = batches(1)
    with pytest.raises(sc.PlanMismatch, match="The plan was made for a model"):
        next(sc.rounds(residual(), data[0][0], data, F.cross_entropy, amount=0.5, rewind=nn.Linear(3, 2)))


@pytest.mark.parametrize(
    "options, words", [({"steps": 0}, "at least 1"), ({"schedule": "magic"}, "no schedule"), ({"schedule": lambda t: 1 - t}, "must rise")]
)
def test_bad_schedules_say_so(options, words):
    data = batches(1)
    with pytest.raises(sc.BadInput, match=words):
        next(sc.rounds(residual(), data[0][0], data, F.cross_entropy, **{"amount": 0.5, **options}))


@pytest.mark.parametrize(
    ("contexts", "local", "rule"), [("class", 0.0, 0.0), ("class", "rms", "rms"), ("batch", 0.0, 0.0), ("class", 0.3, 0.3)]
)
def test_a_plan_tells_the_rule_that_merged_global_and_local(tmp_path, contexts, local, rule):
    model, data = residual(), batches()
    options = {"amount": 0.3, "steps": 2, "contexts": contexts, "local": local, "checkpoint": tmp_path}
    for step in itertools.islice(sc.rounds(model, data[0][0], data, F.cross_entropy, **options), 2):
        assert step.plan.made["local"] == rule
    (last,) = sc.rounds(model, data[0][0], data, F.cross_entropy, **options)  # the checkpoint is of the same settings
    assert last.plan.made["local"] == rule


@pytest.mark.parametrize("structure", ["channels", "weights", "2x2"])
def test_limits_are_of_the_dense_model_in_every_round(structure: str):
    model, data = residual(), batches()
    dense = sc.api.structure_of(model, data[0][0], structure)
    alone = next(iter(dense.groups))
    last = None
    for last in sc.rounds(
        model, data[0][0], data, F.cross_entropy, structure=structure, amount=0.3, steps=3, schedule="linear", scope="layer",
        least=0.5, keep=[alone],
    ):  # fmt: skip
        kept = {name: int(mask.sum()) for name, mask in last.plan.keep.items()}
        assert kept[alone] == dense.groups[alone].size
        assert all(kept[name] >= group.size / 2 for name, group in dense.groups.items())
    assert last is not None and last.plan.made["least"] == 0.5 and last.plan.made["keep"] == [alone]
    assert last.plan.cost["units"][1] <= 0.7 * last.plan.cost["units"][0]
