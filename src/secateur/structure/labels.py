"""Labels of indices: a union-find over label numbers in which a label may also stand for a pair of others.

A `Dim` holds the labels of one tensor dimension: an array (factors, indices). An index is removed if any of its factors is; 0 is no label,
and an index without one is inert: it is never removed. A dimension without labels is an array (0, indices).

Everything works on whole vectors. Three things can happen to a label:
- it is united with another one: both leave together;
- it is frozen, with a reason: it never leaves;
- it is split into a pair (outer, inner) when its dimension is viewed as two: the index leaves if either half does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Dim = NDArray[np.int64]
Vector = NDArray[np.int64]

CHANNEL, OUTER, INNER = 0, 1, 2  # what a label is by its making
HEAD, WITHIN_HEAD, HIDDEN, EXPERT = 1, 2, 3, 4  # what it turns out to be by its use; 0: nothing special
FROZEN, APPROXIMATE, ROLE, LEAST, MULTIPLE = range(5)  # what is marked on a label; the first two by the number of a reason
KERNEL = "the extent of a kernel"  # frozen as a matter of course: nothing to report


def inert(size: int) -> Dim:
    return np.zeros((0, size), np.int64)


def merge(a: Dim, b: Dim) -> Dim:
    """Labels of a dimension that runs over a (slow) and b (fast)."""
    n, m = a.shape[1], b.shape[1]
    return np.concatenate([np.repeat(a, m, axis=1), np.tile(b, (1, n))])


def join(dims: Sequence[Dim]) -> Dim:
    """Labels of the concatenation."""
    factors = max(len(dim) for dim in dims)
    return np.concatenate([dim if len(dim) == factors else np.pad(dim, ((0, factors - len(dim)), (0, 0))) for dim in dims], axis=1)


class Labels:
    """The union-find. `step` is the operator at work; a union or a reason remembers it."""

    def __init__(self) -> None:
        self.size = 1
        self.parent, self.left, self.right, self.kind, self.family = (np.zeros(1024, np.int64) for _ in range(5))
        self.marks = np.zeros((5, 1024), np.int64)
        self.frozen, self.approximate, self.role, self.least, self.multiple = self.marks
        self.reasons: list[str] = [""]
        self.links: list[tuple[Vector, int]] = []  # labels that an operator united
        self.pairs = False  # whether any label stands for two
        self.step = -1
        self.place = ""

    # making -----------------------------------------------------------------------------------------------------------------------------

    def fresh(self, n: int, kind: int = CHANNEL) -> Dim:
        start, self.size = self.size, self.size + n
        while self.size > len(self.parent):
            for name in ("parent", "left", "right", "kind", "family", "marks"):
                array = getattr(self, name)
                setattr(self, name, np.concatenate([array, np.zeros_like(array)], axis=-1))
            self.frozen, self.approximate, self.role, self.least, self.multiple = self.marks
        new = np.arange(start, self.size, dtype=np.int64)
        self.parent[start : self.size], self.kind[start : self.size] = new, kind
        self.family[start : self.size] = start if kind else 0  # halves of a split are told apart, even where no tensor shows them apart
        return new[None]

    # reading ----------------------------------------------------------------------------------------------------------------------------

    def find(self, labels: Vector) -> Vector:
        parent = self.parent
        roots = first = parent[labels]
        while not (roots == (above := parent[roots])).all():
            roots = above
        if roots is not first:
            parent[labels] = roots
        return roots

    def resolve(self, dim: Dim, all_factors: bool = False) -> Dim:
        """The same dimension in labels that stand for themselves: roots, pairs replaced by their halves, empty rows dropped.

        Factors that are frozen beside others that are not decide nothing, and are left out unless all are asked for.
        """
        if len(dim) == 1 and not self.pairs:
            row = self.find(dim[0])
            return row[None] if (len(row) and row[0]) or row.any() else inert(len(row))
        rows: list[Vector] = []
        todo = list(dim)
        while todo:
            row = self.find(todo.pop(0))
            left = self.left[row]
            if left.any():
                todo[:0] = [np.where(left > 0, left, row), self.right[row]]
            elif row.any():
                rows.append(row)
        if len(rows) < 2:
            return np.stack(rows) if rows else inert(dim.shape[1])
        atoms = np.stack(rows)
        if all_factors:
            return atoms
        free = (atoms > 0) & (self.frozen[atoms] == 0)
        atoms[~free & free.any(0)] = 0  # a factor that never leaves decides nothing beside one that may
        return atoms[atoms.any(1)]

    # changing ---------------------------------------------------------------------------------------------------------------------------

    def freeze(self, dim: Dim, why: str) -> None:
        self._mark(FROZEN, self.resolve(dim), why)

    def approximates(self, dim: Dim, why: str) -> None:
        self._mark(APPROXIMATE, self.resolve(dim), why)

    def plays(self, dim: Dim, role: int, among: Sequence[int] = (CHANNEL, OUTER, INNER)) -> None:
        """What these indices are: heads, say. among: only labels of these kinds."""
        atoms = self.resolve(dim).ravel()
        self.role[atoms[(atoms > 0) & np.isin(self.kind[atoms], among)]] = role

    def needs(self, dim: Dim, least: int) -> None:
        """So many of these indices have to stay."""
        self._to_at_least(self.least, dim, least)

    def comes_in(self, dim: Dim, multiple: int) -> None:
        """What stays of these indices has to be a multiple."""
        self._to_at_least(self.multiple, dim, multiple)

    def _to_at_least(self, mark: Vector, dim: Dim, number: int) -> None:
        atoms = self.resolve(dim).ravel()
        atoms = atoms[atoms > 0]
        mark[atoms] = np.maximum(mark[atoms], number)

    def _mark(self, mark: int, atoms: Dim, why: str) -> None:
        array = self.marks[mark]
        atoms = self.find(atoms.ravel())  # a union may have come between
        atoms = atoms[(atoms > 0) & (array[atoms] == 0)]
        if atoms.size:
            text = f"{why} {self.place}".strip()
            if text not in self.reasons:
                self.reasons.append(text)
            array[atoms] = self.reasons.index(text)

    def unite(self, a: Dim, b: Dim) -> None:
        """Index by index, a and b leave together. Raises ValueError where their lengths differ."""
        if a.shape[1] != b.shape[1]:
            raise ValueError(f"cannot unite {a.shape[1]} with {b.shape[1]} indices")
        if not len(a) and not len(b):
            return
        a, b = self.resolve(a), self.resolve(b)
        if a.shape == b.shape and (a == b).all():
            return
        if len(a) == 1 and len(b) == 1 and a.all() and b.all():  # nearly always
            self._union(a[0], b[0])
            return
        if self._new_as_pair(a, b) or self._new_as_pair(b, a):
            return
        for _ in range(64):  # a substitution may meet a label twice, and is then looked at again
            a, b = _without_common(self.resolve(a), self.resolve(b))
            atoms = np.concatenate([a, b])
            open_ = ((atoms > 0) & (self.frozen[atoms] == 0)).any(0)  # elsewhere nothing leaves, and so nothing needs to leave together
            a, b = a[:, open_], b[:, open_]
            if not a.any() and not b.any():
                return
            na, nb = (a > 0).sum(0), (b > 0).sum(0)
            self._pair_up(a, b, na == nb)
            self._mark(FROZEN, b[:, na == 0], "meets an input or a constant,")
            self._mark(FROZEN, a[:, nb == 0], "meets an input or a constant,")
            self._substitute(a, b, (na == 1) & (nb >= 2))
            self._substitute(b, a, (nb == 1) & (na >= 2))
            unequal = (na >= 2) & (nb >= 2) & (na != nb)
            self._mark(FROZEN, a[:, unequal], "joined with a dimension of another make-up")
            self._mark(FROZEN, b[:, unequal], "joined with a dimension of another make-up")
            if not ((na == 1) & (nb >= 2) | (nb == 1) & (na >= 2)).any():
                return
        raise AssertionError("uniting does not come to rest")

    def _new_as_pair(self, single: Dim, pair: Dim) -> bool:
        """At once, where it is plain to see: labels that nothing has happened to become pairs."""
        if len(single) != 1 or len(pair) != 2 or not pair.all():
            return False
        row = single[0]
        low, high = row[0], row[-1]
        if low == 0 or high - low != len(row) - 1 or (np.diff(row) != 1).any() or self.marks[:, low : high + 1].any():
            return False
        if ((pair >= low) & (pair <= high)).any():
            return False
        self.left[low : high + 1], self.right[low : high + 1] = pair
        self.pairs = True
        return True

    def _pair_up(self, a: Dim, b: Dim, where: NDArray[np.bool_]) -> None:
        a, b = _packed(a[:, where]), _packed(b[:, where])
        for x, y in zip(a, b):
            both = (x > 0) & (y > 0)
            self._union(self.find(x[both]), self.find(y[both]))

    def _union(self, a: Vector, b: Vector) -> None:
        """Whole vectors of roots at once; a pair that lost the race for a parent is linked in the next turn."""
        linked = False
        while (apart := a != b).any():
            if not linked and self.step >= 0:
                self.links.append((np.minimum(a, b), self.step))
                linked = True
            low, high = np.minimum(a[apart], b[apart]), np.maximum(a[apart], b[apart])
            marks = self.marks[:, high]
            if marks.any():
                which, at = np.nonzero((marks[:LEAST] > 0) & (self.marks[:LEAST, low] == 0))
                self.marks[which, low[at]] = marks[which, at]
                for number in (LEAST, MULTIPLE):
                    np.maximum.at(self.marks[number], low, marks[number])
            kinds = self.kind[high]
            if kinds.any():
                plain = (self.kind[low] == CHANNEL) & (kinds != CHANNEL)  # half of a split, whatever else it is
                self.kind[low[plain]], self.family[low[plain]] = kinds[plain], self.family[high[plain]]
            self.parent[high] = low
            a, b = self.find(a), self.find(b)

    def _substitute(self, single: Dim, several: Dim, where: NDArray[np.bool_]) -> None:
        """A label that meets a pair becomes that pair."""
        if not where.any():
            return
        single, several = _packed(single[:, where])[0], _packed(several[:, where])
        tangled = np.isin(single, several)
        if tangled.any():
            self._mark(FROZEN, several[:, tangled], "joined with a part of itself")
            self._mark(FROZEN, single[None, tangled], "joined with a part of itself")
        label, first = np.unique(np.where(tangled, 0, single), return_index=True)
        label, first = label[label > 0], first[label > 0]
        if not label.size:
            return
        halves = several[:, first]
        right = halves[1]
        for deeper in halves[2:]:
            pair = self.fresh(len(label))[0]
            nested = deeper > 0
            self.left[pair[nested]], self.right[pair[nested]] = right[nested], deeper[nested]
            right = np.where(nested, pair, right)
        self.left[label], self.right[label] = halves[0], right
        self.pairs = True
        for which, array in enumerate(self.marks):
            for reason in np.unique(array[label][array[label] > 0]):
                marked = array[label] == reason
                atoms = self.resolve(np.stack([halves[0][marked], right[marked]]))
                array[atoms[(atoms > 0) & ((array[atoms] == 0) | (which >= LEAST) & (array[atoms] < reason))]] = reason

    def split(self, dim: Dim, n: int, m: int) -> tuple[Dim, Dim]:
        """Labels of a dimension of n*m indices seen as (n, m). Each label that varies along both becomes a pair."""
        dim = self.resolve(dim)
        if n == 1:
            return inert(1), dim
        if m == 1:
            return dim, inert(1)
        outer, inner = [], []
        for row in dim:
            grid = self.find(row).reshape(n, m)
            if (grid == grid[:, :1]).all():
                outer.append(grid[:, 0])
            elif (grid == grid[:1]).all():
                inner.append(grid[0])
            else:
                slow, fast = self.fresh(n, OUTER), self.fresh(m, INNER)
                self.unite(row[None], merge(slow, fast))
                outer.append(slow[0])
                inner.append(fast[0])
        return np.stack(outer) if outer else inert(n), np.stack(inner) if inner else inert(m)


class Once:
    """Dimensions in labels that stand for themselves, each resolved once."""

    def __init__(self, labels: Labels) -> None:
        self.labels, self.done = labels, dict[int, tuple[Dim, Dim]]()

    def __call__(self, dim: Dim) -> Dim:
        if id(dim) not in self.done:
            self.done[id(dim)] = dim, self.labels.resolve(dim)  # held, so that no other array gets its id
        return self.done[id(dim)][1]


def _without_common(a: Dim, b: Dim) -> tuple[Dim, Dim]:
    """Both without the labels that they share index by index (removed together already)."""
    a, b = a.copy(), b.copy()
    for x in a:
        for y in b:
            same = x == y
            x[same], y[same] = 0, 0
    return a, b


def _packed(dim: Dim) -> Dim:
    """Each index's labels first, then its zeros."""
    return np.take_along_axis(dim, np.argsort(dim == 0, axis=0, kind="stable"), axis=0)
