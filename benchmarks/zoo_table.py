"""The page docs/reach.md, from the rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from results import Row, table

AIM = 0.7  # of the multiplications, with half of all units gone
HEADS = (
    "model", "million parameters", "runs", "smaller", "equal", "how", "seconds", "comparing", "Torch-Pruning", "its seconds",
    "kept whole, and why",
)  # fmt: skip
IMAGE = 16  # channels of the input, which cannot be cut
TOOL = "torch-pruning"
WAYS = {"own": "its own class", "graph": "a graph"}


# what a row says ------------------------------------------------------------------------------------------------------------------------


def runs(found: Row) -> bool:
    return found.get("fails") == ""


def is_small(found: Row) -> bool:
    """To 0.7x, or as far as its units allow: half of every group is gone, and none was kept whole but inputs and outputs."""
    return "ratio" in found and (number(found, "ratio") <= AIM or all(units <= IMAGE for _, units in texts(found, "frozen").values()))


def is_equal(found: Row) -> bool:
    return "apart" in found and number(found, "apart") <= number(found, "tolerance")


def how(row: Row) -> str:
    """The way that is shown: the model's own class, unless its graph passes more of the three, or is smaller where neither is small."""
    ways = [way for way in WAYS if way in row]
    return max(ways, key=lambda way: (rank(part(row, way)), way == "own"), default="own")


def rank(found: Row) -> tuple[int, float]:
    passed = runs(found) + is_small(found) + is_equal(found)
    return passed, -round(number(found, "ratio"), 2) if runs(found) and not is_small(found) else 0.0


def shown(row: Row) -> Row:
    return part(row, how(row))


def part(row: Row, name: str) -> Row:
    found = row.get(name, {})
    assert isinstance(found, dict)
    return found


def seconds(found: Row) -> float | None:
    """To trace, plan and shrink; to export, where it was. What comparing takes is told apart."""
    return sum(number(found, name) for name in ("export", "trace", "shrink")) if "shrink" in found else None


def other_runs(row: Row) -> bool:
    return part(row, TOOL).get("fails") == ""


# the page -------------------------------------------------------------------------------------------------------------------------------


