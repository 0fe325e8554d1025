from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.contexts import by_batch, by_class, by_sample
from secateur.stream import Position, Stream

CUTS = {"batch": by_batch, "sample": by_sample, "class": by_class}


def numbered(sizes: list[int], classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    labels = torch.randint(0, classes, (sum(sizes),), generator=torch.Generator().manual_seed(len(sizes)))
    return list(zip(torch.arange(sum(sizes)).split(sizes), labels.split(sizes)))


def pieces(stream: Stream) -> list[tuple[int, list[int]]]:
    """The number and the samples of every piece that counts."""
    return [(stream.number, batch[0].tolist()) for batch in stream if stream.counts]  # type: ignore[index]


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=12)


@given(SIZES, st.sampled_from(sorted(CUTS)), st.integers(1, 4))
def test_shares_are_the_pieces_dealt_out(sizes: list[int], cut: str, size: int) -> None:
    data = numbered(sizes)
    whole = pieces(Stream(data, CUTS[cut]))
    assert [number for number, _ in whole] == list(range(len(whole)))
    for rank in range(size):
        stream = Stream(data, CUTS[cut], rank=rank, size=size)
        assert pieces(stream) == whole[rank::size]
        assert stream.handed == max(1, len(whole[rank::size]))  # one to compute, though it does not count
        assert stream.first == rank


@given(SIZES, st.sampled_from(sorted(CUTS)), st.data())
def test_what_is_left_after_a_stop_is_the_rest(sizes: list[int], cut: str, data: st.DataObject) -> None:
    """Wherever it was stopped, and by however many processes it is gone on with."""
    places: list[Position] = []
    whole = pieces(Stream(batches := numbered(sizes), CUTS[cut], between=lambda stream: places.append(stream.place) or False))
    assert [place.pieces for place in places] == list(range(len(whole)))
    start, size = data.draw(st.sampled_from(places)), data.draw(st.integers(1, 3))
    shares = [pieces(Stream(batches, CUTS[cut], start, rank, size)) for rank in range(size)]
    assert sorted(piece for share in shares for piece in share) == whole[start.pieces :]


@given(SIZES, st.integers(1, 3), st.data())
def test_the_place_among_pieces_of_a_key_is_the_same_in_every_share(sizes: list[int], size: int, data: st.DataObject) -> None:
    places: list[Position] = []
    stream = Stream(batches := numbered(sizes), by_class, between=lambda stream: places.append(stream.place) or False)
    turns = dict((stream.number, (stream.key, stream.turn)) for _ in stream)
    of_key: dict[str | None, list[int]] = {}
    for key, turn in turns.values():
        of_key.setdefault(key, []).append(turn)
    assert all(found == list(range(len(found))) for found in of_key.values())
    start = data.draw(st.sampled_from(places))
    for stream in (Stream(batches, by_class, start, rank, size) for rank in range(size)):
        assert all(turns[stream.number] == (stream.key, stream.turn) for _ in stream if stream.counts)


class Skipping:
    """Batches that can be left out unread, as streamed data sets have it; remembers which were read."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]], first: int = 0, read: list[int] | None = None) -> None:
        self.batches, self.first, self.read = batches, first, [] if read is None else read

    def skip(self, number: int) -> Skipping:
        return Skipping(self.batches, self.first + number, self.read)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(self.batches[self.first :], self.first):
            self.read.append(number)
            yield batch


@pytest.mark.parametrize(("cut", "reads"), [("batch", [3, 4]), ("sample", [1, 2, 3, 4]), ("class", [0, 1, 2, 3, 4])])
def test_batches_that_were_seen_are_skipped_where_they_can_be(cut: str, reads: list[int]) -> None:
    """Of classes, samples wait for others, so all is read again, and nothing computed."""
    places: list[Position] = []
    batches = numbered([2] * 5)
    whole = pieces(Stream(batches, CUTS[cut], between=lambda stream: places.append(stream.place) or False))
    data = Skipping(batches)
    assert pieces(Stream(data, CUTS[cut], places[3])) == whole[3:]
    assert data.read == reads


class Noisy(Skipping):
    """What is read is drawn, as augmented images are."""

    def skip(self, number: int) -> Noisy:
        return Noisy(self.batches, self.first + number)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((x + torch.rand(()), y) for x, y in self.batches[self.first :])


class Unskipping(Noisy):
    skip = None  # type: ignore[assignment]


def drawn(data: Noisy, **share: object) -> dict[int, list[float]]:
    """By number, what each piece's samples are, and what a model of its own chance makes of them."""
    starts = {"pass": 0, "batch": 1, "piece": 2}
    stream = Stream(data, by_batch, chance=lambda what, number: torch.manual_seed(3 * number + starts[what]) and None, **share)  # type: ignore[arg-type]
    found: dict[int, list[float]] = {}
    for x, _ in stream:  # type: ignore[misc]
        found[stream.number] = [*x.tolist(), float(torch.rand(()))]
    return found


@pytest.mark.parametrize("kind", [Noisy, Unskipping])
def test_chance_goes_by_numbers_only(kind: type[Noisy]) -> None:
    """A batch is read, and a piece computed, under the same chance by whomever and whenever."""
    with torch.random.fork_rng():
        data = kind(numbered([2] * 6))
        whole = drawn(data)
        assert len({values[-1] for values in whole.values()}) == 6
        assert drawn(data, start=Position(2, 2, 2), rank=1, size=3) == {4: whole[4]}
        assert drawn(data, start=Position(3, 3, 3)) == {number: whole[number] for number in (3, 4, 5)}
        assert [*drawn(data, rank=1, size=2, split=False)] == [1, 3, 5, 7, 9, 11]


def test_it_ends_where_it_is_told_to() -> None:
    stream = Stream(numbered([2] * 9), by_batch, between=lambda stream: stream.place.pieces == 4)
    assert [number for number, _ in pieces(stream)] == [0, 1, 2, 3]
