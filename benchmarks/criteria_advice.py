"""The advice at the end of docs/criteria.md: sentences whose numbers come from the rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from results import table

if TYPE_CHECKING:
    from criteria_table import Line

NEAR = 0.5  # points within which one counts as good as the best
NAMES = {"channels": "channels", "connections": "single connections", "heads": "attention heads", "feed-forward": "feed-forward channels"}
COSTS = ((0.1, "next to nothing"), (1.6, "about one pass forward and backward"), (5.0, "up to five"), (math.inf, "more"))
CHOICE = tuple[str, str]  # criterion, scope


def advice(lines: Sequence[Line], dense: dict[str, float]) -> str:
    """Of every structure: the best, the cheapest that is nearly as good, and those to beat; then repair, scope, chance and cost."""
    parts = ["## Advice"]
    for structure, name in NAMES.items():
        mine = [line for line in lines if line.structure == structure and line.model in dense]
        if mine:
            parts.append(of_structure(name, mine, dense))
    parts += [each for each in (repair(lines), scopes(lines), chance(lines), costs(lines)) if each]
    return "\n\n".join(parts) if len(parts) > 1 else ""


def losses(lines: Sequence[Line], dense: dict[str, float]) -> dict[CHOICE, float]:
    """Points lost on average over networks and budgets, of those that were run on all of them."""
    places = {(line.model, budget) for line in lines for budget in line.final}
    lost: dict[CHOICE, dict[tuple[str, float], float]] = {}
    for line in lines:
        for budget, figures in line.final.items():
            lost.setdefault((line.criterion, line.scope), {})[line.model, budget] = dense[line.model] - statistics.fmean(figures)
    return {choice: statistics.fmean(found.values()) for choice, found in lost.items() if found.keys() == places}


def of_structure(name: str, lines: Sequence[Line], dense: dict[str, float]) -> str:
    lost, time = losses(lines, dense), times(lines)
    models = sorted({line.model for line in lines})
    number = len({(line.model, budget) for line in lines for budget in line.final})
    if not lost:
        return f"**{name.capitalize()}.** No criterion was run on all of {', '.join(models)} yet."
    order = sorted(lost, key=lambda choice: lost[choice])
    best = order[0]
    near = [choice for choice in order if lost[choice] <= lost[best] + NEAR]
    cheapest = min(near, key=lambda choice: (time[choice], lost[choice]))
    told = [
        f"**{name.capitalize()}** ({', '.join(models)}; {number} pairs of a network and a budget). Points lost on average: "
        + ", ".join(f"{said(choice)} {lost[choice]:.2f}" for choice in order[:5])
        + "."
    ]
    if cheapest != best:
        told.append(
            f"The cheapest within {NEAR:g} points of the best is {said(cheapest)}: {lost[cheapest]:.2f} points at {cost(time, cheapest)}, "
            f"where the best costs {cost(time, best)}."
        )
    else:
        told.append(f"Nothing cheaper comes within {NEAR:g} points of it; it costs {cost(time, best)}.")
    free = [choice for choice in order if time[choice] < COSTS[0][0] and choice[0] != "random"]
    if free and free[0] not in (best, cheapest):
        told.append(f"Of those that cost next to nothing, {said(free[0])} is the best: {lost[free[0]]:.2f}.")
    beside = [choice for choice in order if choice[0] in ("magnitude", "random")]
    told.append("To be held against: " + ", ".join(f"{said(choice)} {lost[choice]:.2f}" for choice in beside) + ".")
    by_chance = min((lost[choice] for choice in beside if choice[0] == "random"), default=None)
    if by_chance is not None:
        worse = [said(choice) for choice in order if lost[choice] >= by_chance and choice[0] != "random"]
        told.append(f"No better than random: {', '.join(worse)}." if worse else "All others beat random.")
    heads = ("network", "best on average over its budgets", "points lost")
    each = table(heads, [[model, *winner(lines, dense, model)] for model in models])
    return " ".join(told) + ("\n\n" + each if len(models) > 1 else "")


def winner(lines: Sequence[Line], dense: dict[str, float], model: str) -> tuple[str, str]:
    lost = losses([line for line in lines if line.model == model], dense)
    best = min(lost, key=lambda choice: lost[choice])
    return said(best), f"{lost[best]:.2f}"


def repair(lines: Sequence[Line]) -> str:
    """What re-estimation gave: it costs two passes forward."""
    gains = [
        statistics.fmean(figures) - statistics.fmean(line.straight[budget])
        for line in lines
        for budget, figures in line.repaired.items()
        if line.structure == "channels"
    ]
    if not gains:
        return ""
    return (
        f"**Re-estimating batch norms.** Over {len(gains)} plans of channels it gave {statistics.fmean(gains):+.2f} points on "
        f"average (median {statistics.median(gains):+.2f}), and made {sum(gain < 0 for gain in gains)} of them worse, for two passes "
        "forward."
    )


def scopes(lines: Sequence[Line]) -> str:
    """Of the criteria that were run both ways, which scope lost less."""
    told = []
    for structure, name in NAMES.items():
        mine = [line for line in lines if line.structure == structure]
        by_layer, other = ({(line.model, line.criterion): line for line in mine if (line.scope == "layer") is so} for so in (True, False))
        both = by_layer.keys() & other.keys()
        if both:
            gaps, scope = [other[key].mean - by_layer[key].mean for key in both], next(iter(other.values())).scope
            told.append(
                f"for {name}, {scope} is better in {sum(gap > 0 for gap in gaps)} of {len(gaps)} "
                f"({statistics.median(gaps):+.2f} points, the median)"
            )
    return f"**Scope.** Of the criteria that were run by layer as well: {'; '.join(told)}." if told else ""


def chance(lines: Sequence[Line]) -> str:
    spreads: dict[str, list[float]] = {}
    for line in lines:
        for figures in line.final.values():
            if len(figures) > 1:
                spreads.setdefault(line.criterion, []).append(statistics.stdev(figures))
    if not spreads:
        return ""
    told = ", ".join(f"`{name}` {statistics.median(values):.1f}" for name, values in sorted(spreads.items()))
    return f"**Chance.** Standard deviation over three seeds, the median over plans, in points: {told}. Smaller differences mean nothing."


def costs(lines: Sequence[Line]) -> str:
    """What each costs, in classes."""
    ratios: dict[str, list[float]] = {}
    for line in lines:
        if line.ratio < math.inf:
            ratios.setdefault(line.criterion, []).append(line.ratio)
    told, low = [], -1.0
    for high, name in COSTS:
        middle = {criterion: statistics.median(values) for criterion, values in ratios.items()}
        some = sorted((value, criterion) for criterion, value in middle.items() if low < value <= high)
        if some:
            told.append(f"- {name}: " + ", ".join(f"`{criterion}` {value:.2f}" for value, criterion in some))
        low = high
    if not told:
        return ""
    head = "**What each costs to measure**, in plain forwards and backwards over the same samples, the median over networks and structures:"
    return head + "\n\n" + "\n".join(told)


def times(lines: Sequence[Line]) -> dict[CHOICE, float]:
    found: dict[CHOICE, list[float]] = {}
    for line in lines:
        found.setdefault((line.criterion, line.scope), []).append(line.ratio)
    timed = {choice: [value for value in values if value < math.inf] for choice, values in found.items()}
    return {choice: statistics.median(values) if values else math.inf for choice, values in timed.items()}


def said(choice: CHOICE) -> str:
    return f"`{choice[0]}` by layer" if choice[1] == "layer" else f"`{choice[0]}`"


def cost(time: dict[CHOICE, float], choice: CHOICE) -> str:
    return f"{time[choice]:.2f} forwards and backwards" if time[choice] < math.inf else "what was not timed"
