"""repair/spill.py: what runs have made lies on disk while they wait, and nobody notices."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from cases import Net
from secateur.errors import BadInput
from secateur.flows.reading import Made
from secateur.repair.spill import Spill, bytes_of
from shards import NETS, all_in, correlated, stored_net, write_shards


def in_place(net: Net, x: Tensor) -> Tensor:
    """Views, sums in place, parts that are overwritten, and something of another type."""
    x = net.a(x)
    left, right = x.chunk(2, -1)
    left.add_(1)
    x = x.clone().relu_()
    x[:, :2] = right[:, :2]
    return net.b(x) + net.c(x.bool().double().T.contiguous().T)


NETS["in place"] = (
    lambda: Net(in_place, a=nn.Linear(8, 12), b=nn.Linear(12, 5), c=nn.Linear(12, 5)), lambda: correlated(24, 8),
)  # fmt: skip


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_files_are_the_same_bit_for_bit_and_nothing_stays_in_memory(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    _, build, data = stored_net(name, tmp_path / "dense", dtype)
    (tmp_path / "spilled").mkdir()
    sc.prune_shards(build, tmp_path / "dense", tmp_path / "memory", data, amount=0.5)
    sizes, out = list[int](), Spill.out

    def looked_at(spill: Spill, made: Made, stay: list[Tensor]) -> None:
        assert made.out.untyped_storage().nbytes()
        out(spill, made, stay)
        assert not made.out.untyped_storage().nbytes()
        sizes.append(sum(size for _, size in spill.away))

    with mock.patch.object(Spill, "out", looked_at):
        found = sc.prune_shards(build, tmp_path / "dense", tmp_path / "disk", data, amount=0.5, spill=tmp_path / "spilled")
    assert all_in(tmp_path / "disk") == all_in(tmp_path / "memory")
    assert len(sizes) == 2 * len(data) * len(found.weights) and min(sizes) > 0
    assert not [*(tmp_path / "spilled").iterdir()]


def test_of_all_runs_those_on_one_batch_are_in_memory(tmp_path: Path) -> None:
    """Counted whenever runs wait: what was made, and lies neither on disk nor with one that is looked at."""
    _, build, data = stored_net("layers", tmp_path / "dense")
    spills, most, out, back = dict[int, Spill](), list[int](), Spill.out, Spill.back

    def filled() -> int:
        return sum(1 for spill in spills.values() if not spill.away)

    def outward(spill: Spill, made: Made, stay: list[Tensor]) -> None:
        spills[id(spill)] = spill
        most.append(filled())
        out(spill, made, stay)

    def inward(spill: Spill) -> None:
        back(spill)
        most.append(filled())

    with mock.patch.object(Spill, "out", outward), mock.patch.object(Spill, "back", inward):
        sc.prune_shards(build, tmp_path / "dense", tmp_path / "out", data, amount=0.5, spill=tmp_path)
    assert len(spills) == 2 * len(data) == 6 and max(most) == 2


def test_bytes_go_and_come_back() -> None:
    with tempfile.TemporaryFile() as file:
        spill, given = Spill(file), torch.randn(3, 4)
        made, view = given * 2, given[1:]
        also = made.T
        spill.note(made, [given])
        spill.note(view, [given])
        spill.note(also, [made])
        expected = made.clone()
        halted = mock.Mock(out=also, args=(made,), kwargs={})
        for _ in range(2):
            spill.out(halted, [])
            assert not made.untyped_storage().nbytes() and not also.untyped_storage().nbytes() and view.untyped_storage().nbytes()
            spill.back()
            assert torch.equal(made, expected) and torch.equal(also, expected.T)
        assert bytes_of(made.untyped_storage()).raw == expected.numpy().tobytes()
        spill.out(halted, [made])
        assert torch.equal(made, expected) and not spill.away  # somebody else has it, too


def test_what_one_run_keeps_for_others_is_told(tmp_path: Path) -> None:
    kept: list[Tensor] = []

    def keeping(net: Net, x: Tensor) -> Tensor:
        if not kept:
            kept.append(torch.ones(8).double() * 2)
        return net.b(net.a(x * kept[0]) * kept[0][:1])  # type: ignore[no-any-return]

    def build() -> nn.Module:
        return Net(keeping, a=nn.Linear(8, 12), b=nn.Linear(12, 5)).double()

    write_shards(tmp_path / "dense", build().state_dict(), 1)
    kept.append(torch.ones(8).double())
    data = [(correlated(6, 8).double(), None) for _ in range(2)]
    sc.prune_shards(build, tmp_path / "dense", tmp_path / "made before", data, amount=0.5, spill=tmp_path)

    def forgets(*_: object) -> None:
        kept.clear()

    late = mock.patch("secateur.repair.prune_shards.running", side_effect=running_after(forgets))
    with late, pytest.raises(BadInput, match="spill= out"):
        sc.prune_shards(build, tmp_path / "dense", tmp_path / "out", data, amount=0.5, spill=tmp_path)


def running_after(what: object) -> object:
    from secateur.repair.lockstep import running

    def begun(bodies: object) -> object:
        what()  # type: ignore[operator]
        return running(bodies)  # type: ignore[arg-type]

    return begun


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    _, build, data = stored_net("layers", tmp_path / "dense")
    with pytest.raises(BadInput, match="is no folder"):
        sc.prune_shards(build, tmp_path / "dense", tmp_path / "out", data, amount=0.5, spill=tmp_path / "none")
    assert not (tmp_path / "out").exists()
