"""criteria/passes.py: data that can be gone through again, and that counts."""

from __future__ import annotations

import torch

from secateur.criteria.passes import Counted, Passes


def test_data_of_a_function_can_be_gone_through_again() -> None:
    data = Passes(lambda: iter(range(3)))
    assert list(data) == list(data) == [0, 1, 2]


def test_the_samples_of_the_batch_that_was_given_last_are_known() -> None:
    batches = [(torch.zeros(size, 2), torch.zeros(size)) for size in (4, 1)]
    data = Counted(batches)
    assert [data.samples for _ in data] == [4, 1] == [data.samples for _ in data]
