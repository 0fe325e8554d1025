"""Random nets out of all rules, each from a description of plain nested values, so that hypothesis can shrink and print it.

A description is (start, blocks): ("image", (("layer", 4, "batch", "relu"), ("residual", (("layer", 2, "none", "gelu"),)))).
A plan is a list of whole numbers: bit u of the n-th is set where unit u of the n-th group goes.

`python tests/walk.py` prints some descriptions and how often each block occurs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import blocks_kinds
from blocks import BLOCKS, BODY, mapping, sequence
from cases import Case, Net, doubled
from secateur.structure import Channels
from secateur.tree import Keep
from wires import APPROXIMATE, FREE, FROZEN, Stream, claims

assert blocks_kinds  # importing it registers its blocks

Description = tuple[str, tuple]
Claim = tuple[str, int, int, int, int]
DEEPEST, LONGEST = 2, 4


# a net from a description -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walk:
    """A net in float64, its inputs, and what is known about its channels.

    sized: a number in it is calculated from a size.
    """

    model: nn.Module
    inputs: object
    claims: list[Claim]
    sized: bool

    def missing(self, structure: Channels, exact: bool) -> list[Claim]:
        """Claims that the structure does not meet: indices that belong to no unit but should, or the other way round."""
        wrong = []
        for name, dim, start, stop, state in self.claims:
            index = structure.index[name][dim]
            found = [False] if index is None else index[:, start:stop].any(0).tolist()
            wanted = state == FREE or (state == APPROXIMATE and not exact)
            if (wanted and not all(found)) or (state == FROZEN and any(found)):
                wrong.append((name, dim, start, stop, state))
        return wrong


def started(kind: str) -> tuple[nn.Module, object, Stream]:
    if kind == "tokens":
        x = Stream("series", (), 4)
        place = nn.Parameter(torch.randn(1, 4, 6))
        embedding = nn.Embedding(11, 6)
        module = Net(lambda n, v: n.embedding(v) + n.place, embedding=embedding, place=place)
        return module, torch.randint(0, 11, (2, 4)), x.made(6, (embedding.weight, 1), (place, 2))
    shape, side = {"image": ((2, 3, 4, 4), 4), "series": ((2, 4, 5), 4), "vector": ((3, 5), 1)}[kind]
    return nn.Identity(), torch.randn(shape), Stream(kind, (), side).made(shape[1 if kind == "image" else -1], state=FROZEN)


def walk(description: Description) -> Walk:
    kind, body = description
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start, inputs, x = started(kind)
        middle, y = sequence(body, x)
        head, _ = mapping(y, 3)
        y.every.pop()  # an output
        model = nn.Sequential(start, middle, head)
    names = {id(value): name for name, value in [*model.named_parameters(), *model.named_buffers()]}
    found = claims(y.every, names)
    case = Case("", lambda: model, lambda: inputs, {})
    return Walk(case.model(), doubled(inputs), found, any(by_size(part) for part in parts(description)))


def keep_of(structure: Channels, plan: Sequence[int]) -> Keep:
    """At least one unit of every group stays."""
    keep = {}
    for n, (name, group) in enumerate(structure.groups.items()):
        bits = plan[n % len(plan)] >> n // len(plan) if plan else 0
        stays = [not bits >> unit % 16 & 1 for unit in range(group.size)]
        keep[name] = torch.tensor(stays if any(stays) else [unit == bits % group.size for unit in range(group.size)])
    return keep


# descriptions -----------------------------------------------------------------------------------------------------------------------------


def blocks_of(kind: str, place: str, depth: int) -> st.SearchStrategy[tuple]:
    def filled(name: str) -> st.SearchStrategy[tuple]:
        options = BLOCKS[name].options
        return st.tuples(st.just(name), *(body_of(kind, depth + 1) if option == BODY else st.sampled_from(option) for option in options))

    names = [
        name for name, block in BLOCKS.items()
        if kind in block.kinds and (block.place == "inside" or block.place == place) and (depth < DEEPEST or BODY not in block.options)
    ]  # fmt: skip
    return st.sampled_from(names).flatmap(filled)


def body_of(kind: str, depth: int) -> st.SearchStrategy[tuple]:
    return st.lists(blocks_of(kind, "inside" if depth else "between", depth), min_size=1, max_size=LONGEST - depth).map(tuple)


def turns(kind: str) -> list[str]:
    return [name for name, block in BLOCKS.items() if kind in block.kinds and block.place in ("image", "series", "vector")]


@st.composite
def descriptions(draw: st.DrawFn) -> Description:
    start = draw(st.sampled_from(("image", "series", "tokens", "vector")))
    kind = "series" if start == "tokens" else start
    body = draw(body_of(kind, 0))
    for _ in range(draw(st.integers(0, 2))):
        if not turns(kind):
            break
        name = draw(st.sampled_from(turns(kind)))
        turn = (name, *(draw(st.sampled_from(option)) for option in BLOCKS[name].options))
        kind = BLOCKS[name].place
        body += (turn, *draw(body_of(kind, 0)))
    return start, body


plans = st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=6)


def walking(number: int) -> settings:
    """So many nets, the same at every run."""
    return settings(
        max_examples=number, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink], print_blob=False,
    )  # fmt: skip


def several(number: int) -> list[Description]:
    found: list[Description] = []

    @walking(number)
    @given(descriptions())
    def collect(description: Description) -> None:
        found.append(description)

    collect()
    return found


def parts(description: object) -> Iterator[tuple]:
    """All blocks, those within blocks too."""
    if isinstance(description, tuple):
        if description and description[0] in BLOCKS:
            yield description
        for part in description:
            yield from parts(part)


def by_size(part: tuple) -> bool:
    return part[0] == "by_size" or (part[0] == "attention" and part[-1])


if __name__ == "__main__":
    nets = several(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
    print(*nets[-5:], sep="\n")
    print(len(set(nets)), "different nets;", dict(Counter(part[0] for net in nets for part in parts(net)).most_common()))
