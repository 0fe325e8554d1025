from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.contexts import CONTEXTS, WAITING, Keys, by_batch, by_class, by_sample, cut_of, natural
from secateur.errors import BadInput
from secateur.stream import Stream


def numbered(sizes: list[int], classes: int) -> list[tuple[Tensor, Tensor]]:
    """Samples 0, 1, 2, ... in batches of these sizes, with pseudo-random labels."""
    labels = torch.randint(0, classes, (sum(sizes),), generator=torch.Generator().manual_seed(len(sizes)))
    return list(zip(torch.arange(sum(sizes)).split(sizes), labels.split(sizes)))


SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=30)


@given(SIZES, st.integers(1, 9), st.sampled_from(sorted(CONTEXTS)))
def test_every_sample_comes_once_whatever_the_contexts(sizes: list[int], classes: int, contexts: str) -> None:
    data = numbered(sizes, classes)
    pieces = list(CONTEXTS[contexts](data))
    seen = torch.cat([x for _, _, (x, _), _ in pieces])
    assert sorted(seen.tolist()) == list(range(sum(sizes)))
    label = dict(zip(torch.cat([x for x, _ in data]).tolist(), torch.cat([y for _, y in data]).tolist()))
    for key, samples, (x, y), _ in pieces:
        assert samples == len(x) == len(y) and [label[i] for i in x.tolist()] == y.tolist()
        if contexts == "class":
            assert {str(i) for i in y.tolist()} == {key}
        else:
            assert key is None


@given(SIZES, st.integers(1, 9))
def test_classes_keep_the_order_and_batches_no_larger_than_they_came(sizes: list[int], classes: int) -> None:
    by_key: dict[str | None, list[int]] = {}
    for key, samples, (x, _), _ in by_class(numbered(sizes, classes)):
        assert samples <= max(sizes)
        by_key.setdefault(key, []).extend(x.tolist())
    assert all(found == sorted(found) for found in by_key.values())


@given(SIZES, st.integers(1, 40))
def test_only_so_many_samples_wait(sizes: list[int], classes: int) -> None:
    stream = Stream(numbered(sizes, classes), by_class)
    handed, taken = 0, 0
    for x, _ in stream:
        handed += len(x)
        taken = sum(sizes[: stream.taken])
        if stream.taken < len(sizes):
            assert taken - handed <= (WAITING + 1) * max(sizes)


def test_large_classes_come_in_full_batches() -> None:
    sizes = Counter(samples for _, samples, _, _ in by_class(numbered([16] * 40, 4)))
    assert sizes[16] >= 36


def test_samples_are_cut_from_dicts_and_what_is_not_per_sample_is_kept() -> None:
    batch = {"x": torch.arange(6).view(3, 2), "mask": torch.ones(1, 2), "labels": torch.tensor([1, 0, 1]), "flag": True}
    pieces = [piece for _, _, piece, _ in by_sample([batch])]
    assert [piece["x"].tolist() for piece in pieces] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert all(piece["mask"].shape == (1, 2) and piece["flag"] is True for piece in pieces)
    full, *zeros, one = by_class([batch, batch])
    assert full.batch["x"].tolist() == [[0, 1], [4, 5], [0, 1]] and full.batch["labels"].tolist() == [1, 1, 1]
    assert [zero.batch["x"].tolist() for zero in zeros] == [[[2, 3]], [[2, 3]]] and one.batch["x"].tolist() == [[4, 5]]
    assert all(piece.batch["mask"].shape == (1, 2) for piece in (full, *zeros, one))


def tagged(count: int, size: int = 8) -> list[tuple[Tensor, dict[str, object]]]:
    """Samples with their number in a tensor, a list, a tuple and an array, in lists of lists, and with what is of the whole batch."""
    numbers = torch.arange(count * size).split(size)
    return [
        (
            part,
            {
                "labels": part % 3,
                "names": [f"n{n}" for n in part.tolist()],
                "pair": [(*map(str, part.tolist()),), [*part]],
                "array": part.numpy() * 2,
                "deep": [{"n": [n]} for n in part.tolist()],
                "colours": ["red", "green"],
                "none": None,
            },
        )
        for part in numbers
    ]


