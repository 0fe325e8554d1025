"""The page docs/cifar.md, from the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from results import Row, grouped, percent, table

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HEADS = ("criterion", "top-1", "top-5", "worst class", "top-1", "top-5", "worst class")
LOCALS = (0.0, 0.3, 0.6)


def page(rows: Sequence[Row], compared: Sequence[Row] = ()) -> str:
    """The whole page, of the rows that are there. compared: the rows of `--choose`."""
    parts = ["# CIFAR-10 without training", intro(rows), targets(rows)]
    for net in sorted({number(row, "net") for row in rows}):
        mine = [row for row in rows if row["net"] == net]
        parts += [f"## ResNet-{net:.0f}", dense_line(mine), *section(mine, "channels"), *section(mine, "connections"), *protection(mine)]
    parts += choice(compared)
    return "\n\n".join(part for part in parts if part) + "\n"


def intro(rows: Sequence[Row]) -> str:
    def names(key: str) -> str:
        return ", ".join(dict.fromkeys(str(row[key]) for row in rows if key in row)) or "nothing yet"

    return (
        "Written by `python benchmarks/cifar.py`; the raw rows are in `benchmarks/results/cifar.json`. The trained networks of Idelbayev "
        "(akamaster/pytorch_resnet_cifar10), pruned and not trained any further. Sensitivity is measured on 2,048 training images, a "
        "random sample by the seed, in batches of 128; batch norms are re-estimated on the same images by the difference to the dense "
        "network (`secateur.reestimate`). Figures are percentages of the 10,000 test images.\n\n"
        f"Commit of the library: {names('commit')}. Seed: {names('seed')}. Machine: {names('machine')}. Rows: {len(rows)}."
    )


def targets(rows: Sequence[Row]) -> str:
    """What was aimed at, and what came out."""
    lines: list[list[object]] = []
    for net, aim in ((20, 91.73), (56, 93.39)):
        found = [row for row in rows if row["net"] == net and row["structure"] == "dense"]
        lines += [[f"ResNet-{net} dense", f"{aim}", percent(found[0]["top1"])] for _ in found[:1]]
        half = [row for row in rows if row["net"] == net and row["structure"] == "connections" and row["amount"] == 0.5]
        if found and half:
            best = max(half, key=lambda row: number(row, "top1"))
            aim = 100 * number(found[0], "top1") - 0.3
            lines.append([f"ResNet-{net}, half of the connections removed, best ({told(best)})", f"≥ {aim:.2f}", percent(best["top1"])])
    third = [row for row in rows if row["net"] == 56 and row["structure"] == "channels" and ratio(row) == "1.3x"]
    as_it_is = [row for row in third if not own_way(row) and row["contexts"] == "batch"]
    if as_it_is:
        best = max(as_it_is, key=lambda row: number(row, "top1"))
        lines.append([f"ResNet-56, channels, 1.3x fewer MACs, best criterion as it is ({told(best)})", "≥ 92.50", percent(best["top1"])])
    for row in third:
        if own_way(row) and row["repair"] == "statistics":
            lines.append([f"the same, by a way of benchmarks/recipes.py: {told(row)}", "≥ 92.50", percent(row["top1"])])
    return table(("what", "target", "measured, top-1"), lines) if lines else ""


def own_way(row: Row) -> bool:
    """Whether it is one of the ways in benchmarks/recipes.py, not a criterion of the library as it is."""
    return bool(row["per_mac"] or row["inner"] or row["steps"] != 1)


def choice(rows: Sequence[Row]) -> Iterable[str]:
    """What the ways of choosing did on training images that nothing was measured on."""
    if rows:
        lines = [
            [told(row), percent(row["top1"]), f"{number(row, 'loss'):.4f}"] for row in sorted(rows, key=lambda row: number(row, "loss"))
        ]
        yield (
            f"## Ways of choosing channels, compared on training images\n\n`python benchmarks/cifar.py --choose`: ResNet-{rows[0]['net']}, "
            f"channels, {ratio(rows[0])} fewer MACs, batch norms re-estimated, on {number(rows[0], 'images'):,.0f} training images that "
            "nothing was measured on. The network was trained on them, so top-1 is far higher than on test images, and the order is by the "
            f"loss. The ways are told in `benchmarks/recipes.py`. Commit of the library: {rows[0]['commit']}."
        )
        yield table(("criterion", "top-1", "loss"), lines)


def dense_line(rows: Sequence[Row]) -> str:
    return "".join(f"Dense: {figures(row)}." for row in rows if row["structure"] == "dense")


def figures(row: Row) -> str:
    return f"top-1 {percent(row['top1'])}, top-5 {percent(row['top5'])}, worst class {percent(row['worst_class'])} ({class_of(row)})"


def section(rows: Sequence[Row], structure: str) -> Iterable[str]:
    """A table for each budget: a line for each way of choosing, the best after re-estimation first."""
    mine = [row for row in rows if row["structure"] == structure and row["contexts"] == "batch"]
    for amount, some in sorted(grouped(mine, lambda row: row["amount"]).items(), key=lambda item: float(str(item[0]))):
        removed = f"{100 * float(str(amount)):.0f} % removed" if structure == "connections" else f"{ratio(some[0])} fewer MACs"
        yield f"### {structure}, {removed}\n\nStraight after pruning, then with batch norms re-estimated:\n\n{criteria(some)}"


def criteria(rows: Sequence[Row]) -> str:
    lines = []
    for name, pair in grouped(rows, told).items():
        by_repair = {str(row["repair"]): row for row in pair}
        cells = [cell for repair in ("none", "statistics") for cell in three(by_repair.get(repair))]
        last = by_repair.get("statistics", pair[0])
        lines.append((number(last, "top1"), [name, *cells]))
    return table(HEADS, [line for _, line in sorted(lines, key=lambda item: -item[0])])


def three(row: Row | None) -> list[str]:
    return [percent(row["top1"]), percent(row["top5"]), f"{percent(row['worst_class'])} {class_of(row)}"] if row else ["", "", ""]


def protection(rows: Sequence[Row]) -> Iterable[str]:
    """Local weight 0, 0.3 and 0.6 over classes: the worst class, and the whole."""
    mine = [row for row in rows if row["contexts"] == "class" and row["repair"] == "statistics" and not row["per_mac"]]
    whole: list[tuple[Mapping[float, Row], list[object]]] = []
    for (structure, amount, criterion), some in grouped(mine, lambda row: (row["structure"], row["amount"], row["criterion"])).items():  # type: ignore[misc]
        by_local = {number(row, "local"): row for row in some}
        budget = ratio(some[0]) if structure == "channels" else f"{100 * amount:.0f} %"
        cells = [pair_of(by_local.get(local)) for local in LOCALS]
        whole.append((by_local, [f"{structure} {budget}, {criterion}", *cells]))
    if whole:
        heads = ("budget and criterion", *(f"local {local:g}" for local in LOCALS))
        yield "### Does local sensitivity protect the worst class?\n\n" + verdict([pair for pair, _ in whole])
        yield "Worst class (top-1), batch norms re-estimated, contexts by class:\n\n" + table(heads, [line for _, line in whole])


def verdict(whole: Sequence[Mapping[float, Row]]) -> str:
    """Counted, not judged."""
    words = []
    for local in LOCALS[1:]:
        pairs = [(rows[local], rows[0.0]) for rows in whole if local in rows and 0.0 in rows]
        if pairs:
            worst = [100 * (number(a, "worst_class") - number(b, "worst_class")) for a, b in pairs]
            top = [100 * (number(a, "top1") - number(b, "top1")) for a, b in pairs]
            words.append(
                f"Local weight {local:g} against 0, over {len(pairs)} pairs of a budget and a criterion: the worst class is better in "
                f"{sum(gain > 0 for gain in worst)}, worse in {sum(gain < 0 for gain in worst)}, {sum(worst) / len(worst):+.2f} points in "
                f"the mean; top-1 {sum(top) / len(top):+.2f} in the mean."
            )
    return " ".join(words)


def pair_of(row: Row | None) -> str:
    return f"{percent(row['worst_class'])} ({percent(row['top1'])})" if row else ""


def told(row: Row) -> str:
    """The way of choosing, in words."""
    words = [str(row["criterion"])]
    words += ["layer scope"] if row["scope"] == "layer" else []
    words += ["per MAC"] if row["per_mac"] else []
    words += ["inner channels"] if row["inner"] else []
    words += [f"by {row['contexts']}, local {row['local']:g}"] if row["contexts"] != "batch" else []
    words += [f"batches of {row['batch']}"] if row["batch"] != 128 else []
    words += [f"{row['steps']} rounds"] if row["steps"] != 1 else []
    return ", ".join(words)


def summary(rows: Sequence[Row]) -> str:
    """One line a case, best first within a budget: for the terminal."""
    lines = []
    order = sorted(rows, key=lambda row: (number(row, "net"), str(row["structure"]), number(row, "amount"), -number(row, "top1")))
    for row in order:
        case = f"ResNet-{row['net']} {row['structure']:11} {number(row, 'amount'):.3f} {row['repair']:10}"
        lines.append(f"{case} {figures(row)}, loss {row.get('loss', float('nan')):.4f}  {told(row)}")
    return "\n".join(lines)


def ratio(row: Row) -> str:
    return f"{round(1 / (1 - number(row, 'amount')), 2):g}x"


def class_of(row: Row) -> str:
    return CLASSES[int(number(row, "worst_class_is"))]


def number(row: Row, name: str) -> float:
    value = row[name]
    assert isinstance(value, (int, float))
    return value
