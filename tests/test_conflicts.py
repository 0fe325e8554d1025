from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.conflicts import conflicts
from secateur.errors import BadInput
from secateur.measure import measure
from secateur.select import select
from secateur.sensitivity import merge
from secateur.task import Task
from secateur.tree import Scores
from toy import Hidden, mlp

KEYS = [f"speaker {i}" for i in range(8)]


def planted() -> tuple[Task, Hidden]:
    """Eight speakers who say one of two words. Units 0 to 3 hear the word for everyone; unit 4 is what speaker 5 needs besides."""
    model = mlp(10, 6, 2)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
        model[0].weight[:4, 0] = 1 + torch.rand(4, generator=chance, dtype=torch.float64)
        model[0].weight[4, 1] = 2.0  # the word as speaker 5 says it
        model[0].weight[5, 9] = 0.01  # nobody's
        model[2].weight[0, :4] = 0.5
        model[2].weight[0, 4] = 2.0
        model[2].weight[0, 5] = 0.01
    speakers, words = torch.arange(8).repeat(16), torch.randint(0, 2, (128,), generator=chance)
    x = torch.zeros(128, 10, dtype=torch.float64)
    said = (1.0 - 2 * words).double()
    x[:, 0], x[:, 9] = torch.where(speakers == 5, 0.2, 1.0) * said, 1.0
    x[:, 1] = torch.where(speakers == 5, said, 0)
    data = [((x[rows], speakers[rows]), words[rows]) for rows in torch.arange(128).split(32)]
    task = Task(model, [(inputs, (words, speakers)) for (inputs, speakers), words in data], lambda z, y: F.cross_entropy(z, y[0]))
    return task, Hidden(model)


def speaker(batch: tuple[Tensor, tuple[Tensor, Tensor]]) -> list[str]:
    return [KEYS[number] for number in batch[1][1].tolist()]


def test_a_unit_that_one_speaker_needs_is_found_and_named() -> None:
    measured = measure(*planted(), contexts=speaker)
    assert measured.contexts == "speaker" and [*measured.keys] == KEYS
    found = measured.conflicts(amount=0.67, share=0.2)
    assert [(one.group, one.unit, one.key) for one in found] == [("h0", 4, "speaker 5")]
    (one,) = found
    assert one.global_rank < 0.67 and one.local_rank >= 0.8
    assert one.local_share == float(measured.for_("speaker 5")["h0"][4]) > 0.5
    assert one.global_share == float(measured.global_["h0"][4]) and one.strength == pytest.approx(one.local_share - one.global_share)
    assert measured.needs("h0")[4] == "speaker 5"


def test_what_one_speaker_needs_stays_where_it_has_weight_and_goes_by_the_mean() -> None:
    task, structure = planted()
    measured = measure(task, structure, contexts=speaker)
    heard = {}
    for local in (0.0, "rms", 0.5, 1.0):
        keep = select(merge(measured, local), structure, amount=0.6).keep["h0"]
        model = copy.deepcopy(structure.model)
        with torch.no_grad():
            model[0].weight[~keep] = 0
        losses = [F.cross_entropy(model(x)[speakers == 5].detach(), words[speakers == 5]) for x, (words, speakers) in task.data]  # type: ignore[misc]
        heard[local] = bool(keep[4]), float(torch.stack(losses).mean())
    kept, loss = heard.pop(0.0)
    assert not kept and all(found and loss > 2 * less for found, less in heard.values())


def test_without_names_the_local_sensitivity_stands_for_all() -> None:
    measured = measure(*planted(), contexts="sample")
    assert [(one.unit, one.key) for one in measured.conflicts(amount=0.67, share=0.2)] == [(4, None)]


def test_what_everyone_needs_is_no_conflict() -> None:
    task, structure = planted()
    others = [(x[y[1] != 5], (y[0][y[1] != 5], y[1][y[1] != 5])) for x, y in task.data]  # type: ignore[union-attr]
    assert measure(Task(task.model, others, task.loss), structure, contexts=speaker).conflicts(amount=0.67, share=0.2) == []


def by_hand(global_: Scores, keys: dict[str, Scores], amount: float, share: float) -> dict[tuple[str, int], tuple[str, float]]:
    """Unit by unit."""
    units = [(name, index) for name, values in global_.items() for index in range(values.numel())]
    value = lambda scores, unit: float(scores[unit[0]].flatten()[unit[1]])
    cheap = sorted(units, key=lambda unit: value(global_, unit))[: round(amount * len(units))]
    found: dict[tuple[str, int], tuple[str, float]] = {}
    for key, scores in keys.items():
        for unit in sorted(units, key=lambda unit: value(scores, unit))[len(units) - round(share * len(units)) :]:
            strength = value(scores, unit) - value(global_, unit)
            if unit in cheap and strength > max(0, found.get(unit, ("", 0.0))[1]):
                found[unit] = (key, strength)
    return found


@pytest.mark.parametrize("amount", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_conflicts_are_those_found_unit_by_unit(amount: float, share: float) -> None:
    chance = torch.Generator().manual_seed(0)
    draw = lambda: {"a": torch.rand(7, generator=chance), "b": torch.rand(3, 4, generator=chance)}
    global_, keys = draw(), {key: draw() for key in "xyz"}
    found = conflicts(global_, global_, keys, amount, share)
    expected = by_hand(global_, keys, amount, share)
    assert {(one.group, one.unit): (one.key, pytest.approx(one.strength)) for one in found} == expected
    assert [one.strength for one in found] == sorted((one.strength for one in found), reverse=True)
    assert conflicts(global_, global_, keys, amount, share, limit=2) == found[:2]
    for one in found:
        everything = torch.cat([values.flatten() for values in global_.values()])
        assert one.global_rank == float((everything < one.global_share).double().mean())


@pytest.mark.parametrize(("arguments", "says"), [({"amount": 1.5}, "amount="), ({"share": True}, "share="), ({"share": "x"}, "share=")])
def test_shares_outside_their_range_are_said(arguments: dict[str, object], says: str) -> None:
    ones: Scores = {"a": torch.ones(3)}
    with pytest.raises(BadInput, match=says):
        conflicts(ones, ones, {}, **arguments)  # type: ignore[arg-type]
