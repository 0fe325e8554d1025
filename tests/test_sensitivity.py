from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur import tree
from secateur.criteria import CRITERIA
from secateur.errors import BadInput
from secateur.measure import measure
from secateur.reductions import normalised
from secateur.sensitivity import Collector, Sensitivity, merge
from secateur.structure import Structure, weights
from secateur.task import Task
from secateur.tree import Scores
from toy import Hidden, batches, mlp


def toy(count: int = 6, size: int = 8, classes: int = 3, seed: int = 0) -> tuple[Task, Hidden]:
    model = mlp(6, 5, 4, classes)
    return Task(model, batches(count, size, 6, classes, seed), F.cross_entropy, seed=1), Hidden(model)


def slow(contexts: list[Scores]) -> dict[str, Scores]:
    """The definition, with every context in memory."""
    shares = [tree.scale(scores, 1 / sum(float(v.abs().sum()) for v in scores.values())) for scores in contexts]
    stacked = {name: torch.stack([share[name] for share in shares]) for name in shares[0]}
    return {
        "global": tree.apply(lambda v: v.mean(0), stacked),
        "local": tree.apply(lambda v: v.max(0).values, stacked),
        "spread": tree.apply(lambda v: v.std(0, correction=0), stacked),
        "median": tree.apply(lambda v: v.quantile(0.5, dim=0), stacked),
    }


def same(measured: Sensitivity, expected: dict[str, Scores]) -> None:
    torch.testing.assert_close(measured.global_, expected["global"])
    torch.testing.assert_close(measured.local, expected["local"])
    torch.testing.assert_close(measured.spread, expected["spread"])


NAMES = ("gradient", "taylor", "magnitude", "fisher", "hessian", "random")  # what each of them is: test_criteria.py


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_reduced_as_defined(name: str) -> None:
    task, structure = toy()
    measured = measure(task, structure, name)
    contexts = list(CRITERIA[name](task, structure))
    same(measured, slow(contexts))
    assert (measured.criterion, measured.contexts, measured.count, measured.keys) == (name, "batch", len(contexts), {})
    torch.testing.assert_close(measure(task, structure, name, local=0.5).local, slow(contexts)["median"])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_samples_are_contexts_however_they_are_batched(sizes: list[int]) -> None:
    task, structure = toy(1, sum(sizes))
    x, y = task.data[0]
    expected = measure(task, structure, contexts="sample")
    split = measure(Task(task.model, list(zip(x.split(sizes), y.split(sizes))), task.loss), structure, contexts="sample")
    same(split, {"global": expected.global_, "local": expected.local, "spread": expected.spread})
    assert split.count == split.samples == sum(sizes)


def test_a_sample_is_measured_as_a_batch_of_one() -> None:
    task, structure = toy(2, 5)
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in task.data for i in range(5)]
    same(measure(task, structure, contexts="sample"), slow(list(CRITERIA["taylor"](Task(task.model, singles, task.loss), structure))))


def per_class(task: Task, structure: Structure, name: str, size: int) -> dict[str, Scores]:
    """One class after the other, in batches of `size`: as many passes as classes."""
    x, y = torch.cat([x for x, _ in task.data]), torch.cat([y for _, y in task.data])
    result: dict[str, Scores] = {}
    for label in y.unique().tolist():
        chunks = list(zip(x[y == label].split(size), y[y == label].split(size)))
        scores = list(CRITERIA[name](Task(task.model, chunks, task.loss, task.seed), structure))
        weighted = [tree.scale(s, len(labels)) for s, (_, labels) in zip(scores, chunks)]
        result[str(label)] = {group: sum(s[group] for s in weighted) for group in structure.groups}
    return result


@pytest.mark.parametrize("name", ["gradient", "taylor", "fisher"])
def test_classes_in_one_pass_agree_with_a_pass_for_every_class(name: str) -> None:
    task, structure = toy(6, 16, classes=3)
    measured = measure(task, structure, name, contexts="class")
    expected = per_class(task, structure, name, 16)
    same(measured, slow(list(expected.values())))
    torch.testing.assert_close(measured.keys, {key: normalised(scores) for key, scores in expected.items()})
    assert (measured.count, measured.samples, list(measured.keys)) == (3, 96, ["0", "1", "2"])


