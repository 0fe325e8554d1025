"""A sharded model is measured and cut where its shards are, as one process would have done it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ranks import ranks
from ranks_sharded import AMOUNTS, CRITERIA, DATA, WAYS, everything, read, whole
from secateur.measure import measure
from secateur.select import select
from secateur.structure import weights
from secateur.surgery import mask
from secateur.task import Task


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[dict[str, Tensor]]]:
    """What two processes said and wrote."""
    folder = tmp_path_factory.mktemp("shards")
    said = ranks(f"ranks_sharded:{everything.__name__}", str(folder))
    return said, read(folder)


@pytest.fixture
def parts(ran: tuple[list[str], list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
    return ran[1]


@pytest.mark.slow
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("contexts", "by"), WAYS)
def test_shards_have_the_scores_of_the_whole(parts: list[dict[str, Tensor]], criterion: str, contexts: str, by: str | float) -> None:
    model = whole()
    expected = measure(Task(model, DATA, F.cross_entropy), weights(model), criterion, contexts, by)
    named = {"global": expected.global_, "local": expected.local, "spread": expected.spread, "error": expected.error or {}}
    named |= {f"key {key}": scores for key, scores in expected.keys.items()}
    for part, scores in named.items():
        for name, value in scores.items():
            joined = torch.cat([shard[f"{criterion}/{contexts}/{by}/{part}/{name}"] for shard in parts])
            torch.testing.assert_close(joined, value, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("amount", AMOUNTS)
def test_masks_on_shards_are_those_of_one_process(parts: list[dict[str, Tensor]], amount: float) -> None:
    model = whole()
    structure = weights(model, DATA[0][0])
    pruned = mask(model, select(measure(Task(model, DATA, F.cross_entropy), structure).global_, structure, amount))
    for name, value in pruned.named_parameters():
        if name in structure.groups:
            assert torch.equal(torch.cat([shard[f"masked/{amount}/{name}"] for shard in parts]), value)
    if amount == 0.5:
        for shard in parts:
            torch.testing.assert_close(shard["output"], pruned(DATA[0][0]))


@pytest.mark.slow
def test_what_shards_cannot_do_is_said(ran: tuple[list[str], list[dict[str, Tensor]]]) -> None:
    expected = ("before the model is sharded", "by leaves of its own", "enough=", "checkpoint=", "out of reach", "has (", "has none")
    for said in ran[0]:
        assert len(said.splitlines()) == len(expected)
        assert all(words in line for line, words in zip(said.splitlines(), expected))
