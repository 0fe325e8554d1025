"""Measuring: contexts of the user's own, looking on, stopping when it is enough, and how sure the result is."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import tree
from secateur.contexts import Keys
from secateur.criteria import CRITERIA
from secateur.criteria.passes import Passes
from secateur.errors import BadInput
from secateur.measure import after, measure
from secateur.reductions import normalised
from secateur.sensitivity import Sensitivity
from secateur.structure import Structure, channels
from secateur.sure import stability
from secateur.task import Task
from secateur.tree import Scores
from toy import Hidden, batches, mlp

module = import_module("secateur.measure")  # the package has a function of that name


def toy(count: int = 12, size: int = 8, classes: int = 3) -> tuple[Task, Hidden]:
    model = mlp(6, 5, 4, classes)
    return Task(model, batches(count, size, 6, classes), F.cross_entropy, seed=1), Hidden(model)


Batch = tuple[Tensor, Tensor]


def listed(batch: Batch) -> list[str]:
    return [f"speaker {label}" for label in batch[1].tolist()]


def numbers(batch: Batch) -> list[int]:
    return batch[1].tolist()


def arrays(batch: Batch) -> numpy.ndarray:
    return batch[1].numpy()


@pytest.mark.parametrize(
    "keys",
    [
        listed,
        numbers,
        arrays,
        lambda batch: batch[1],
        lambda batch: tuple(map(str, batch[1].tolist())),
        lambda batch: list(batch[1].numpy()),
        lambda batch: list(batch[1]),
    ],
)
def test_keys_of_samples_are_what_classes_are(keys: object) -> None:
    task, structure = toy()
    classes, found = measure(task, structure, contexts="class"), measure(task, structure, contexts=keys)  # type: ignore[arg-type]
    for part in ("global_", "local", "spread", "error"):
        torch.testing.assert_close(getattr(found, part), getattr(classes, part), rtol=0, atol=0)
    torch.testing.assert_close(dict(zip(classes.keys, found.keys.values())), classes.keys, rtol=0, atol=0)
    assert found.contexts == keys.__name__ and found.stability == classes.stability  # type: ignore[attr-defined]
    torch.testing.assert_close(found.for_([*found.keys][1]), classes.for_(1))


@pytest.mark.parametrize("key", [lambda n: f"domain {n % 3}", lambda n: n % 3, lambda n: torch.tensor(n % 3)])
def test_a_key_may_be_of_the_whole_batch(key: object) -> None:
    task, structure = toy(9)
    places = {id(y): number for number, (_, y) in enumerate(task.data)}  # type: ignore[misc]
    found = measure(task, structure, contexts=lambda batch: key(places[id(batch[1])]))  # type: ignore[operator]
    scores = list(CRITERIA["taylor"](task, structure))
    for number, shares in enumerate(found.keys.values()):
        total = {name: sum(s[name] for s in scores[number::3]) for name in structure.groups}
        torch.testing.assert_close(shares, normalised(total))  # type: ignore[arg-type]
    assert found.count == 3 and found.samples == 72


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (lambda batch: None, "<lambda> gave keys of type NoneType for a batch of 8 samples"),
        (lambda batch: ["a"] * 7, r"gave keys 7 of them, such as \['a'\]"),
        (lambda batch: [0.5] * 8, r"gave keys 8 of them, such as \[0.5\]"),
        (lambda batch: batch[1].double(), r"gave keys of shape \(8,\)"),
        (lambda batch: batch[0], r"gave keys of shape \(8, 6\)"),
        (lambda batch: list(batch[0]), r"gave keys 8 of them"),
        (lambda batch: ["a"] * 7 + [None], r"gave keys 8 of them, such as \[None\]"),
        (lambda batch: [10**5000] * 8, "gave keys 8 of them"),
        (lambda batch: batch[1]["lang"], r"function <lambda> failed for a batch of 8 samples, .*: \w+Error: .+ Make it fit the data"),
        (lambda batch: {}["lang"], "KeyError: 'lang'"),
    ],
)
def test_what_are_no_keys_is_said(keys: object, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        measure(*toy(), contexts=keys)  # type: ignore[arg-type]


def test_a_key_that_is_not_there_is_said() -> None:
    with pytest.raises(BadInput, match="no key '7': this sensitivity has 0, 1, 2"):
        measure(*toy(), contexts="class").for_(7)
    with pytest.raises(BadInput, match="was measured by batch, without keys"):
        measure(*toy()).for_("a")


def shares_of(task: Task, structure: Hidden) -> list[Scores]:
    return [normalised(scores) for scores in CRITERIA["taylor"](task, structure)]


def mean(shares: list[Scores]) -> Scores:
    return {name: torch.stack([share[name] for share in shares]).mean(0) for name in shares[0]}


def test_the_standard_error_is_that_of_a_mean() -> None:
    task, structure = toy()
    stacked = {name: torch.stack([share[name] for share in shares_of(task, structure)]) for name in structure.groups}
    expected = tree.apply(lambda values: values.std(0) / len(values) ** 0.5, stacked)
    torch.testing.assert_close(measure(task, structure).error, expected)
    assert measure(task, structure, "l1").error is None and measure(Task(task.model, task.data[:1], task.loss), structure).error is None  # type: ignore[index]


def test_stability_is_between_every_other_context() -> None:
    task, structure = toy()
    shares = shares_of(task, structure)
    found = measure(task, structure, amount=0.3).stability
    assert found == stability(mean(shares[::2]), mean(shares[1::2]), 0.3)
    assert measure(task, structure, "l1").stability is None


def test_with_keys_both_are_between_halves_of_the_pieces() -> None:
    task, structure = toy(8)
    found = measure(task, structure, contexts=lambda batch: "ab"[int(batch[1][0]) % 2])
    scores, keys = list(CRITERIA["taylor"](task, structure)), [int(y[0]) % 2 for _, y in task.data]  # type: ignore[misc]
    places = [[i for i in range(8) if keys[i] == k] for k in range(2)]
    halves = []
    for half in range(2):
        sums = [{n: sum(scores[i][n] for i in of_key[half::2]) for n in structure.groups} for of_key in places]
        halves.append(mean([normalised(total) for total in sums]))  # type: ignore[arg-type]
    torch.testing.assert_close(found.error, tree.apply(lambda a, b: (a - b).abs() / 2, *halves))
    assert found.stability == stability(*halves, 0.5)


def alternating(count: int, classes: int = 2) -> tuple[Task, Hidden]:
    task, structure = toy(count, classes=classes)
    return replace(task, data=[(x, torch.arange(8) % classes) for x, _ in task.data]), structure  # type: ignore[misc]


@pytest.mark.parametrize("domain", [lambda n: n % 2, lambda n: n % 3, lambda n: n % 4, lambda n: n // 4 % 2])
def test_domains_that_take_turns_have_halves(domain: Callable[[int], int]) -> None:
    task, structure = toy(12)
    numbers = itertools.count()
    found = measure(task, structure, contexts=lambda batch: domain(next(numbers)))
    scores = list(CRITERIA["taylor"](task, structure))
    places = {key: [n for n in range(12) if domain(n) == key] for key in range(4)}
    halves = []
    for half in range(2):
        sums = [{name: sum(scores[n][name] for n in of[half::2]) for name in structure.groups} for of in places.values() if of]
        halves.append(mean([normalised(total) for total in sums]))  # type: ignore[arg-type]
    torch.testing.assert_close(found.error, tree.apply(lambda a, b: (a - b).abs() / 2, *halves))
    assert found.stability == stability(*halves, 0.5)


def test_classes_that_take_turns_can_be_enough() -> None:
    found = measure(*alternating(40), contexts="class", enough=0.0)
    assert found.stability and found.error and found.samples < 100


@pytest.mark.parametrize(("batches", "size"), [(16, 4), (4, 16), (40, 8), (100, 2)])
@pytest.mark.parametrize("contexts", ["class", lambda batch: batch[1].tolist()])
def test_it_is_not_enough_while_a_class_that_was_met_is_not_in_both_halves(batches: int, size: int, contexts: Keys) -> None:
    """Unit k is needed by class k alone, so what some classes say of the ranking tells nothing of the others."""
    model = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10)).double()
    for value in model.parameters():
        value.data.copy_(3 * torch.eye(10) if value.dim() > 1 else torch.zeros(10))
    chance = torch.Generator().manual_seed(0)
    y = torch.randint(0, 10, (batches * size,), generator=chance)
    x = F.one_hot(y, 10) + 0.1 * torch.randn(len(y), 10, dtype=torch.float64, generator=chance)
    task = Task(model, list(zip(x.split(size), y.split(size))), F.cross_entropy)
    met: set[int] = set()

    def watched() -> Iterator[object]:
        for batch in task.data:
            met.update(batch[1].tolist())  # type: ignore[index]
            yield batch

    found = measure(replace(task, data=Passes(watched)), channels(model, x[:2]), contexts=contexts, enough=0.0)
    assert {*found.keys} == {*map(str, met)} and found.local["0"].min() > 0.5


@pytest.mark.parametrize(("count", "classes"), [(2, 4), (1, 4), (4, 4), (8, 8)])
def test_a_class_in_one_piece_is_halved(count: int, classes: int) -> None:
    """Up to as many samples of a class as a batch has: they would all be in one."""
    found = measure(*alternating(count, classes), contexts="class")
    assert found.stability and found.error and found.samples == 8 * count and found.count == classes


def test_keys_without_halves_are_left_out_of_the_comparison() -> None:
    task, structure = toy(5)
    numbers = itertools.count()
    found = measure(task, structure, contexts=lambda batch: "aabbc"[next(numbers)])
    shares = [normalised(scores) for scores in CRITERIA["taylor"](task, structure)]
    assert found.stability == stability(mean([shares[0], shares[2]]), mean([shares[1], shares[3]]), 0.5)
    assert measure(Task(task.model, task.data[:1], task.loss), structure, contexts=lambda batch: "a").stability is None  # type: ignore[index]


def test_it_goes_on_until_it_is_enough() -> None:
    task, structure = toy(400)
    looked: list[int] = []
    number = 0
    while (number := after(number)) <= 400:
        looked.append(number)
        few = measure(Task(task.model, task.data[:number], task.loss), structure, amount=0.8)  # type: ignore[index]
        if few.stability and few.stability.agreement >= 0.9:
            break
    found = measure(task, structure, enough=0.9, amount=0.8)
    assert found.count == looked[-1] < 400 and found.samples == 8 * found.count
    torch.testing.assert_close(found.global_, few.global_)
    assert measure(task, structure, enough=0.0).count == 8
    assert measure(Task(task.model, task.data[:7], task.loss), structure, enough=0.0).count == 7  # type: ignore[index]


def test_it_is_looked_at_ever_more_rarely() -> None:
    looks = [after(0)]
    while looks[-1] < 1000:
        looks.append(after(looks[-1]))
    assert looks[:6] == [8, 10, 13, 17, 22, 28] and len(looks) < 24
    assert all(after(number) == looks[1] for number in range(looks[0], looks[1]))


def test_whoever_looks_on_sees_the_sensitivity_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCHED", 0.0)
    monkeypatch.setattr(module, "SHARE", float("inf"))
    task, structure = toy(5)
    seen: list[Sensitivity] = []
    whole = measure(task, structure, watch=seen.append)
    assert [now.count for now in seen] == [1, 2, 3, 4]
    torch.testing.assert_close(seen[2].global_, measure(Task(task.model, task.data[:3], task.loss), structure).global_)  # type: ignore[index]
    torch.testing.assert_close(whole.global_, measure(task, structure).global_, rtol=0, atol=0)


def test_looking_on_takes_little_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a second has passed on whenever it is asked: looking takes one, so twenty pieces lie between two looks."""
    start, ticks = time.monotonic(), itertools.count()
    monkeypatch.setattr(module.time, "monotonic", lambda: start + next(ticks))
    seen: list[int] = []
    measure(*toy(200), watch=lambda now: seen.append(now.count))
    assert 2 <= len(seen) <= 12 and seen[0] <= 2


