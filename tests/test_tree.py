from __future__ import annotations

import torch

from secateur import tree

A = {"x": torch.tensor([1.0, -2.0]), "y": torch.tensor([[3.0]])}
B = {"x": torch.tensor([4.0, 5.0]), "y": torch.tensor([[-6.0]])}


def same(a: tree.Tree, b: tree.Tree) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_arithmetic_is_by_name_and_element() -> None:
    assert same(tree.add(A, B), {"x": torch.tensor([5.0, 3.0]), "y": torch.tensor([[-3.0]])})
    assert same(tree.mul(A, B), {"x": torch.tensor([4.0, -10.0]), "y": torch.tensor([[-18.0]])})
    assert same(tree.scale(A, 2.0), {"x": torch.tensor([2.0, -4.0]), "y": torch.tensor([[6.0]])})
    assert same(tree.square(A), tree.mul(A, A))
    assert same(tree.absolute(A), {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([[3.0]])})
    assert (tree.total(A), tree.size(A)) == (2.0, 3)


def test_the_order_of_names_does_not_matter() -> None:
    assert same(tree.add(A, dict(reversed(B.items()))), tree.add(A, B))


def test_a_total_is_taken_in_double_precision() -> None:
    assert tree.total({"x": torch.tensor([1e8, 1.0], dtype=torch.float32), "y": torch.tensor([-1e8], dtype=torch.float32)}) == 1.0


def test_unflat_undoes_flat() -> None:
    assert same(tree.unflat(tree.flat(A), A), A)
    assert tree.flat({}).shape == (0,)
