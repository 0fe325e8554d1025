"""docs/reach.md from rows that were never measured: what counts as small, equal and running, which way is shown, what the totals say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not part of an installed package")
sys.path.append(str(BENCHMARKS))

import zoo_table  # noqa: E402
from results import Row  # noqa: E402


def way(ratio: float = 0.3, apart: float = 1e-15, **found: object) -> Row:
    times = {"export": 0.0, "trace": 1.0, "shrink": 0.5, "check": 1.5}
    return {**times, "ratio": ratio, "apart": apart, "tolerance": 1e-9, "frozen": {}, "fails": "", "products": 0.0, **found}


def row(name: str, parameters: int = 10**6, tool: Row | None = None, **ways: object) -> Row:
    told: Row = {"where": "timm", "name": name, "parameters": parameters, "commit": "abc1234", "machine": "a machine", "seed": 0}
    return {**told, **ways, "torch-pruning": tool or {"fails": "KeyError: x"}}


FROZEN = {"looked up by number by index at a.py:1": [4, 300], "meets an input or a constant, by convolution at b.py:2": [1, 3]}


def test_smaller_means_the_aim_or_that_nothing_is_left_to_cut() -> None:
    assert zoo_table.is_small(way(0.7))
    assert not zoo_table.is_small(way(0.71, frozen=FROZEN))
    assert zoo_table.is_small(way(0.9, frozen={"meets an input or a constant, by convolution at b.py:2": [1, 3]}))
    assert not zoo_table.is_small({"error": "it cannot"})


def test_what_was_not_found_out_is_not_passed() -> None:
    for test in (zoo_table.runs, zoo_table.is_small, zoo_table.is_equal):
        assert not test({}) and not test({"error": "MemoryError: "})
    assert not zoo_table.is_equal(way(apart=float("inf")))
    assert zoo_table.is_equal(way(apart=1e-4, tolerance=1e-3))


@pytest.mark.parametrize(
    ("own", "graph", "shown"),
    [
        (way(), None, "own"),
        (way(0.9, frozen=FROZEN), way(0.4), "graph"),
        (way(0.9, frozen=FROZEN), {"error": "BadInput: The model cannot be exported"}, "own"),
        (way(0.9, frozen=FROZEN), way(0.8, frozen=FROZEN), "graph"),
        (way(0.9, frozen=FROZEN), way(0.9, frozen=FROZEN), "own"),
        (way(0.5, fails="RuntimeError: shape"), way(0.5), "graph"),
    ],
)
def test_the_better_way_is_shown_and_the_own_class_where_both_are_alike(own: Row, graph: Row | None, shown: str) -> None:
    assert zoo_table.how(row("net", own=own, **({"graph": graph} if graph else {}))) == shown


def test_totals_count_and_compare_times_on_the_models_that_both_do() -> None:
    rows = [
        row("a", own=way(), tool={"fails": "", "seconds": 3.0, "ratio": 0.3}),
        row("b", own=way(0.9, frozen=FROZEN), graph=way(0.4, export=1.5), tool={"fails": "", "seconds": 2.0, "ratio": 0.3}),
        row("c", own=way(0.9, 1e-3, frozen=FROZEN)),
        {"where": "chain", "name": "50", "trace": 1.0, "shrink": 0.5},
    ]
    told = zoo_table.totals(rows, 5)
    assert "Of 5 public architectures (3 measured), 3 run pruned, 2 are smaller and 2 equal" in told
    assert "2 in their own class, 1 as an exported graph. Torch-Pruning gets 2 through." in told
    assert "On the 2 that both do, tracing, planning and shrinking takes 1.00x" in told
    assert "1.50x at worst (b: 3.00 s against 2.00 s); with the comparison on numbers 1.62x in the median" in told


def test_the_page_has_a_line_a_model_the_smallest_first_and_says_what_falls_short() -> None:
    rows = [
        row("large", 10**8, own=way()),
        row("small", 10**5, own=way(0.9, frozen=FROZEN)),
        {**row("lost"), "error": "unfinished after 900 s"},
    ]
    page = zoo_table.page(rows, 3)
    every = page.partition("## Every model")[2]
    assert every.index("| timm small |") < every.index("| timm lost |") < every.index("| timm large |")
    assert "300 units: looked up by number by index at a.py:1 |" in every and "meets an input" not in every  # the image's own channels
    short = page.partition("## What falls short")[2].partition("## Every model")[0]
    assert "| timm small | 0.90x (" in short and "| timm lost | unfinished after 900 s |" in short and "large" not in short
    assert "abc1234" in page and "a machine" in page and "Seed: 0" in page
    width = {line.count(" | ") for line in every.splitlines() if line.startswith("|")}
    assert len(width) == 1


def test_the_page_tells_what_it_costs() -> None:
    page = zoo_table.page([
        {"where": "chain", "name": "100", "trace": 1.0, "shrink": 0.5}, {"where": "chain", "name": "50", "trace": 0.5, "shrink": 0.25},
        {"where": "llama", "name": "7B", "trace": 9.04, "shrink": 0.96, "parameters": 6_738_415_616, "parameters after": 1_500_000_000,
         "peak": 2**30, "peak before": 2**29},
        {"where": "memory", "name": "resnet50", "old": 100 * 2**20, "new": 25 * 2**20, "grown": 26 * 2**20, "over": 0.008},
    ], 178)  # fmt: skip
    assert page.index("| 50 | 0.50 | 0.25 | 15.0 |") < page.index("| 100 | 1.00 | 0.50 | 15.0 |")
    assert "6.74 billion parameters" in page and "9.0 s to trace and 1.0 s to shrink to 1.50 billion" in page
    assert "memory of the process 1.00 GiB, 0.50 before" in page
    assert "grows by 26.0 MiB" in page and "old + new +0.8 %" in page