def test_a_class_quantile_is_exact_for_any_number_of_classes() -> None:
    task, structure = toy(10, 20, classes=90)
    measured = measure(task, structure, "gradient", contexts="class", local=0.5)
    assert measured.count > 64
    stacked = torch.stack([scores["h0"] for scores in measured.keys.values()])
    torch.testing.assert_close(measured.local["h0"], stacked.quantile(0.5, dim=0))


def test_the_class_that_needs_a_unit_is_named() -> None:
    model = mlp(3, 3, 3)
    with torch.no_grad():  # input c drives unit c, which drives class c
        model[0].weight.copy_(torch.eye(3))
        model[2].weight.copy_(torch.eye(3))
    y = torch.arange(3).repeat(8)
    data = [(torch.eye(3, dtype=torch.float64)[y], y)]
    measured = measure(Task(model, data, F.cross_entropy), Hidden(model), contexts="class")
    assert measured.needs("h0") == ["0", "1", "2"]
    assert measure(Task(model, data, F.cross_entropy), Hidden(model)).needs("h0") == [None] * 3
    with pytest.raises(BadInput, match=r"no group 'x'.*h0"):
        measured.needs("x")


def test_a_unit_that_no_class_needs_is_needed_by_none() -> None:
    task, structure = toy()
    with torch.no_grad():
        task.model[0].weight[2] = 0
        task.model[0].bias[2] = 0
        task.model[2].weight[:, 2] = 0
    assert [key is None for key in measure(task, structure, contexts="class").needs("h0")] == [False, False, True, False, False]


def test_a_context_of_zeros_counts_and_adds_nothing() -> None:
    _, structure = toy()
    collector = Collector(structure)
    ones = {name: torch.ones(group.shape) for name, group in structure.groups.items()}
    collector.update(ones)
    collector.update(tree.scale(ones, 0))
    measured = collector.sensitivity()
    assert measured.count == 2 and torch.allclose(measured.global_["h0"], torch.full((5,), 1 / 18))
    assert torch.allclose(measured.local["h0"], torch.full((5,), 1 / 9))


