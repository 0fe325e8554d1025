"""Architectures as users build them: what an expert would prune can be pruned, and the smaller model is the masked one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from families import FAMILIES
from family import Family
from secateur.structure import Channels
from secateur.structure.cut import cut
from secateur.structure.rules import flat
from secateur.structure.trial import uneven
from secateur.surgery.verify import difference
from secateur.task import call


def missing(structure: Channels, family: Family) -> dict[tuple[str, int], list[str]]:
    """What cannot be pruned although it is expected to be, with the reasons."""
    found = {member for group in structure.groups.values() for member in group.members}
    return {
        member: [group.frozen for group in structure.frozen.values() if member in group.members]
        for member in family.smaller
        if member not in found
    }


def prunable(family: Family) -> tuple[nn.Module, Channels]:
    """The model in the user's own class if all that is expected can be pruned there, else as a graph."""
    model, inputs = family.model(), family.inputs()
    structure = sc.channels(model, inputs)
    reasons = missing(structure, family)
    if not reasons:
        return model, structure
    graph = sc.as_graph(model, inputs)
    structure = sc.channels(graph, inputs)
    assert not missing(structure, family)
    return graph, structure


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_what_is_expected_can_be_pruned_and_equals_the_mask(family: Family):
    model, structure = prunable(family)
    inputs = family.inputs()
    keep = uneven(structure, 7)
    small = cut(model, structure.kept(keep), structure.sizes(keep))
    before, after = tensors(call(model, inputs)), tensors(call(small, inputs))
    assert [value.shape for value in after] == [value.shape for value in before]
    torch.autograd.backward([value.sum() for value in after if value.requires_grad])
    assert any(value.grad is not None for value in small.parameters())
    exact = sc.channels(model, inputs, exact=True)
    for seed in (3, 4):
        assert difference(model, exact, uneven(exact, seed), inputs) <= 1e-9


def tensors(value: object) -> list[Tensor]:
    return [leaf for leaf in flat(value) if isinstance(leaf, Tensor)]
