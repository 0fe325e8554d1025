"""Tables for the terminal: what may leave, what matters how much, and models with a line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from .cost import costs
from .curves import Curves
from .errors import need
from .reductions import normalised
from .sensitivity import Sensitivity
from .structure import Group, Structure, all_kept
from .structure.structure import WITHOUT
from .structure.watch import FIXED
from .table import ABSENT, Table, column_of, shown
from .tree import Scores

if TYPE_CHECKING:
    import rich.table

Side = Literal["left", "right"]
LEFT: Side = "left"
RIGHT: Side = "right"


def table(*columns: tuple[str, Side], title: str = "") -> rich.table.Table:
    tables, box = need("rich.table", "cli"), need("rich.box", "cli")
    drawn: rich.table.Table = tables.Table(
        box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False, header_style="bold"
    )
    for name, side in columns:
        drawn.add_column(name, justify=side, overflow="fold")
    return drawn


def text(value: object) -> str:
    """Names are text, never markup."""
    escaped: str = need("rich.markup", "cli").escape(str(value))
    return escaped


def groups_table(structure: Structure) -> rich.table.Table:
    """A line for every group whose units may leave."""
    drawn = table(("group", LEFT), ("units", RIGHT), ("kind", LEFT), ("cut together", RIGHT), ("note", LEFT), title="What may leave")
    for name, group in structure.groups.items():
        note = f"approximate: {group.approximate}" if group.approximate else ""
        drawn.add_row(text(name), f"{group.size:,}", group.kind, tensors(group), text(note))
    return drawn


def none_may(structure: Structure) -> str:
    """In the place of a table without a line: why it has none, unless what stays whole says so, and what to try."""
    why = "" if structure.frozen else f": {WITHOUT.get(structure.kind, 'nothing in the model is a unit')}"
    return f"Nothing may leave{why}. Try another --structure."


def tensors(group: Group) -> str:
    count = len({name for name, _ in group.members})
    return f"{count} tensor{'s' if count != 1 else ''}"


def frozen_table(structure: Structure) -> rich.table.Table:
    """A line for every group that stays whole, with the reason and its place in the user's code."""
    drawn = table(("group", LEFT), ("units", RIGHT), ("kind", LEFT), ("why", LEFT), title="What stays whole")
    for name, group in structure.frozen.items():
        drawn.add_row(text(name), f"{group.size:,}", group.kind, text(group.frozen))
    return drawn


def notes_on(structure: Structure, as_graph: bool) -> list[str]:
    """What the run had to say, and the way out where numbers in the user's code hold groups whole."""
    held = sum(group.frozen.startswith(FIXED) for group in structure.frozen.values())
    hint = f"{held} group{'s' if held > 1 else ''} of a size that is fixed in the code can leave from an exported graph: try --as-graph"
    return [*getattr(structure, "notes", ()), *([hint] if held and not as_graph else [])]


def totals(structure: Structure) -> str:
    """One line: groups, units, parameters, MACs."""
    known = costs(structure, all_kept(structure))
    counted = [f"{len(structure.groups)} groups", f"{known['units']:,.0f} units", f"{known['parameters']:,.0f} parameters"]
    return ", ".join([*counted, *([f"{known['macs']:,.0f} MACs a sample"] if "macs" in known else [])])


def ranking_table(sensitivity: Sensitivity) -> rich.table.Table:
    """Groups by their share of the sensitivity, the most important first, and which class needs most of their units most."""
    overall, local = shares(sensitivity.global_), shares(normalised(sensitivity.local))
    columns: list[tuple[str, Side]] = [("group", LEFT), ("units", RIGHT), ("global", RIGHT), ("local", RIGHT), ("per unit", RIGHT)]
    drawn = table(*columns, *([("needed most by", LEFT)] if sensitivity.keys else []), title="Sensitivity by group")
    for name in sorted(overall, key=lambda name: -overall[name]):
        size = sensitivity.global_[name].numel()
        row = [text(name), f"{size:,}", f"{overall[name]:.1%}", f"{local[name]:.1%}", f"{overall[name] / size:.2g}"]
        drawn.add_row(*row, *([needed(sensitivity, name)] if sensitivity.keys else []))
    return drawn


def shares(scores: Scores) -> dict[str, float]:
    """Of every group, its part of the whole; the scores sum to 1 already, but for their signs."""
    return {name: float(values.abs().sum(dtype=values.double().dtype)) for name, values in scores.items()}


def needed(sensitivity: Sensitivity, group: str) -> str:
    counts = Counter(key for key in sensitivity.needs(group) if key is not None)
    what = "class " if sensitivity.contexts == "class" else ""
    return ", ".join(f"{what}{text(key)} ({count:,})" for key, count in counts.most_common(2)) or f"no {what}".rstrip()


def curves_table(curves: Curves) -> rich.table.Table:
    """A line for every group: the first metric after each amount that it alone loses, the layers that it falls most in first."""
    metric = next(iter(curves.dense))
    losses = curves.losses(metric)
    amounts = sorted({amount for points in curves.points.values() for amount in points})
    share = column_of(metric).style == "share"
    said: Callable[[float], str] = lambda value: f"{100 * value:.1f}" if share else f"{value:.3g}"
    title = f"{column_of(metric).title} when one group alone loses so much; whole: {said(curves.dense[metric])}"
    drawn = table(("group", LEFT), *((f"{100 * amount:g} %", RIGHT) for amount in amounts), title=title)
    for name in sorted(losses, key=lambda name: -sum(losses[name].values())):
        points = curves.points[name]
        drawn.add_row(text(name), *(said(points[amount][metric]) if amount in points else ABSENT for amount in amounts))
    return drawn


# models with a line each ----------------------------------------------------------------------------------------------------------------

SHORT: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "straight": ("top-1\ncut", lambda value: f"{100 * value:.1f}"),
    "top1": ("top-1\n%", lambda value: f"{100 * value:.1f}"),
    "top5": ("top-5\n%", lambda value: f"{100 * value:.1f}"),
    "worst_class": ("worst\nclass", lambda value: f"{100 * value:.1f}"),
    "parameters": ("para-\nmeters", lambda value: shown(value, "count")),
    "nonzeros": ("non-\nzeros", lambda value: shown(value, "count")),
    "macs": ("MACs", lambda value: shown(value, "count")),
    "bytes": ("file", lambda value: shown(value, "bytes")),
    "memory": ("peak\nmemory", lambda value: shown(value, "bytes")),
    "ms_1": ("ms,\nb 1", lambda value: f"{value:.2f}"),
    "ms_32": ("ms,\nb 32", lambda value: f"{value:.1f}"),
}


def by_model(figures: Table) -> rich.table.Table:
    """Many models in a hundred columns: a line each, figures short."""
    columns = [name for name in SHORT if name in figures.columns]
    drawn = table(("", LEFT), *((SHORT[name][0], RIGHT) for name in columns))
    drawn.padding = (0, 1, 0, 0)
    for row, values in figures.rows.items():
        above = next((name for name in figures.rows if row.startswith(f"{name}, ")), None)  # a variant of that row
        cells = [SHORT[name][1](values[name]).replace(" ", "") if name in values else "–" for name in columns]
        drawn.add_row(text(row if above is None else f"  {row.removeprefix(f'{above}, ')}"), *cells)
    drawn.columns[0].no_wrap = True
    return drawn