def test_there_is_nothing_to_look_at_before_the_first_scores() -> None:
    """A criterion that yields at its end is measured all the same."""
    task, structure = toy(4)
    seen: list[Sensitivity] = []
    found = measure(task, structure, lambda task, structure: [list(CRITERIA["taylor"](task, structure))[-1]], watch=seen.append)
    assert found.count == 1 and not seen


@pytest.mark.parametrize("name", ["obs", "snr", "needed", "synflow", "magnitude", "l1"])
def test_it_is_never_enough_where_nothing_can_be_halved(name: str) -> None:
    task, _ = toy(10)
    structure = channels(task.model, torch.zeros(1, 6, dtype=torch.float64))
    with pytest.raises(BadInput, match=f"The criterion {name} does not yield scores for each batch.*Leave enough= out"):
        measure(task, structure, name, enough=0.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"enough": 1.5}, r"enough= must be in 0\.\.1, but it is 1.5"),
        ({"enough": True}, "enough="),
        ({"amount": None}, "amount= must be"),
        ({"amount": -0.1}, "amount= must be"),
    ],
)
def test_settings_that_are_none_are_said(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        measure(*toy(), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("scores", [1, 3])
def test_samples_are_those_that_were_taken_from_the_data(passes: int, scores: int) -> None:
    """However often they are read, and whenever scores are yielded."""
    task, structure = toy(10)
    ones = {name: torch.ones(group.shape) for name, group in structure.groups.items()}

    def at_the_end(task: Task, structure: Structure) -> Iterator[Scores]:
        for _ in range(passes):
            list(task.batches())
        yield from [ones] * scores

    def along(task: Task, structure: Structure) -> Iterator[Scores]:
        for _ in range(passes):
            for _ in task.batches():
                yield from [ones] * scores

    def without(task: Task, structure: Structure) -> Iterator[Scores]:
        yield ones

    found = [measure(task, structure, criterion).samples for criterion in (at_the_end, along, without)]
    assert found == [80, 80, 0]


@pytest.mark.parametrize("name", ["obs", "snr", "needed"])
def test_criteria_that_yield_once_tell_their_samples(name: str) -> None:
    task, _ = toy(10)
    model = task.model
    structure = channels(model, torch.zeros(1, 6, dtype=torch.float64))
    assert measure(task, structure, name).samples == 80
