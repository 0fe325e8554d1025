"""docs/robust.md, from the rows of robust.py: what every network keeps, and what the ways to choose change beside the plain loss.

A difference is clear where it has the same sign with every seed that both were measured with (two at the least), and its mean is at least
two standard errors of one such accuracy, 2 sqrt(p (1 - p) / n), n the images that it is of, with four more, of which two are right, so that
none of few is not taken for never (Agresti & Coull, 1998). The calibration error's margin is one point.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import torch

import results
from corruptions import LEVELS
from minilm import spearman
from results import Row

NETS = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}
STRUCTURES = {"channels": "channels, 1.5x fewer MACs", "connections": "half of the connections"}
MEANT = {
    "noise": ("noise",),
    "fgsm": ("fgsm0.5", "fgsm2", "fgsm8", "pgd0.5", "pgd2", "pgd8"),
    "local": ("worst",),
}  # what each way is to protect
PLAIN, CHANCE, REPAIR = "plain", "random", "statistics"
STEPS = 10  # of PGD
SETTINGS = ("images", "test", "corrupted", "attacked")


@dataclass(frozen=True)
class Measure:
    """images: which count of a row it is of, and the share of those; better: 1 where more of it is, -1 where less is."""

    title: str
    images: str
    share: float = 1.0
    better: int = 1


MEASURES = {
    "top1": Measure("top-1", "test"),
    "worst": Measure("worst class", "test", 0.1),
    "ece": Measure("ECE", "", better=-1),
    **{name: Measure(name, "corrupted") for name in LEVELS},
    **{f"{kind}{radius}": Measure(f"{kind.upper()} {radius}/255", "attacked") for kind in ("fgsm", "pgd") for radius in ("0.5", "2", "8")},
}

Place = tuple[str, str]  # net, structure
Found = list[float]  # one figure a seed


def points(row: Row, name: str) -> float:
    """In per cent; of the five levels of a corruption the mean."""
    value = row[name]
    return 100 * (statistics.fmean(value) if isinstance(value, list) else float(str(value)))


def of(rows: Iterable[Row], place: Place, way: str, repair: str = REPAIR) -> dict[int, Row]:
    """By seed."""
    wanted: Row = {"net": place[0], "structure": place[1], "way": way, "repair": repair}
    return {int(str(row["seed"])): row for row in rows if results.same(row, wanted)}


def changes(rows: list[Row], place: Place, way: str, name: str, base: str = PLAIN) -> Found:
    """What the way changes beside the other one, in points, for every seed that both were measured with."""
    one, other = of(rows, place, way), of(rows, place, base)
    return [points(one[seed], name) - points(other[seed], name) for seed in sorted(one.keys() & other.keys())]


def margin(row: Row, name: str) -> float:
    measure = MEASURES[name]
    if not measure.images:
        return 1.0
    images = float(str(row[measure.images])) * measure.share + 4
    share = (points(row, name) / 100 * (images - 4) + 2) / images
    return 200 * math.sqrt(share * (1 - share) / images)


def clear(rows: list[Row], place: Place, way: str, name: str) -> int:
    """1 where the way is clearly better than the plain loss, -1 where clearly worse, else 0."""
    found, first = changes(rows, place, way, name), next(iter(of(rows, place, PLAIN).values()), None)
    if first is None or len(found) < 2 or len({change > 0 for change in found}) > 1 or 0 in found:
        return 0
    mean = statistics.fmean(found)
    return 0 if abs(mean) < margin(first, name) else MEASURES[name].better * (1 if mean > 0 else -1)


def signed(change: float) -> str:
    return f"{round(change, 1) + 0.0:+.1f}"  # no -0.0


def spread(figures: Found) -> str:
    return f"{statistics.fmean(figures):.1f}" + (f" ± {statistics.stdev(figures):.1f}" if len(figures) > 1 else "")


def places_of(rows: list[Row]) -> list[Place]:
    return [(net, structure) for net in NETS for structure in STRUCTURES if of(rows, (net, structure), PLAIN)]


def named(place: Place) -> str:
    return f"{NETS[place[0]]}, {place[1]}"


def ways_of(rows: list[Row], place: Place) -> list[str]:
    return list(dict.fromkeys(str(row["way"]) for row in rows if (row["net"], row["structure"]) == place))


# parts of the page ----------------------------------------------------------------------------------------------------------------------


def kinds(rows: list[Row], place: Place) -> list[tuple[str, list[Row]]]:
    """The lines of a table: dense, every way with the usual repair, and what was repaired by least squares."""
    lines = [("dense", list(of(rows, (place[0], "dense"), "dense", "none").values()))]
    lines += [(f"`{way}`", list(of(rows, place, way).values())) for way in ways_of(rows, place)]
    lines += [(f"`{way}`, least squares", list(of(rows, place, way, "least-squares").values())) for way in ways_of(rows, place)]
    return [line for line in lines if line[1]]


def figures(rows: list[Row], place: Place) -> str:
    heads = ("", "seeds", *(measure.title for measure in MEASURES.values()))
    return results.table(heads, [
        [name, len(mine), *(spread([points(row, measure) for row in mine]) for measure in MEASURES)] for name, mine in kinds(rows, place)
    ])  # fmt: skip


def levels(rows: list[Row], place: Place) -> str:
    def cell(mine: list[Row], name: str) -> str:
        each = zip(*(row[name] for row in mine))  # type: ignore[call-overload]
        return " / ".join(f"{100 * statistics.fmean(level):.1f}" for level in each)

    heads = ("", *(f"{name} {', '.join(f'{level:g}' for level in chosen)}" for name, chosen in LEVELS.items()))
    return results.table(heads, [[name, *(cell(mine, corruption) for corruption in LEVELS)] for name, mine in kinds(rows, place)])


def beside(rows: list[Row], place: Place) -> str:
    """Differences to the plain loss; bold where they are clear."""

    def cell(way: str, name: str) -> str:
        told = signed(statistics.fmean(changes(rows, place, way, name)))
        return f"**{told}**" if clear(rows, place, way, name) else told

    ways = [way for way in ways_of(rows, place) if way != PLAIN and changes(rows, place, way, "top1")]
    heads = ("points beside `plain`", *(measure.title for measure in MEASURES.values()))
    return results.table(heads, [[f"`{way}`", *(cell(way, name) for name in MEASURES)] for way in ways])


def cost(rows: list[Row]) -> str:
    """What pruning by the plain loss takes from the dense network."""

    def cell(place: Place, name: str) -> str:
        (dense,), mine = of(rows, (place[0], "dense"), "dense", "none").values(), of(rows, place, PLAIN).values()
        return f"{points(dense, name):.1f} → {statistics.fmean(points(row, name) for row in mine):.1f}"

    heads = ("dense → `plain`", *(measure.title for measure in MEASURES.values()))
    return results.table(heads, [[named(place), *(cell(place, name) for name in MEASURES)] for place in places_of(rows)])


def meant(rows: list[Row]) -> str:
    """What each way changes at what it is to protect, in points beside the plain loss, with every seed."""

    def cell(place: Place, way: str, name: str) -> str:
        found, said = changes(rows, place, way, name), {1: "better", -1: "worse", 0: "not clear"}[clear(rows, place, way, name)]
        return f"{signed(statistics.fmean(found))} ({', '.join(map(signed, found))}), {said}" if found else ""

    places, pairs = places_of(rows), [(way, name) for way, names in MEANT.items() for name in names]
    lines = [[f"`{way}`: {MEASURES[name].title}", *(cell(place, way, name) for place in places)] for way, name in pairs]
    return results.table(("way: what it is to protect", *map(named, places)), lines)


def told(rows: list[Row], way: str, sign: int, only: Iterable[str] = MEASURES) -> str:
    """Where, at what and by how much the way is clearly better (sign 1) or worse (-1) than the plain loss."""
    parts = []
    for place in places_of(rows):
        names = [name for name in only if clear(rows, place, way, name) == sign]
        if names:
            by = (f"{MEASURES[name].title} {signed(statistics.fmean(changes(rows, place, way, name)))}" for name in names)
            parts.append(f"{named(place)} ({', '.join(by)})")
    return "; ".join(parts)


def answer(rows: list[Row]) -> str:
    """What protects, by how much, and what it costs."""
    places, said = places_of(rows), []
    for way, names in MEANT.items():
        mine = [place for place in places if changes(rows, place, way, "top1")]
        price = ", ".join(signed(statistics.fmean(changes(rows, place, way, "top1"))) for place in mine)
        good, bad = (told(rows, way, sign, names) or "nowhere" for sign in (1, -1))
        said.append(
            f"- `{way}`, at what it is to protect, is clearly better in: {good}; clearly worse in: {bad}. Its top-1, case by case: {price}."
        )
    others = list(dict.fromkeys(way for place in places for way in ways_of(rows, place) if way != PLAIN and way not in MEANT))
    for way in others:
        good, bad = (told(rows, way, sign) or "nowhere" for sign in (1, -1))
        said.append(f"- `{way}`, at all that is measured, is clearly better in: {good}; clearly worse in: {bad}.")
    everywhere = {
        way: [MEASURES[name].title for name in MEASURES if all(clear(rows, place, way, name) == 1 for place in places)]
        for way in (*MEANT, *others)
    }
    found = "; ".join(f"`{way}` ({', '.join(names)})" for way, names in everywhere.items() if names)
    said.append(f"- Clearly better in each of the {len(places)} cases: {found or 'no way, at nothing'}.")
    if fitted(rows):
        said.append(f"- Least squares instead of re-estimated batch norms is better, in every case that had both, at: {repaired(rows)}.")
    said += [f"- Best of the pruned in {best(rows, place)}." for place in places]
    return "\n".join(said)


def best(rows: list[Row], place: Place) -> str:
    """Which pruned network of a case is the best at what, means over seeds; nothing where all are alike."""
    won: dict[str, list[str]] = {}
    lines = kinds(rows, place)[1:]
    for name, measure in MEASURES.items():
        means = {line: measure.better * statistics.fmean(points(row, name) for row in mine) for line, mine in lines}
        if len(set(means.values())) > 1:
            won.setdefault(max(means, key=lambda line: means[line]), []).append(measure.title)
    return f"{named(place)}: " + "; ".join(f"{line} at {', '.join(titles)}" for line, titles in won.items())


def fitted(rows: list[Row]) -> list[tuple[Place, str, dict[str, float]]]:
    """What least squares changes beside re-estimated batch norms, of the same plan, in points."""
    pairs = [
        (place, way, one[seed], other[seed])
        for place in places_of(rows)
        for way in ways_of(rows, place)
        for one, other in [(of(rows, place, way, "least-squares"), of(rows, place, way))]
        for seed in sorted(one.keys() & other.keys())
    ]
    return [(place, way, {name: points(one, name) - points(other, name) for name in MEASURES}) for place, way, one, other in pairs]


def repairs(rows: list[Row]) -> str:
    heads = ("least squares beside `statistics`", *(measure.title for measure in MEASURES.values()))
    lines = [[f"{named(place)}, `{way}`", *map(signed, by.values())] for place, way, by in fitted(rows)]
    return results.table(heads, lines)


def repaired(rows: list[Row]) -> str:
    """At what least squares is better in every case, by how much; one seed, so without a claim of being clear."""
    found, said = [by for _, _, by in fitted(rows)], []
    for name, measure in MEASURES.items():
        if found and all(by[name] * measure.better >= 0.1 for by in found):
            said.append(f"{measure.title} ({', '.join(signed(by[name]) for by in found)})")
    return "; ".join(said) or "nothing"


def followed(rows: list[Row]) -> str:
    """How far top-1 alone tells the rest."""
    lines = []
    for place in places_of(rows):
        mine = [row for way in ways_of(rows, place) if way != CHANCE for row in of(rows, place, way).values()]
        figures = {name: torch.tensor([points(row, name) for row in mine]) for name in MEASURES}
        varied = [name for name, each in figures.items() if name != "top1" and each.unique().numel() > 1]
        by = (f"{MEASURES[name].title} {spearman(figures['top1'], figures[name]):+.2f}" for name in varied)
        lines.append(f"- {named(place)} ({len(mine)} networks): {', '.join(by)}.")
    return "\n".join(lines)


def about(rows: list[Row]) -> str:
    """What was done, on what images, and where."""
    one, places = rows[0], places_of(rows)
    where = sorted({f"commit {row['commit']}, {row['machine']}" for row in rows})
    seeds = "; ".join(f"{named(place)} {', '.join(str(seed) for seed in sorted(of(rows, place, PLAIN)))}" for place in places)
    return f"""\
