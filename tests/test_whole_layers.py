"""structure/layers.py: what may be skipped is the identity without its parameters, and a model without it is the masked one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.structure import all_kept
from secateur.structure.layers import ALONE


class Block(nn.Module):
    """A residual block with its norm in front; behind the sum, if asked for."""

    def __init__(self, width: int = 8, behind: bool = False) -> None:
        super().__init__()
        self.norm, self.inner, self.outer, self.behind = nn.LayerNorm(width), nn.Linear(width, 12), nn.Linear(12, width), behind

    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(self.inner(x if self.behind else self.norm(x)).relu())
        return self.norm(x + y) if self.behind else x + y


def stack(behind: bool = False, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), *(Block(8, behind) for _ in range(4)), nn.Linear(8, 3)).double().eval()


X = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
DATA = [(X, torch.tensor([0, 1, 2, 0, 1, 2]))]


def test_blocks_whose_branch_vanishes_are_units_and_other_modules_are_none():
    structure = sc.layers(stack(), X)
    assert structure.blocks == {"layers": ("1", "2", "3", "4")} and not structure.groups["layers"].approximate


@pytest.mark.parametrize("gone", [[0], [1, 3], [0, 1, 2]])
def test_the_model_without_them_is_the_masked_one(gone: list[int]):
    model, structure = stack(), sc.layers(stack(), X)
    keep = {"layers": torch.tensor([unit not in gone for unit in range(4)])}
    plan = sc.select({"layers": keep["layers"].double()}, structure, threshold=0.5)
    small = sc.shrink(model, plan)
    assert plan.skipped == tuple(str(unit + 1) for unit in gone)
    torch.testing.assert_close(small(X), sc.mask(model, plan)(X), rtol=1e-12, atol=1e-12)
    gone_elements = sum(value.numel() for unit in gone for value in model[unit + 1].parameters())
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in model.parameters()) - gone_elements
    assert sum(structure.count(keep).values()) == sum(p.numel() for p in small.parameters())


def test_parts_are_what_reduce_sums():
    structure = sc.layers(stack(), X)
    values = {name: torch.randn(shape, dtype=torch.float64) for name, shape in structure.shapes.items()}
    torch.testing.assert_close(structure.parts(values)["layers"].sum(1), structure.reduce(values)["layers"])


def test_reduce_is_the_derivative_of_expand():
    structure = sc.layers(stack(), X)
    values = {name: torch.randn(shape, dtype=torch.float64) for name, shape in structure.shapes.items()}
    gates = {"layers": torch.ones(4, dtype=torch.float64, requires_grad=True)}
    inner = sum((values[name] * mask).sum() for name, mask in structure.expand(gates).items())
    torch.testing.assert_close(structure.reduce(values)["layers"], torch.autograd.grad(inner, gates["layers"])[0])


def test_a_norm_behind_the_sum_makes_the_group_approximate_and_exact_leaves_it():
    structure = sc.layers(stack(behind=True), X)
    assert list(structure.groups) == ["layers, approximate"] and structure.groups["layers, approximate"].approximate
    assert not sc.layers(stack(behind=True), X, exact=True).groups


class Conditioned(nn.Module):
    """Its first argument is not the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Bilinear(8, 8, 8) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        stream = x
        for block in self.blocks:
            stream = stream + block(x, stream)
        return stream


def test_what_is_no_block_is_not_skipped():
    assert not sc.layers(Conditioned(), torch.randn(4, 8)).groups
    rows = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    assert not sc.layers(rows, torch.randn(4, 8)).groups


class Scaled(Block):
    """A stream that is not passed on as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def test_why_nothing_is_a_unit_is_known():
    only = sc.layers(nn.Sequential(nn.Linear(5, 8), Block(8), nn.Linear(8, 3)), torch.randn(6, 5))
    assert not only.groups and {name: group.frozen for name, group in only.frozen.items()} == {"1": ALONE.format(how="")}
    none = sc.layers(nn.Sequential(nn.Linear(5, 8), Scaled(8), nn.Linear(8, 3)), torch.randn(6, 5))
    assert not none.groups and {name: group.frozen for name, group in none.frozen.items()} == {
        "1": "with its parameters at zero it is not the identity"
    }
    with pytest.raises(sc.NothingToPrune, match="1: it is the only layer that could be skipped"):
        sc.measure(sc.Task(nn.Sequential(Block(5)), [], F.cross_entropy), only)


@pytest.mark.parametrize(("depth", "leave"), [(2, {}), (3, {"layers, approximate": 2})])  # an encoder asks for parts of its first layer
def test_two_that_stay_are_not_each_called_the_only_one(depth: int, leave: dict[str, int]):
    """One that is skipped exactly, beside one or two that are skipped only approximately."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(Block(8), nn.TransformerEncoder(layer, depth, enable_nested_tensor=False))
    found = sc.layers(model, torch.randn(2, 5, 8))
    assert {name: group.size for name, group in found.groups.items()} == leave
    assert found.frozen["0"].frozen == "it is the only layer that could be skipped exactly, and one has to stay"
    if not leave:
        assert found.frozen["1.layers.1"].frozen == "it is the only layer that could be skipped approximately, and one has to stay"


def test_it_survives_the_disk_and_the_optimizer_goes_on(tmp_path: Path):
    model = stack()
    pruned = sc.prune(model, X, DATA, F.cross_entropy, structure="layers", amount=0.4, of="parameters")
    sc.save(tmp_path / "small", pruned.model, pruned.plan)
    assert torch.equal(sc.load(tmp_path / "small", lambda: stack(seed=1))(X), pruned.model(X))
    optimizer = torch.optim.Adam(model.parameters())
    F.cross_entropy(model(X), DATA[0][1]).backward()
    optimizer.step()
    again = sc.rebind(optimizer, model, pruned.model, pruned.plan)
    assert len(again.param_groups[0]["params"]) == len([*pruned.model.parameters()])


def test_parts_that_the_model_asks_for_stay():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3, enable_nested_tensor=False).eval()
    structure = sc.layers(encoder, torch.randn(2, 4, 8))
    assert structure.blocks == {"layers, approximate": ("layers.1", "layers.2")}
    assert "asks for parts of it" in structure.frozen["layers.0"].frozen


def test_nothing_of_the_callers_changes():
    model = stack()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    keep = all_kept(sc.layers(model, X))
    assert all(value.all() for value in keep.values()) and all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_residual_blocks_is_refused_in_the_words_of_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    structure = sc.layers(model, torch.randn(2, 4))
    with pytest.raises(sc.NothingToPrune, match=r"residual connection\)\. Prune other units of it instead: structure 'channels'"):
        sc.select({}, structure, 0.5)
