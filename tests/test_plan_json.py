"""A plan survives its JSON, the schema knows what the reader accepts, and what is wrong is said."""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import replace

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.plan import Plan
from secateur.plan_json import Damage, decode, encode, indices_of, ranges_of, schema

SHA = "ab" * 32
SHAPES = {"a.weight": (3, 2, 3, 3), "a.bias": (3,), "b.weight": (4, 3)}
STORED = dict(SHAPES)
PLAN = Plan(
    structure="channels",
    keep={"a": torch.tensor([True, False, True, True, False])},
    kept={
        "a.weight": (torch.tensor([0, 2, 3]), None, None, None),
        "a.bias": (torch.tensor([0, 2, 3]),),
        "b.weight": (None, torch.tensor([0, 2, 3])),
    },
    sizes={"a.groups": 1, "b.normalized_shape": (3,), "sizes_view": (-1, 3)},
    shapes={"a.weight": (5, 2, 3, 3), "a.bias": (5,), "b.weight": (4, 5), "scale": (5,)},
    digest="0f" * 32,
    cost={"macs": (100.0, 60.5), "units": (5, 3)},
    made={"criterion": "taylor", "amount": 0.5, "seed": 0, "steps": [1, 2], "note": None},
    approximate={"a": "a norm's statistics run over it"},
    frozen={"b": "it is the output"},
)
CONNECTIONS = Plan(
    structure="weights",
    keep={"w": torch.tensor([[True, False], [True, True]])},
    kept={},
    sizes={},
    shapes={"w": (2, 2)},
    digest=SHA,
    cost={},
)

N_OF_M = replace(CONNECTIONS, structure="1:2", made={"amount": None})
BLOCKS = replace(
    CONNECTIONS, structure="1x2", keep={"w": torch.tensor([[True, False], [True, True]])}, shapes={"w": (2, 3)}, blocks={"w": (1, 2)}
)
BLOCKS_STORED = torch.tensor([[True, False, False], [False, True, True]])


def decoded(text: str | bytes, stored: dict[str, tuple[int, ...]] = STORED, room: int = 300) -> Plan:
    return decode(
        text if isinstance(text, bytes) else text.encode(), stored, room, SHA, lambda name: torch.tensor([[True, False], [True, True]])
    )


def same(a: Plan, b: Plan) -> None:
    for field in ("structure", "blocks", "sizes", "shapes", "digest", "cost", "made", "approximate", "frozen"):
        assert getattr(a, field) == getattr(b, field), field
    assert a.keep.keys() == b.keep.keys() and all(torch.equal(a.keep[name], b.keep[name]) for name in a.keep)
    flat_a, flat_b = (
        [(name, dim, None if i is None else i.tolist()) for name, dims in p.kept.items() for dim, i in enumerate(dims)] for p in (a, b)
    )
    assert flat_a == flat_b


def test_a_plan_is_what_it_was():
    same(decoded(encode(PLAN, SHA)), PLAN)


def test_the_masks_of_connections_are_the_non_zeros():
    same(decoded(encode(CONNECTIONS, SHA), {"w": (2, 2)}), CONNECTIONS)
    same(decoded(encode(N_OF_M, SHA), {"w": (2, 2)}), N_OF_M)


def of_blocks(raw: str) -> Plan:
    return decode(raw.encode(), {"w": (2, 3)}, 300, SHA, lambda name: BLOCKS_STORED)


def test_the_masks_of_blocks_are_where_any_weight_is_not_zero():
    same(of_blocks(encode(BLOCKS, SHA)), BLOCKS)


