"""Models side by side: a row each, a column per figure; what was not measured is absent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from .errors import Unreadable, need

if TYPE_CHECKING:
    import rich.table

ABSENT = "–"


@dataclass(frozen=True)
class Column:
    """One figure. style: "share", "count", "bytes", "ms", "class" or "number"; better: "more", "less" or "" (neither)."""

    title: str
    style: str
    better: str = "less"
    about: str = ""


COLUMNS = {
    "top1": Column("top-1", "share", "more", "samples whose class is the largest output"),
    "top5": Column("top-5", "share", "more", "samples whose class is among the five largest outputs"),
    "worst_class": Column("worst class", "share", "more", "the lowest accuracy of any class"),
    "worst_class_is": Column("which class", "class", "", "the class with the lowest accuracy"),
    "parameters": Column("parameters", "count", about="numbers in the weights, tied ones once"),
    "nonzeros": Column("non-zeros", "count", about="parameters that are not exactly zero"),
    "macs": Column("MACs", "count", about="multiply-accumulates per sample"),
    "bytes": Column("file", "bytes", about="the model's safetensors file"),
    "compressed": Column("file, zlib", "bytes", about="the same file compressed"),
    "memory": Column("peak memory", "bytes", about="what a fresh process takes for the model on top of torch, at its peak"),
}


@dataclass(frozen=True)
class Table:
    """rows: model -> column -> value; the first row is what the others are compared with. notes: why something is absent."""

    rows: dict[str, dict[str, float]]
    columns: dict[str, Column]
    notes: tuple[str, ...] = field(default=())

    def ratio(self, row: str, column: str) -> float | None:
        """How many times better than the first row: 2.0 is half the MACs. None for a share, and where either is absent or 0."""
        first, value = next(iter(self.rows.values())).get(column), self.rows[row].get(column)
        of = self.columns[column]
        if of.better != "less" or not first or not value or row == next(iter(self.rows)):
            return None
        return first / value

    def difference(self, row: str, column: str) -> float | None:
        """Of a share: points above (or below) the first row."""
        first, value = next(iter(self.rows.values())).get(column), self.rows[row].get(column)
        if self.columns[column].style != "share" or first is None or value is None or row == next(iter(self.rows)):
            return None
        return 100 * (value - first)

    def cell(self, row: str, column: str) -> str:
        value = self.rows[row].get(column)
        return ABSENT if value is None else shown(value, self.columns[column].style)

    def against(self, row: str, column: str) -> str:
        """The cell's comparison with the first row: "2.1x", "-0.4", or nothing."""
        ratio, difference = self.ratio(row, column), self.difference(row, column)
        if ratio is not None:
            return times(ratio)
        return points(difference) if difference is not None else ""

    def to_json(self) -> str:
        columns = {name: asdict(column) for name, column in self.columns.items()}
        return json.dumps({"rows": self.rows, "columns": columns, "notes": list(self.notes)}, indent=1)

    @staticmethod
    def from_json(text: str) -> Table:
        """Raises Unreadable for a text that `to_json` did not write."""
        try:
            read = json.loads(text)
            rows = {str(row): {str(column): float(value) for column, value in values.items()} for row, values in read["rows"].items()}
            columns = {str(name): Column(**{key: str(item) for key, item in column.items()}) for name, column in read["columns"].items()}
            return Table(rows, columns, tuple(str(note) for note in read["notes"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreadable(f"This is not a table that Secateur wrote: {error!r}. Compare the models again.") from error

    def pairs(self, row: str) -> list[tuple[str, str]]:
        """Of a model, every figure and its comparison, padded so that they stand below each other."""
        cells = [(self.cell(row, name), self.against(row, name)) for name in self.columns]
        left, right = (max((len(cell[side]) for cell in cells), default=0) for side in (0, 1))
        return [(cell.rjust(left), f"  {against.rjust(right)}" if right else "") for cell, against in cells]

    def rich(self) -> rich.table.Table:
        """For a terminal: a line per figure, a column per model, and beside each figure how it compares with the first model."""
        tables, text = need("rich.table", "report"), need("rich.text", "report")
        notes = text.Text("\n".join(self.notes)) if self.notes else None  # names are text here, never markup
        drawn: rich.table.Table = tables.Table(caption=notes, caption_justify="left", header_style="bold")
        drawn.add_column("")
        for row in self.rows:
            drawn.add_column(text.Text(row), justify="right", overflow="fold")
        pairs = {row: self.pairs(row) for row in self.rows}
        for place, (name, column) in enumerate(self.columns.items()):
            cells = [text.Text.assemble(pairs[row][place][0], (pairs[row][place][1], shade(self.gain(row, name)))) for row in self.rows]
            drawn.add_row(text.Text(column.title), *cells)
        return drawn

    def gain(self, row: str, column: str) -> float:
        """Above 0: better than the first row; below: worse; 0: as good, as near as can be told, or not to be compared."""
        ratio, difference = self.ratio(row, column), self.difference(row, column)
        if ratio is None:
            return round(difference or 0.0, 1)
        noise = 0.05 if self.columns[column].style == "ms" or column == "memory" else 0.005
        return ratio - 1 if abs(ratio - 1) >= noise else 0.0

    def __str__(self) -> str:
        titles = ["", *(column.title for column in self.columns.values())]
        models = [[row, *("".join(pair) for pair in self.pairs(row))] for row in self.rows]
        columns = [[cell.ljust(max(map(len, titles))) for cell in titles]]
        columns += [[cell.rjust(max(map(len, model))) for cell in model] for model in models]
        return "\n".join([*("  ".join(line).rstrip() for line in zip(*columns)), *self.notes])


def table_of(rows: Mapping[str, Mapping[str, float]], notes: Iterable[str] = ()) -> Table:
    """A table with a column for every figure that any row has: the usual ones first, in their usual order."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    own = [name for name in names if name not in COLUMNS and not name.startswith("ms_")]
    usual = [name for name in COLUMNS if name in names]
    quality = [name for name in usual if COLUMNS[name].better != "less"]
    order = quality + own + [name for name in usual if name not in quality] + [name for name in names if name.startswith("ms_")]
    return Table({name: dict(row) for name, row in rows.items()}, {name: column_of(name) for name in order}, tuple(notes))


def column_of(name: str) -> Column:
    if name in COLUMNS:
        return COLUMNS[name]
    if timed := re.fullmatch(r"ms_(\d+)(_p95)?", name):
        which = "95th percentile" if timed[2] else "median"
        return Column(
            f"batch {timed[1]}, {'p95' if timed[2] else 'median'}", "ms", about=f"{which} of the time of one run of {timed[1]} samples"
        )
    return Column(name, "share" if name.startswith("class ") else "number", "more" if name.startswith("class ") else "")


def shown(value: float, style: str) -> str:
    """A value in few characters: 97.2 %, 269.7 k, 1.1 MB, 0.43 ms."""
    if style == "share":
        return f"{100 * value:.1f} %"
    if style == "class":
        return f"{value:.0f}"
    if style == "ms":
        return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} ms"
    if style in ("count", "bytes"):
        return scaled(value, ("", " k", " M", " G", " T") if style == "count" else (" B", " kB", " MB", " GB", " TB"))
    return f"{value:.4g}"


def scaled(value: float, units: Sequence[str]) -> str:
    """In steps of a thousand, with four digits at most."""
    for unit in units[:-1]:
        if abs(value) < 999.95 or (unit == units[0] and abs(value) < 1000):
            return f"{value:.0f}{unit}" if unit == units[0] else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f}{units[-1]}"


def factor(ratio: float) -> str:
    """Below 1.1 with two decimals: 1.05 as 1.1 would be twice the gain."""
    return f"{ratio:.{2 if ratio < 1.1 else 1 if ratio < 99.95 else 0}f}"


def times(ratio: float) -> str:
    return f"{factor(ratio)}x"


def in_words(ratio: float, gain: str, what: str) -> str:
    """ "2.5 times smaller file"; within 2 % "about the same file size"."""
    return f"about the same {what}" if abs(ratio - 1) < 0.02 else f"{factor(ratio)} times {gain}"


def points(difference: float) -> str:
    return "±0.0" if abs(difference) < 0.05 else f"{difference:+.1f}".replace("-", "−")


def shade(gain: float) -> str:
    return "green" if gain > 0 else "red" if gain < 0 else "dim"