# What pruning does to robustness

Written by `python benchmarks/robust.py`; rows in `benchmarks/results/robust.json`. ResNets for CIFAR-10 lose channels inside blocks (1.5x
fewer MACs) or half of their connections; no weight is trained. What differs is how the scores are made:

- `plain`: of the loss on clean training images, by `gradient_activation` per MAC (channels) or `taylor` (connections).
- `noise`, `fgsm`: the same of a robust loss: on the same images with Gaussian noise (standard deviation {LEVELS["noise"][2]:g},
  the third level of the test, drawn anew), or moved by one step of FGSM (2/255) on the dense network.
- `local`: the same, the sensitivity of every class merged with weight 0.5 (`contexts="class", local=0.5`).
- `lamp`: by weights alone (connections only). `random`: by chance.

All are repaired by `repair="statistics"` on {one["images"]:,} clean training images, those that were measured on; with seed 0, the way that
does best on 1,000 other test images is also repaired by `repair="least-squares"`. A seed draws the training images, and what is random
in the scores. Seeds of what was run: {seeds}.

Measured, in %: top-1, worst class and ECE (15 bins, torchmetrics) on the first {one["test"]:,} test images. Noise, blur and contrast
on the first {one["corrupted"]:,} of them: the mean of five levels, those of CIFAR-10-C (Hendrycks & Dietterich, 2019; pixels unrounded).
FGSM and PGD ({STEPS} steps, each a quarter of the radius, from a random start) on the first {one["attacked"]:,}: accuracy on images that
torchattacks moved against each network itself, every pixel (0..1) by at most the radius. Images, noise and random starts are the same for
all networks; ± is the standard deviation over seeds.

