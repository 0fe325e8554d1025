"""What the name of a structure says."""

from __future__ import annotations

import pytest

from secateur.errors import BadInput
from secateur.structure.kinds import at_old_size, block_of, is_kind, n_of_m_in, of_connections, refuse_amount, word

#        name       block    n of m  old size  single  a unit
NAMES = {
    "channels": (None, None, False, False, "channel"),
    "layers": (None, None, False, False, "layer"),
    "weights": (None, None, True, True, "connection"),
    "1x4": ((1, 4), None, True, False, "block"),
    "16x1": ((16, 1), None, True, False, "block"),
    "2:4": (None, (2, 4), True, True, "connection"),
    "1:16": (None, (1, 16), True, True, "connection"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_what_its_units_are(name: str) -> None:
    block, counts, old_size, single, called = NAMES[name]
    assert is_kind(name)
    assert (block_of(name), n_of_m_in(name), word(name)) == (block, counts, called)
    assert (at_old_size(name), of_connections(name)) == (old_size, single)


NONE = ["", "blocks", "1x1", "0x4", "4x", "x4", "4:2", "4:4", "0:4", "2:4 ", "2:4\n", "-1x4", "2:4:8", "1x4x4", "1" * 9 + "x4", 3, None]


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_name_is_none(name: object) -> None:
    assert not is_kind(name)
    assert not isinstance(name, str) or (block_of(name) is None and n_of_m_in(name) is None)


def test_an_amount_is_refused_where_the_structure_says_how_much() -> None:
    refuse_amount("2:4", **{"amount=": False})
    refuse_amount("1x4", **{"amount=": True})
    with pytest.raises(BadInput, match=r"of every 4 connections the 2 best stay\. Leave budget= out"):
        refuse_amount("2:4", **{"amount=": False, "budget=": True})
