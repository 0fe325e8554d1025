"""The page docs/criteria.md, from the rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import criteria_advice
from results import RESULTS, Row, grouped, read, table

TITLES = {
    "resnet20": "ResNet-20 (CIFAR-10)",
    "resnet56": "ResNet-56 (CIFAR-10)",
    "dscnn": "DS-CNN (keyword spotting)",
    "minilm": "MiniLM (sentence similarity)",
}
METRIC = {"minilm": "Spearman x 100"}  # elsewhere top-1, %
WHAT = {
    "channels": "channels, by the share of MACs removed",
    "connections": "single connections, by the share of parameters removed",
    "heads": "attention heads, by the share of heads removed",
    "feed-forward": "inner channels of the feed-forward parts, by the share of them removed",
}
BOLD = 3  # the best of a column


@dataclass(frozen=True)
class Line:
    """What was found of a criterion under a scope: per budget, a figure for each seed."""

    model: str
    structure: str
    criterion: str
    scope: str
    straight: dict[float, list[float]]
    repaired: dict[float, list[float]]
    ratio: float  # seconds of measuring, in plain forwards and backwards over the same samples
    images: int
    rows: int

    @property
    def final(self) -> dict[float, list[float]]:
        """Re-estimated, where there is something to re-estimate."""
        return self.repaired or self.straight

    @property
    def mean(self) -> float:
        """Over the budgets."""
        return statistics.fmean(statistics.fmean(values) for values in self.final.values())


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """The rows of all seeds and budgets together, for every criterion under a scope that has a figure."""
    keys = ("model", "structure", "criterion", "scope")
    found, apart = [], timed()
    for some in grouped((row for row in rows if row.get("budget") is not None), lambda row: tuple(row[key] for key in keys)).values():
        measured = [row for row in some if "straight" in row]
        if not measured:
            continue
        model, structure, criterion, scope = (str(some[0][key]) for key in keys)
        straight, repaired = (
            {budget: [100 * number(row, name) for row in part] for budget, part in by_budget(measured, name).items()}
            for name in ("straight", "reestimated")
        )
        on_gpu = any("NVIDIA" in str(row.get("machine")) for row in measured)
        ratio = apart.get((structure, criterion), math.inf) if on_gpu else ratio_of(measured)
        found.append(Line(model, structure, criterion, scope, straight, repaired, ratio, int(number(measured[0], "images")), len(measured)))
    return found


def by_budget(rows: Iterable[Row], name: str) -> dict[float, list[Row]]:
    parts = grouped((row for row in rows if name in row), lambda row: row["budget"])
    return {float(str(budget)): parts[budget] for budget in sorted(parts, key=lambda value: float(str(value)))}


def number(row: Row, name: str) -> float:
    value = row[name]
    assert isinstance(value, (int, float))
    return float(value)


def ratio_of(rows: Sequence[Row]) -> float:
    return statistics.median(number(row, "seconds") / max(number(row, "plain"), 1e-9) for row in rows)


def timed() -> dict[tuple[str, str], float]:
    """(structure, criterion) -> the ratio on a processor: networks this small leave a GPU idle, where a ratio counts operators."""
    rows = [row for row in read(RESULTS / "criteria_time.json") if "straight" in row and "plain" in row]
    groups = grouped(rows, lambda row: (row["structure"], row["criterion"]))
    return {(str(key[0]), str(key[1])): ratio_of(some) for key, some in groups.items()}  # type: ignore[index]


def page(rows: Sequence[Row]) -> str:
    """The whole page, of the rows that are there."""
    lines, dense = lines_of(rows), {str(row["model"]): 100 * number(row, "straight") for row in rows if row["structure"] == "dense"}
    parts = ["# Which criterion", intro(rows)]
    for model, title in TITLES.items():
        mine = [line for line in lines if line.model == model]
        if model in dense:
            parts.append(f"## {title}\n\n{about(rows, model, dense[model])}")
        for structure, what in WHAT.items():
            some = [line for line in mine if line.structure == structure]
            if some:
                parts += [f"### {title.partition(' (')[0]}: {what}", section(some)]
    parts += [refusals(rows), unrun(rows), local_section(), criteria_advice.advice(lines, dense)]
    return "\n\n".join(part for part in parts if part) + "\n"


def intro(rows: Sequence[Row]) -> str:
    def names(key: str) -> str:
        return "; ".join(dict.fromkeys(str(row[key]) for row in rows if key in row)) or "nothing yet"

    return (
        "Written by `python benchmarks/criteria.py`; the raw rows are in `benchmarks/results/criteria.json`. Trained networks are pruned "
        "by every criterion of the library and not trained any further: once straight, once with the batch norms re-estimated on the "
        "images that were measured on (`secateur.reestimate`). Where chance has a part (random, Hutchinson's probes, projections of the "
        "outputs) figures are the mean over the seeds 0, 1, 2, each with its own sample of data, ± their standard deviation (without ±: "
        "seed 0 alone was run so far); elsewhere seed 0.\n\n"
        "*Scope* says what competes: global, all units as they are scored; per-mac, the same, each score divided by the MACs that leave "
        "with the unit; layer, every layer loses the same share. Criteria that their papers compare within a layer only were run by layer, "
        "too. *Time* is what measuring took, in plain forwards and backwards over the same samples in the same run: 1.00 means that it "
        "cost as much as these (–: not timed yet). Of rows from a GPU, which networks this small leave idle, it was taken on a processor, "
        "for ResNet-20 on 256 images (`--models resnet20 --images 256 --test 100 --rows benchmarks/results/criteria_time.json`). "
        "A number behind it says that it was measured on so few samples, since it takes many passes, or works as hard. "
        "**Bold**: the best three of a column. In cells, a / b: straight / "
        "re-estimated.\n\n"
        f"Commit of the library: {names('commit')}. Seeds: {names('seed')}. Machine: {names('machine')}. Rows: {len(rows)}. On a GPU, what "
        "is pruned is tested in TF32; all else is in float32."
    )


def about(rows: Sequence[Row], model: str, dense: float) -> str:
    mine = [row for row in rows if row["model"] == model]
    samples = max((int(number(row, "images")) for row in mine if "images" in row), default=0)
    tested = max(int(number(row, "test")) for row in mine)
    told = {
        "dscnn": "Its data has no training part: what is measured on is drawn from 1,500 of the test clips, the others are tested on. Its "
        "batch norms were folded into the convolutions before it came here, so there is nothing to re-estimate.",
        "minilm": "Pairs of the STS Benchmark, measured on training pairs, tested on test pairs. The loss is the squared distance of the "
        "cosine to people's score. It has no batch norm, so there is nothing to re-estimate. Single connections were not run: the "
        "network has 22.6 million, and the runs are on a processor.",
    }.get(model, "Measured on training images, of which the network knows nearly all by heart. Of the channels, only those inside blocks.")
    return f"Dense: {dense:.2f} ({METRIC.get(model, 'top-1, %')}). {samples:,} samples measured on, {tested:,} tested on. {told}"


def section(lines: list[Line]) -> str:
    """A line a criterion, the best first."""
    budgets = sorted({budget for line in lines for budget in line.final})
    repaired = any(line.repaired for line in lines)
    lines = sorted(lines, key=lambda line: (len(line.final) < len(budgets), -line.mean))
    columns = [("straight", budget) for budget in budgets] + ([("repaired", budget) for budget in budgets] if repaired else [])
    best = {column: third([statistics.fmean(figures) for line in lines if (figures := of(line, *column))]) for column in columns}
    whole = max(line.images for line in lines)

    def cell(line: Line, column: tuple[str, float]) -> str:
        figures = of(line, *column)
        if not figures:
            return "-"
        mean = statistics.fmean(figures)
        spread = f" ± {statistics.stdev(figures):.1f}" if len(figures) > 1 else ""
        return (f"**{mean:.2f}**" if mean >= best[column] else f"{mean:.2f}") + spread

    heads = ["criterion", "scope", "time", *(f"{100 * budget:.0f} %" for budget in budgets)]
    body = []
    for line in lines:
        cells = [" / ".join(cell(line, (how, budget)) for how, at in columns if at == budget) for budget in budgets]
        time = (f"{line.ratio:.2f}" if line.ratio < math.inf else "–") + (f" ({line.images})" if line.images < whole else "")
        body.append([f"`{line.criterion}`", line.scope, time, *cells])
    return table(heads, body)


def of(line: Line, how: str, budget: float) -> list[float]:
    return (line.straight if how == "straight" else line.repaired).get(budget, [])


def third(figures: list[float]) -> float:
    return sorted(figures, reverse=True)[:BOLD][-1]


def unrun(rows: Sequence[Row]) -> str:
    """What was run on another network, but not on this one."""
    there = {(str(row["model"]), str(row["structure"]), str(row["criterion"])) for row in rows if "criterion" in row}
    places = sorted({(model, structure) for model, structure, _ in there})
    told = []
    for model, structure in places:
        known = {criterion for _, other, criterion in there if other == structure}
        if lacking := sorted(criterion for criterion in known if (model, structure, criterion) not in there):
            told.append(f"{TITLES[model].partition(' (')[0]}, {structure}: {', '.join(f'`{name}`' for name in lacking)}")
    return f"Not run yet: {'; '.join(told)}." if told else ""


def refusals(rows: Sequence[Row]) -> str:
    """Who does not serve which structure, and why."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "refused" in row:
            where = f"{TITLES[str(row['model'])].partition(' (')[0]}, {row['structure']}"
            if row["budget"] is not None:
                where += f" by {row['scope']} at {100 * number(row, 'budget'):.0f} %"
            places = found.setdefault((str(row["criterion"]), str(row["refused"])), [])
            if where not in places:
                places.append(where)
    if not found:
        return ""
    told = [f"- `{criterion}` ({'; '.join(places)}): {why}" for (criterion, why), places in sorted(found.items())]
    alike = "Not run, since they rank single connections as another one does: `l1` and `lp` as `magnitude`, `needed` as `snr`."
    return "\n".join(["## What does not serve a structure\n", *told, "", alike])


def local_section() -> str:
    """What benchmarks/local.py found, where it is there."""
    if find_spec("local") is None:
        return ""
    import local

    return str(local.section())