def page(rows: Sequence[Row], listed: int) -> str:
    models = of(rows, "torchvision", "timm")
    parts = [
        "# How far it reaches",
        intro(rows, listed),
        totals(rows, listed),
        *costs(rows),
        *short(models),
        "## Every model\n\n" + legend(),
        table(HEADS, [cells(row) for row in models]).replace("---: |\n", "--- |\n", 1),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def of(rows: Iterable[Row], *where: str) -> list[Row]:
    return sorted((row for row in rows if row["where"] in where), key=lambda row: number(row, "parameters"))


def intro(rows: Sequence[Row], listed: int) -> str:
    def names(key: str) -> str:
        return ", ".join(dict.fromkeys(str(row[key]) for row in rows if key in row)) or "nothing yet"

    return (
        f"Written by `python benchmarks/zoo.py`; the raw rows are in `benchmarks/results/reach.json`. {listed} public architectures: all "
        "classifiers of torchvision, and of every timm module the model with the fewest parameters. Random weights, no scale or bias "
        "constant as before training, no hint: `secateur.channels(model, example)`, a random half of the units of every group removed.\n\n"
        "*Runs*: on numbers, forward and backward, every output of its old shape. *Smaller*: 0.7x of the multiplications or less, or as "
        "far as its units allow (no group was kept whole but inputs and outputs). *Equal*: with `exact=True` the smaller and the masked "
        "model agree in float64 to 1e-9 of the largest output, on one image, with uneven halves. Each model in a fresh process with one "
        "thread, both tools after a run on a tiny net. Torch-Pruning: `BasePruner`, magnitude, ratio 0.5, the classifier ignored, 60 s; "
        "that its result is *right* was not checked. All seconds are of the processor.\n\n"
        f"Commit of the library: {names('commit')}. Seed: {names('seed')}. Machine: {names('machine')}. Rows: {len(rows)}."
    )


def totals(rows: Sequence[Row], listed: int) -> str:
    """The sentence that the README quotes, and the times."""
    models = of(rows, "torchvision", "timm")
    count = {name: sum(test(shown(row)) for row in models) for name, test in {"run": runs, "smaller": is_small, "equal": is_equal}.items()}
    measured = f" ({len(models)} measured)" if len(models) < listed else ""
    words = [
        f"Of {listed} public architectures{measured}, {count['run']} run pruned, {count['smaller']} are smaller and {count['equal']} equal "
        f"to the masked model; {sum(how(row) == 'own' for row in models)} in their own class, {sum(how(row) == 'graph' for row in models)} "
        f"as an exported graph. Torch-Pruning gets {sum(map(other_runs, models))} through."
    ]
    both = [(seconds(shown(row)), part(row, TOOL)["seconds"], row) for row in models if runs(shown(row)) and other_runs(row)]
    if pairs := [(mine / its, mine, its, row) for mine, its, row in both if mine is not None and isinstance(its, float)]:
        worst = max(pairs, key=lambda pair: pair[0])
        with_check = [(mine + number(shown(row), "check")) / its for _, mine, its, row in pairs]
        words.append(
            f"On the {len(pairs)} that both do, tracing, planning and shrinking takes {statistics.median(p[0] for p in pairs):.2f}x of "
            f"Torch-Pruning's time in the median ({statistics.median(p[1] for p in pairs):.2f} s against "
            f"{statistics.median(p[2] for p in pairs):.2f} s) and {worst[0]:.2f}x at worst ({worst[3]['name']}: {worst[1]:.2f} s "
            f"against {worst[2]:.2f} s); with the comparison on numbers {statistics.median(with_check):.2f}x in the median."
        )
    return "\n\n".join(words)


def costs(rows: Sequence[Row]) -> Iterable[str]:
    """Chain, LLaMA, memory."""
    if any(row["where"] in ("chain", "llama", "memory") for row in rows):
        yield "## Cost"
    if chains := sorted((row for row in rows if row["where"] == "chain" and "trace" in row), key=lambda row: int(str(row["name"]))):
        lines = [
            [row["name"], *(f"{number(row, key):.2f}" for key in ("trace", "shrink")), f"{1000 * both(row) / int(str(row['name'])):.1f}"]
            for row in chains
        ]
        yield "A chain of residual blocks (two convolutions and batch norms each), in a fresh process each:\n\n" + table(
            ("blocks", "seconds to trace", "to shrink", "milliseconds a block"), lines
        )
    for row in rows:
        if row["where"] == "llama" and "trace" in row:
            yield (
                f"A LLaMA of {number(row, 'parameters') / 1e9:.2f} billion parameters on `meta`, 32 layers: {number(row, 'trace'):.1f} "
                f"s to trace and {number(row, 'shrink'):.1f} s to shrink to {number(row, 'parameters after') / 1e9:.2f} billion; peak "
                f"resident memory of the process {number(row, 'peak') / 2**30:.2f} GiB, {number(row, 'peak before') / 2**30:.2f} before."
            )
        if row["where"] == "memory" and "grown" in row:
            yield (
                f"`secateur.shrink` on {row['name']}: resident memory grows by {number(row, 'grown') / 2**20:.1f} MiB for a model of "
                f"{number(row, 'new') / 2**20:.1f} MiB made of one of {number(row, 'old') / 2**20:.1f} MiB: at its peak old + new "
                f"{100 * number(row, 'over'):+.1f} % (a fresh process; its peak, VmHWM, reset before the call)."
            )


def both(row: Row) -> float:
    return number(row, "trace") + number(row, "shrink")


def short(models: Sequence[Row]) -> Iterable[str]:
    """What does not pass."""
    lines = [[f"{row['where']} {row['name']}", what] for row in models if (what := "; ".join(wrong(row)))]
    if lines:
        yield "## What falls short\n\n" + table(("model", "what"), lines).replace("---: |\n", "--- |\n", 1)


def wrong(row: Row) -> Iterable[str]:
    found = shown(row)
    yield from [str(row["error"])] if "error" in row else []
    if "error" in found:
        yield str(found["error"])
    if found.get("fails"):
        yield f"does not run: {found['fails']}"
    if "ratio" in found and not is_small(found):
        yield f"{number(found, 'ratio'):.2f}x ({kept_whole(found)}; {100 * number(found, 'products'):.0f} % of it products of activations)"
    if "apart" in found and not is_equal(found):
        yield f"{number(found, 'apart'):.1e} apart"
    if caught := len(texts(found, "caught")) + len(texts(found, "caught exact")):
        yield f"{caught} groups would have been cut wrongly, were noticed on numbers and kept whole"
    if how(row) == "own" and (why := part(row, "graph").get("error")):
        yield f"as a graph: {why}"


def line(row: Row) -> str:
    """For the terminal."""
    found = shown(row)
    if row["where"] not in ("torchvision", "timm"):
        keys = ("trace", "shrink", "peak", "grown", "over", "error")
        return f"{row['where']} {row['name']}: " + ", ".join(f"{key} {row[key]}" for key in keys if key in row)
    told = " ".join(name if test(found) else f"NOT {name}" for name, test in (("runs", runs), ("smaller", is_small), ("equal", is_equal)))
    ratios = ", ".join(f"{way} {part(row, way).get('ratio', '-')}x" for way in WAYS if way in row)
    tool = part(row, TOOL)
    times = f"{seconds(found) or 0:.2f} s, Torch-Pruning {tool.get('seconds', '-')} s {tool.get('fails', '')}".strip()
    return f"{row['name']}: {told} ({ratios}) {times}" + "".join(f"; {what}" for what in wrong(row))


def legend() -> str:
    return (
        "`seconds`: trace, plan and shrink (and export a graph); what comparing the two models on numbers takes is beside it. The ratios "
        "are of multiplications; `0.31x (own 0.85x)`: in its own class it stays larger. `kept whole`: units in groups that are no outputs, "
        "the two reasons that concern most; all are in the rows."
    )


def cells(row: Row) -> list[object]:
    found, tool = shown(row), part(row, TOOL)
    own = part(row, "own")
    smaller = f"{number(found, 'ratio'):.2f}x" if "ratio" in found else "-"
    smaller += f" (own {number(own, 'ratio'):.2f}x)" if how(row) == "graph" and "ratio" in own else ""
    precision = "" if number(found, "tolerance", 0) < 1e-6 else ", float32 only"
    equal = f"{number(found, 'apart'):.0e}{precision}" if "apart" in found else "-"
    time = seconds(found)
    its = f"{number(tool, 'ratio'):.2f}x" if "ratio" in tool else str(tool.get("fails", tool.get("skipped", "-")))[:60].replace("|", "/")
    return [
        f"{row['where']} {row['name']}", f"{number(row, 'parameters') / 1e6:.1f}", yes(runs(found)), yes(is_small(found)) + f", {smaller}",
        yes(is_equal(found)) + f", {equal}", WAYS[how(row)], "-" if time is None else f"{time:.2f}",
        f"{number(found, 'check'):.2f}" if "check" in found else "-", its, f"{number(tool, 'seconds'):.2f}" if "seconds" in tool else "-",
        kept_whole(found),
    ]  # fmt: skip


def kept_whole(found: Row, most: int = 2) -> str:
    image = lambda why, units: why.startswith("meets an input") and units <= IMAGE
    reasons = [(why, of) for why, of in texts(found, "frozen").items() if not image(why, of[1])]
    told = [f"{units} units: {why}" for why, (_, units) in reasons[:most]]
    return "; ".join([*told, *([f"{len(reasons) - most} more reasons"] if len(reasons) > most else [])]).replace("|", "/")


def texts(found: Row, name: str) -> Mapping[str, tuple[int, int]]:
    value = found.get(name, {})
    assert isinstance(value, dict)
    return value


def yes(value: bool) -> str:
    return "yes" if value else "**no**"


def number(row: Row, name: str, absent: float | None = 0.0) -> float:
    value = row.get(name, absent)
    assert isinstance(value, (int, float))
    return value