def test_two_measurements_agree_bit_for_bit_and_leave_the_model_alone() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.dropout(self.norm(self.a(x)), training=True))

    model = Noisy()
    model.a.weight.grad = torch.ones(5, 6)
    state, chance = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    loader = torch.utils.data.DataLoader(list(zip(torch.randn(20, 6), torch.randint(0, 3, (20,)))), batch_size=4, shuffle=True)
    chance = torch.get_rng_state()
    for contexts in ("batch", "sample", "class"):
        for name in NAMES:
            task = Task(model, loader, F.cross_entropy)
            first, second = measure(task, weights(model), name, contexts), measure(task, weights(model), name, contexts)
            torch.testing.assert_close(first.global_, second.global_, rtol=0, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    assert model.training and torch.equal(model.a.weight.grad, torch.ones(5, 6)) and model.b.weight.grad is None
    assert torch.equal(torch.get_rng_state(), chance)


class Counted:
    """Batches made as they are asked for, counting how many of them are alive."""

    def __init__(self, count: int, size: int = 4) -> None:
        self.count, self.size, self.alive, self.most = count, size, 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        chance = torch.Generator().manual_seed(0)
        for _ in range(self.count):
            x = torch.randn(self.size, 6, generator=chance, dtype=torch.float64)
            self.alive += 1
            weakref.finalize(x, self.gone)
            self.most = max(self.most, self.alive)
            yield x, torch.randint(0, 3, (self.size,), generator=chance)

    def gone(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize("contexts", ["batch", "sample", "class"])
@pytest.mark.parametrize("local", ["max", 0.9])
def test_memory_does_not_grow_with_the_data(contexts: str, local: str | float) -> None:
    _, structure = toy()

    def held(count: int) -> tuple[int, int]:
        """Batches alive at once, and elements the reductions hold in the end."""
        data, made = Counted(count), []
        scores = CRITERIA["taylor"]

        def watched(task: Task, structure: Structure) -> Iterator[Scores]:
            for value in scores(task, structure):
                made.append(weakref.ref(value["h0"]))
                yield value

        measure(Task(structure.model, data, F.cross_entropy), structure, watched, contexts, local)
        gc.collect()
        return data.most, sum(ref() is not None for ref in made)

    assert held(20) == held(60) and held(60)[0] <= 3


def test_keys_are_merged_by_their_root_mean_square_where_asked_for() -> None:
    task = Task(mlp(4, 5, 3), batches(3, 8, 4, 3), F.cross_entropy)
    measured = measure(task, weights(task.model), "taylor", contexts="class")
    expected = tree.apply(lambda *keys: torch.stack(keys).square().mean(0).sqrt(), *measured.keys.values())
    torch.testing.assert_close(merge(measured), measured.global_)
    torch.testing.assert_close(merge(measured, "rms"), expected)
    by_batch = measure(task, weights(task.model), "taylor")
    torch.testing.assert_close(merge(by_batch), by_batch.global_)


def test_merging_goes_from_global_to_local() -> None:
    task, structure = toy()
    measured = measure(task, structure)
    torch.testing.assert_close(merge(measured), measured.global_)
    torch.testing.assert_close(merge(measured, 1), normalised(measured.local))
    torch.testing.assert_close(
        merge(measured, 0.3), tree.add(tree.scale(measured.global_, 0.7), tree.scale(normalised(measured.local), 0.3))
    )
    assert tree.total(merge(measured, 0.3)) == pytest.approx(1)


def test_progress_is_told() -> None:
    task, structure = toy(3)
    told: list[tuple[int, int | None]] = []
    measure(task, structure, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    told.clear()
    measure(Task(task.model, Counted(2), task.loss), structure, contexts="class", progress=lambda *tell: told.append(tell))
    assert told[-1] == (2, None)


def test_training_steps_are_contexts() -> None:
    task, structure = toy()
    model = task.model
    collector = Collector(structure)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected: list[Scores] = []
    for x, y in task.data:
        expected += CRITERIA["taylor"](Task(model, [(x, y)], task.loss), structure)
        optimizer.zero_grad()
        task.loss(model(x), y).backward()
        collector.step(model)
        optimizer.step()
    same(collector.sensitivity(), slow(expected))
    assert collector.sensitivity().contexts == "step"


def test_a_step_finds_the_model_in_its_wrapper_and_leaves_out_what_overflowed() -> None:
    task, structure = toy(1)
    wrapped = nn.Module()
    wrapped.module = task.model
    x, y = task.data[0]
    task.loss(task.model(x), y).backward()
    collector = Collector(structure)
    collector.step(wrapped)
    task.model[0].weight.grad[0, 0] = float("inf")
    collector.step(task.model)
    assert collector.sensitivity().count == 1


def test_a_step_without_gradients_or_of_another_model_is_refused() -> None:
    _, structure = toy()
    with pytest.raises(BadInput, match=r"after loss\.backward"):
        Collector(structure).step(structure.model)
    with pytest.raises(BadInput, match=r"0\.weight with 30 elements, but this model has \(7, 6\)"):
        Collector(structure).step(mlp(6, 7, 4, 3))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(9)), st.integers(0, 9), st.sampled_from([None, "ab", "abc"]), st.sampled_from(["max", 0.4]))
def test_collectors_merge_to_what_one_would_have_seen(order: list[int], cut: int, keys: str | None, local: str | float) -> None:
    """However the contexts are dealt out over two, and in whatever order each sees its own."""
    task, structure = toy(9)
    scores = list(CRITERIA["taylor"](task, structure))

    def seen(numbers: list[int]) -> Collector:
        collector = Collector(structure, contexts="mine", local=local)
        for number in numbers:
            collector.update(scores[number], keys[number % len(keys)] if keys else None, 1 + number % 3, number)
        return collector

    whole, joint = seen(list(range(9))).sensitivity(), seen(order[:cut]).merge(seen(order[cut:])).sensitivity()
    for part in ("global_", "local", "spread", "error", "keys"):
        torch.testing.assert_close(getattr(joint, part), getattr(whole, part), rtol=1e-12, atol=1e-14)
    assert (joint.count, joint.samples, joint.stability) == (whole.count, whole.samples, whole.stability)


def test_merging_collectors_changes_neither() -> None:
    task, structure = toy(4)
    scores = list(CRITERIA["taylor"](task, structure))
    for key in (None, "a"):
        a, b = Collector(structure), Collector(structure)
        a.update(scores[0], key), b.update(scores[1], key)
        before = [part.sensitivity() for part in (a, b)]
        a.merge(b).update(scores[2], key)
        for part, then in zip((a, b), before):
            torch.testing.assert_close(part.sensitivity().global_, then.global_, rtol=0, atol=0)
            assert part.sensitivity().samples == then.samples


def test_collectors_of_different_things_do_not_merge() -> None:
    _, structure = toy()
    other = Hidden(mlp(6, 7, 4, 3))
    for different, says in (
        (Collector(structure, "fisher"), "differ in criterion: 'taylor' and 'fisher'"),
        (Collector(structure, local=0.5), "differ in local: 'max' and 0.5"),
        (Collector(structure, seed=1), "differ in seed"),
        (Collector(other), "different structures"),
    ):
        with pytest.raises(BadInput, match=says):
            Collector(structure).merge(different)


def constant(value: Callable[[Structure], object], times: int = 1, consume: bool = False) -> Callable[[Task, Structure], Iterator[Scores]]:
    def mine(task: Task, structure: Structure) -> Iterator[Scores]:
        if consume:
            list(task.batches())
        for _ in range(times):
            yield value(structure)  # type: ignore[misc]

    return mine


ONES = lambda structure: {name: torch.ones(group.shape) for name, group in structure.groups.items()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"criterion": "tailor"}, "no criterion 'tailor'"),
        ({"contexts": "epoch"}, "no contexts 'epoch'. Choose batch, sample, class"),
        ({"contexts": "step"}, "collected while training"),
        ({"local": 1.5}, "quantile in 0..1"),
        ({"local": "mean"}, '"max" or a quantile'),
        ({"local": True}, "quantile"),
        ({"criterion": lambda task, structure: None}, "returned NoneType, not scores"),
        ({"criterion": constant(ONES, times=0)}, "mine yielded no scores"),
        ({"criterion": constant(lambda s: {})}, r"mine gave none for the group h0, which has \(5,\) units"),
        ({"criterion": constant(lambda s: {"h0": torch.ones(3)})}, r"mine gave a tensor \(3,\) for the group h0"),
        ({"criterion": constant(lambda s: {**ONES(s), "h1": torch.full((4,), float("nan"))})}, "mine .* not finite in context 0 .*h1"),
        ({"criterion": constant(ONES, consume=True), "contexts": "class"}, "did not yield one score for each batch"),
    ],
)
def test_bad_arguments_are_said(arguments: dict[str, object], says: str) -> None:
    task, structure = toy()
    with pytest.raises(BadInput, match=says):
        measure(task, structure, **arguments)  # type: ignore[arg-type]


def test_a_score_that_is_not_finite_names_the_class() -> None:
    task, structure = toy()

    def mine(task: Task, structure: Structure) -> Iterator[Scores]:
        for _, y in task.batches():
            yield tree.scale(ONES(structure), float("inf") if 2 in y else 1.0)

    with pytest.raises(BadInput, match=r"mine .* not finite in the context 2"):
        measure(task, structure, mine, contexts="class")


@pytest.mark.parametrize("local", [-0.1, 1.1, float("nan"), "0.5", True, None])
def test_a_weight_outside_its_range_is_said(local: object) -> None:
    task, structure = toy()
    with pytest.raises(BadInput, match=r"0\.\.1"):
        merge(measure(task, structure, "l1"), local)  # type: ignore[arg-type]


def test_an_interrupt_passes() -> None:
    task, structure = toy()

    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    chance = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        measure(task, structure, progress=stop)
    assert task.model.training and torch.equal(torch.get_rng_state(), chance)