@pytest.mark.parametrize(
    ("name", "block", "said"),
    [
        ("w", [1, 4], r"block of 'w' is \(1, 4\), which does not fit into \(2, 3\)"),
        ("w", [0, 2], "does not fit"),
        ("w", [2], "does not fit"),
        ("w", [1, 1 << 61], "does not fit"),
        ("w", "1x2", "is not a list"),
        ("v", [1, 2], "does not fit"),
        ("w", [1, 1], "has 4 connections of 'w', which the weights do not have"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(name: str, block: object, said: str):
    raw = json.loads(encode(BLOCKS, SHA))
    raw["blocks"][name] = block
    with pytest.raises(Damage, match=said):
        of_blocks(json.dumps(raw))


@given(st.lists(st.booleans(), max_size=40))
def test_ranges_are_the_runs_of_the_kept_indices(kept: list[bool]):
    indices = torch.tensor(kept, dtype=torch.bool).nonzero().flatten()
    ranges = ranges_of(indices)
    assert indices_of(ranges).tolist() == [i for start, stop in ranges for i in range(start, stop)] == indices.tolist()
    assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(ranges))  # as few as there can be


def test_what_json_cannot_say_becomes_text():
    made = decoded(encode(PLAN.note(threshold=-math.inf, criterion=len, sizes=(1, 2)), SHA)).made
    assert made["threshold"] == "-inf" and made["criterion"] == "len" and made["sizes"] == [1, 2]


@pytest.mark.parametrize("plan", [PLAN, CONNECTIONS, N_OF_M, BLOCKS], ids=["channels", "weights", "n of m", "blocks"])
def test_the_schema_accepts_what_is_written(plan: Plan):
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(json.loads(encode(plan, SHA)), schema(), jsonschema.Draft202012Validator)


WRONG = {
    "another format": (("format", "other"), "is not a plan"),
    "a newer version": (("version", 2), "a newer secateur wrote it"),
    "a version that is no number": (("version", True), "not a number from 1 on"),
    "an unknown structure": (("structure", "blocks"), "not one of channels, layers, weights"),
    "another model's weights": (("sha256", "cd" * 32), "SHA-256 differs"),
    "a digest that is none": (("digest", "xy"), "not a SHA-256"),
    "no shapes": (("shapes", None), '"shapes" is missing'),
    "a negative shape": (("shapes", "a.bias", 0, -5), "not a whole number from 0 on"),
    "another shape": (("shapes", "b.weight", 0, 7), "whose weights are (4, 3)"),
    "a range beyond the shape": (("kept", "a.bias", 0, [[0, 6]]), "out of order or beyond 0..5"),
    "ranges out of order": (("kept", "a.bias", 0, [[2, 4], [0, 1]]), "out of order"),
    "ranges that overlap": (("kept", "a.bias", 0, [[0, 2], [1, 2]]), "out of order"),
    "an empty range": (("kept", "a.bias", 0, [[1, 1]]), "out of order"),
    "an emptied dimension": (("kept", "a.bias", 0, []), "no index of a dimension"),
    "a fractional range": (("kept", "a.bias", 0, [[0, 1.5]]), "not a whole number"),
    "too few dimensions": (("kept", "a.weight", [None]), "not a list of 4 dimensions"),
    "indices of nothing": (("kept", "c", [None]), "of which it has no shape"),
    "a huge group": (("keep", "a", {"size": 1 << 40, "kept": [[0, 1 << 40]]}), "room for"),
    "a huge buffer": (("shapes", "scale", [1 << 40]), None),  # nothing is made of it
    "a group without units": (("keep", "a", {"size": 5}), "not a list of ranges"),
    "a size that is text": (("sizes", "a.groups", "1"), "not a whole number"),
    "a negative cost": (("cost", "macs", [-1, 1]), "not two numbers"),
    "a huge cost": (("cost", "macs", [10**400, 1]), "not two numbers"),
    "a reason that is none": (("frozen", "b", 1), "is not text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case: str):
    (*path, last, value), said = WRONG[case]
    raw = json.loads(encode(PLAN, SHA))
    place = raw
    for key in path:
        place = place[key]
    place[last] = copy.deepcopy(value)
    if said is None:
        decoded(json.dumps(raw))
    else:
        with pytest.raises(Damage, match=".*" + said.replace("(", r"\(").replace(")", r"\)")):
            decoded(json.dumps(raw))


def test_a_huge_kept_buffer_is_refused_without_being_made():
    raw = json.loads(encode(PLAN, SHA))
    raw["shapes"]["scale"], raw["kept"]["scale"] = [1 << 40], [[[0, 1 << 40]]]
    with pytest.raises(Damage, match="more than its weights have room for"):
        decoded(json.dumps(raw))


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\\ud800"}', b"1" * 5000]
)
def test_what_is_not_json_is_refused(text: bytes):
    with pytest.raises(Damage):
        decoded(text)


@pytest.mark.parametrize("structure", ["weights", "1x2", "2:4"])
def test_tensors_that_keep_their_size_have_no_kept_indices(structure: str):
    raw = json.loads(encode(PLAN, SHA)) | {"structure": structure}
    with pytest.raises(Damage, match=r"where all tensors keep their size, but it has kept indices of 'a\.weight'"):
        decoded(json.dumps(raw))


def test_more_non_zeros_than_connections_are_refused():
    raw = json.loads(encode(CONNECTIONS, SHA))
    raw["keep"]["w"]["count"] = 2
    with pytest.raises(Damage, match="keeps 2 connections of 'w', whose weights have 3 non-zeros among 4"):
        decoded(json.dumps(raw), {"w": (2, 2)})