Measured on: {"; ".join(where)}."""


def page(rows: list[Row]) -> str:
    """Of the rows that have the settings of the last one."""
    rows = [row for row in rows if results.same(row, {name: rows[-1][name] for name in SETTINGS})]
    strongest = max(points(row, "pgd8") for row in rows)
    parts = [
        about(rows),
        "## Answer",
        "Points, beside `plain`. *Clear* is a difference that has the same sign with every seed (two at the least) and is, in the mean, at "
        "least two standard errors of one accuracy on so many images (ECE: one point). So many are looked at that a few will be clear by "
        "luck: one that returns in another case is worth more.",
        answer(rows),
        "What each way changes at what it is to protect: the mean (every seed):",
        meant(rows),
        "What the plain loss costs:",
        cost(rows),
    ]
    if fitted(rows):
        parts += ["What least squares changes, instead of re-estimated batch norms on the same plan (seed 0):", repairs(rows)]
    parts += [
        "How far top-1 alone tells the rest: rank correlation with top-1 over the pruned networks, the random ones left out:",
        followed(rows),
        f"PGD at 8/255 leaves at most {strongest:.1f} % right, whatever the network, the dense ones too: none was trained against them.",
    ]
    for place in places_of(rows):
        title = f"## {NETS[place[0]]}: {STRUCTURES[place[1]]}"
        parts += [title, figures(rows, place), beside(rows, place), "Level by level:", levels(rows, place)]
    return "\n\n".join(parts) + "\n"
