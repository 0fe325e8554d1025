"""The batches of an epoch depend on the seed and on the number of the epoch, and on nothing else."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from secateur.epochs import batches_of, generator_kept, samples_of


def order(data: DataLoader, epoch: int, seed: int = 0) -> list[int]:
    return torch.cat([batch[0] for batch in batches_of(data, epoch, seed)[0]]).tolist()


def loader(generator: torch.Generator | None = None) -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(20)), batch_size=4, shuffle=True, generator=generator)


def test_the_order_follows_seed_and_epoch():
    with torch.random.fork_rng():
        for generator in (None, torch.Generator()):
            data = loader(generator)
            first, second = order(data, 0), order(data, 1)
            assert first != second and sorted(first) == list(range(20))
            torch.rand(3)
            assert order(data, 1) == second and order(loader(generator), 0) == first and order(data, 0, seed=1) != first


def test_a_loaders_generator_is_given_back_as_it_was():
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    with torch.random.fork_rng(), generator_kept(data := loader(generator)):
        order(data, 3)
        assert not torch.equal(generator.get_state(), before)
    assert torch.equal(generator.get_state(), before)


def test_the_number_of_batches_where_it_is_known():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from torch.arange(6)

    with torch.random.fork_rng():
        assert batches_of([1, 2, 3], 0, 0)[1] == 3 and batches_of(loader(), 0, 0)[1] == 5
        assert batches_of(DataLoader(Stream(), batch_size=2), 0, 0)[1] == 0


def test_data_and_samplers_are_told_the_epoch():
    class Sampler(torch.utils.data.SequentialSampler):
        told = -1

        def set_epoch(self, epoch: int) -> None:
            self.told = epoch

    class ByEpoch:
        def epoch(self, k: int) -> list[int]:
            return [k] * 2

    sampler = Sampler(range(4))
    with torch.random.fork_rng():
        batches_of(DataLoader(range(4), sampler=sampler), 7, 0)
        assert sampler.told == 7 and batches_of(ByEpoch(), 3, 0) == ([3, 3], 2)


def test_samples_of_a_batch():
    assert samples_of(torch.zeros(5, 2)) == 5 and samples_of({"x": torch.zeros(3), "n": 1}) == 3 and samples_of((1, torch.zeros(4))) == 4
    assert samples_of("text") == 1
