"""The data of a measurement, as a criterion sees it: pieces of one context each, with numbers that all chance goes by.

So a part of the stream (the share of one process, or what is left after a stop) gives the numbers that the whole would have given there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from .contexts import APART, Cut, Piece

Chance = Callable[[str, int], None]  # what is about to come ("batch", "piece") and its number -> chance starts there


class Position(NamedTuple):
    """Behind so many pieces; reading can begin behind so many batches, which gave the first pieces."""

    pieces: int = 0
    batches: int = 0
    given: int = 0


BEGINNING = Position()


@dataclass
class Stream:
    """Data cut into contexts, which remembers the piece it handed out last: that is the one a criterion's next scores belong to.

    start: where to begin. rank, size: of so many processes, this is which. split: each has its share of the pieces, all reading all data;
    or else each has data of its own, and all pieces of that.
    between: called before every piece, also of another share; the stream ends where it says so (True).
    chance: called before every batch is read and every piece is handed out.
    begun: called with the first batch of the data, also where it is left out.
    taken: batches taken from the data. handed: pieces handed out in this pass. number: that of the last one, among those of all processes;
    where it has a key, `turn` is its number among the pieces of that key.
    samples, total: in the last piece, and in all that were handed out in this pass.
    waiting: keys that were met before the piece that is next, without a piece of theirs.
    place: before the piece that is next.
    ended: whether this pass came to its end.
    counts: False for a piece of another share that is handed out only because there is none of one's own.
    """

    data: Iterable[object]
    cut: Cut
    start: Position = BEGINNING
    rank: int = 0
    size: int = 1
    split: bool = True
    between: Callable[[Stream], bool] = lambda stream: False
    chance: Chance = lambda what, number: None
    begun: Callable[[object], None] | None = None
    taken: int = 0
    handed: int = 0
    number: int = 0
    turn: int = 0
    key: str | None = None
    samples: int = 0
    total: int = 0
    waiting: int = 0
    counts: bool = True
    ended: bool = False
    place: Position = BEGINNING

    @property
    def first(self) -> int:
        """The number of the first piece that will be handed out; the next are `size` apart."""
        return self.start.pieces + (self.rank - self.start.pieces) % self.size if self.split else self.numbered(self.start.pieces)

    def numbered(self, place: int) -> int:
        """The number, among those of all processes, of what comes at this place here."""
        return place if self.split else place * self.size + self.rank

    def __iter__(self) -> Iterator[object]:
        self.taken, self.handed, self.total, self.counts, self.ended = self.start.batches, 0, 0, True, False
        spare: Piece | None = None
        turns: Counter[str | None] = Counter()
        seen, batch, given = self.start.given, self.taken, self.start.given
        for place, piece in enumerate(self.cut(self.counted()), seen):
            if self.taken != batch:
                batch, given = self.taken, place
            if place >= self.start.pieces:
                self.place = Position(place, batch - 1, given) if self.cut in APART else Position(place)
                self.waiting = piece.waiting
                if self.between(self):
                    self.ended = True
                    return
            number = self.numbered(place)
            if place >= self.start.pieces and (number - self.rank) % self.size == 0:
                yield self.hand(number, turns[piece.key] + (0 if self.split else self.rank), piece)
            else:
                spare = piece
            turns[piece.key] += 1
        if spare is not None and not self.handed:
            self.counts = False
            yield self.hand(self.first, 0, spare)
        self.ended = True

    def hand(self, number: int, turn: int, piece: Piece) -> object:
        self.handed, self.total = self.handed + 1, self.total + piece.samples
        self.number, self.turn, self.key, self.samples = number, turn, piece.key, piece.samples
        self.chance("piece", number)
        return piece.batch

    def counted(self) -> Iterator[object]:
        """Batches, each read under chance of its own: what augments it draws the same, whoever reads it and whenever.

        Those before `start` are left out by the data's own skip(n) where it has one (it need not read them then), or else read past.
        """
        skip: Callable[[int], Iterable[object]] | None = getattr(self.data, "skip", None)
        by_itself = bool(self.start.batches) and callable(skip)
        self.chance("pass", 0)
        if by_itself and self.begun:
            self.chance("batch", self.numbered(0))
            self.begun(next(iter(self.data), None))
        following = iter(skip(self.start.batches) if by_itself and skip else self.data)
        for number in count(self.start.batches if by_itself else 0):
            self.chance("batch", self.numbered(number))
            try:
                batch = next(following)
            except StopIteration:
                return
            if number == 0 and self.begun:
                self.begun(batch)
            if number >= self.start.batches:
                self.taken += 1
                yield batch
