"""Batches are what they were at every reading; a split takes every sample once and shares out each class."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from secateur.errors import BadInput
from secateur.frontends.batches import Arrays, Batches, Items, pair_of, split


def arrays(*counts: int) -> Arrays:
    """Samples sorted by class, `counts` of each; an input is the sample's number."""
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Arrays(torch.arange(len(targets)).float().view(-1, 1), targets)


def numbers(batches: Iterable[object]) -> list[int]:
    return [int(number) for inputs, _ in batches for number in inputs.flatten()]


@pytest.mark.parametrize("of", [lambda pile: pile, lambda pile: Items(TensorDataset(pile.inputs, pile.targets))], ids=["arrays", "items"])
def test_batches_are_the_samples_in_their_order(of):
    batches = Batches(of(arrays(5, 6)), 4, [7, 1, 3, 10, 0])
    assert len(batches) == len(list(batches)) == 2
    assert numbers(batches) == numbers(batches) == [7, 1, 3, 10, 0]
    assert torch.cat([targets for _, targets in batches]).tolist() == [1, 0, 0, 1, 0]
    assert len(Batches(of(arrays(5, 6)), 4)) == 3


def test_shuffled_batches_are_new_each_epoch_and_the_same_for_a_seed():
    plain = Batches(arrays(20, 20), 8)
    state = torch.get_rng_state()
    one, two = plain.shuffled(1), plain.shuffled(1)
    epochs = [numbers(one), numbers(one), numbers(one)]
    assert epochs[0] != epochs[1] and all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert [numbers(two), numbers(two)] == epochs[:2] and numbers(plain.shuffled(2)) != epochs[0]
    later = plain.shuffled(1)
    later.epoch = 2  # as after a stop
    assert numbers(later) == epochs[2]
    assert numbers(plain) == list(range(40)) and torch.equal(state, torch.get_rng_state())


def test_a_split_takes_every_sample_once_and_shares_out_each_class():
    pile = arrays(50, 100, 30)
    indices, how = split(pile, (0.8, 0.1, 0.1), 0, "the data")
    assert how == "stratified" and sorted(itertools.chain(*indices)) == list(range(180))
    for part, share in zip(indices, (0.8, 0.1, 0.1)):
        assert collections.Counter(pile.targets[part].tolist()) == {0: 50 * share, 1: 100 * share, 2: 30 * share}
    assert split(pile, (0.8, 0.1, 0.1), 0, "")[0] == indices != split(pile, (0.8, 0.1, 0.1), 1, "")[0]


def test_a_class_too_rare_to_share_out_is_noted():
    indices, how = split(arrays(50, 1), (0.8, 0.1, 0.1), 0, "the data")
    assert how == "not stratified: the rarest class has 1 samples, too few for every split"
    assert sorted(itertools.chain(*indices)) == list(range(51)) and all(indices)


@pytest.mark.parametrize("targets", [torch.rand(20), torch.zeros(20, 2, dtype=torch.long)], ids=["real", "masks"])
def test_targets_that_are_not_classes_are_split_plainly(targets: Tensor):
    indices, how = split(Arrays(torch.rand(20, 1), targets), (0.9, 0.1), 0, "the data")
    assert how == "not stratified: the targets are not classes" and [len(part) for part in indices] == [18, 2]


@pytest.mark.parametrize("counts, said", [((5, 4), "has 9 samples, too few"), ((20,), "All 20 samples of the data are of the class 0")])
def test_what_cannot_be_split_is_said(counts: tuple[int, ...], said: str):
    with pytest.raises(BadInput, match=said):
        split(arrays(*counts), (0.8, 0.1, 0.1), 0, "the data")


class Counted(list):
    """Samples that count how often they are read, with their classes beside them."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def test_classes_are_taken_from_the_data_set_where_it_has_them():
    samples = Counted([(torch.zeros(1), n % 2) for n in range(10)])
    assert Items(samples).labels() == [0, 1] * 5 and samples.reads == 10
    samples.targets = [1, 0] * 5
    assert Items(samples).labels() == [1, 0] * 5 and samples.reads == 10
    samples.targets = lambda: None  # not a list of them
    assert Items(samples).labels() == [0, 1] * 5
    assert Items([torch.zeros(1)] * 10).labels() is None


def test_samples_of_several_sizes_are_named():
    with pytest.raises(BadInput, match=r"Samples 0 to 1 of the data do not go into one batch: .*Let the data set give"):
        list(Batches(Items([(torch.zeros(1), 0), (torch.zeros(2), 0)])))


def test_inputs_and_targets_are_as_many():
    with pytest.raises(BadInput, match=r"has inputs of shape \(3, 1\) and targets of shape \(2,\) in 0..0, not as many"):
        pair_of(torch.zeros(3, 1), torch.zeros(2, dtype=torch.long), "the data")
    assert pair_of(torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.long), "").targets.shape == (3,)
    with pytest.raises(BadInput, match="A batch of 0 samples"):
        Batches(arrays(2, 2), 0)