@pytest.mark.parametrize("contexts", ["sample", "class", lambda batch: [int(name[1:]) % 2 for name in batch[1]["names"]]])
def test_lists_of_a_text_or_number_for_every_sample_are_cut_with_them(contexts: str | Keys) -> None:
    seen: list[int] = []
    pieces = list(cut_of(contexts)[0](tagged(4)))
    for _, samples, (x, beside), _ in pieces:  # type: ignore[misc]
        numbers = x.tolist()
        assert len(numbers) == samples == len(beside["names"])
        assert beside["labels"].tolist() == [n % 3 for n in numbers]
        assert beside["names"] == [f"n{n}" for n in numbers] and beside["pair"][0] == [*map(str, numbers)]
        assert [int(n) for n in beside["pair"][1]] == numbers and beside["array"].tolist() == [2 * n for n in numbers]
        assert beside["deep"] == [{"n": [n]} for n in numbers]
        assert beside["colours"] == ["red", "green"] and beside["none"] is None
        seen += numbers
    assert sorted(seen) == list(range(32))
    assert contexts == "sample" or max(samples for _, samples, _, _ in pieces) == 8  # they wait for others, and are joined


def test_targets_may_be_lists_alone() -> None:
    data = [(torch.arange(4), {"lang": ["en", "de", "en", "de"]})] * 3
    pieces = list(cut_of(lambda batch: batch[1]["lang"])[0](data))  # type: ignore[index]
    assert all(set(piece.batch[1]["lang"]) == {piece.key} for piece in pieces)  # type: ignore[index]
    with pytest.raises(BadInput, match="cannot be cut into samples"):
        list(by_sample([(torch.zeros(4, 3), {"lang": ["en"] * 4, "y": torch.zeros(3)})]))
    with pytest.raises(BadInput, match="cannot be cut into samples"):
        list(by_sample([(torch.zeros(4, 3), {"lang": ["en"] * 3})]))


def test_whole_numbers_are_in_their_order_before_other_keys() -> None:
    keys = ["b", "10", "--5", "-3", "2", "a", "9" * 5000, "-", "", "٣", "1.5"]
    assert sorted(keys, key=natural)[:3] == ["-3", "2", "10"]


@given(SIZES, st.integers(1, 9))
def test_only_a_class_that_went_on_early_is_in_one_piece(sizes: list[int], classes: int) -> None:
    pieces: dict[str | None, list[int]] = {}
    for key, samples, _, _ in by_class(numbered(sizes, classes)):
        pieces.setdefault(key, []).append(samples)
    early = sum(sizes) > WAITING * max(sizes)
    assert all(len(found) > 1 or found == [1] or early for found in pieces.values())


def test_samples_of_different_shapes_are_not_mixed() -> None:
    data = [(torch.zeros(2, width), torch.tensor([0, 0])) for width in (3, 5, 3)]
    assert sorted(tuple(x.shape) for _, _, (x, _), _ in by_class(data)) == [(2, 3), (2, 3), (2, 5)]


def test_a_piece_does_not_hold_the_batch_it_was_cut_from() -> None:
    x = torch.zeros(100, 50)
    for cut in (by_sample, by_class):
        for _, samples, (part, _), _ in cut([(x, torch.arange(100))]):
            assert part.untyped_storage().nbytes() == samples * 50 * 4


def test_a_stream_remembers_what_it_handed_out_and_starts_anew() -> None:
    stream = Stream(numbered([4, 4, 3], 2), by_batch)
    for _ in range(2):
        assert [(stream.taken, stream.handed, stream.samples) for _ in stream] == [(1, 1, 4), (2, 2, 4), (3, 3, 3)]


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ((torch.zeros(3, 2), torch.zeros(3)), r"whole number for every sample .* of shape \(3,\)"),
        ((torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64)), "whole number"),
        ({"x": torch.zeros(3, 2), "y": torch.zeros(3, dtype=torch.int64)}, '"labels" or "label"'),
        ((torch.zeros(5, 3, 2), torch.zeros(3, dtype=torch.int64)), "cannot be cut into samples"),
    ],
)
def test_batches_without_labels_have_no_classes(batch: object, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        list(by_class([batch]))


def test_inputs_and_targets_must_agree_on_the_samples() -> None:
    with pytest.raises(BadInput, match=r"inputs are of shape \(5, 3, 2\) and its targets of shape \(3,\)"):
        list(by_sample([(torch.zeros(5, 3, 2), torch.zeros(3))]))
