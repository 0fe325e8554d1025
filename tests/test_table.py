"""A table says what was measured, compares it with the first row, and survives the trip through JSON."""

from __future__ import annotations

import io

import pytest
import rich.console

from secateur.errors import Unreadable
from secateur.table import Table, in_words, shown, table_of, times

ROWS = {
    "dense": {"top1": 0.972, "worst_class_is": 3.0, "parameters": 269_722, "bytes": 1_100_000, "ms_1": 0.43, "ms_1_p95": 0.5, "f1": 0.25},
    "small [red]": {"top1": 0.968, "parameters": 134_861, "bytes": 1_100_000, "ms_1": 0.86, "memory": 2e6, "nonzeros": 0.0},
}


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (0.9724, "share", "97.2 %"),
        (269_722, "count", "269.7 k"),
        (999, "count", "999"),
        (999_960, "count", "1.0 M"),
        (1_100_000, "bytes", "1.1 MB"),
        (12, "bytes", "12 B"),
        (0.434, "ms", "0.43 ms"),
        (43.44, "ms", "43.4 ms"),
        (3, "class", "3"),
        (0.12345, "number", "0.1235"),
    ],
)
def test_values_are_shown_in_few_characters(value, style, text):
    assert shown(value, style) == text


@pytest.mark.parametrize(
    ("ratio", "text", "words"),
    [
        (1.0, "1.00x", "about the same MACs"),
        (1.019, "1.02x", "about the same MACs"),
        (1.05, "1.05x", "1.05 times fewer MACs"),
        (1.099, "1.10x", "1.10 times fewer MACs"),
        (1.1, "1.1x", "1.1 times fewer MACs"),
        (5.46, "5.5x", "5.5 times fewer MACs"),
        (123.4, "123x", "123 times fewer MACs"),
    ],
)
def test_a_small_gain_is_not_rounded_up(ratio, text, words):
    assert times(ratio) == text and in_words(ratio, "fewer MACs", "MACs") == words


def test_comparisons_are_with_the_first_row():
    table = table_of(ROWS)
    assert table.against("small [red]", "parameters") == "2.0x" and table.gain("small [red]", "parameters") > 0
    assert table.against("small [red]", "ms_1") == "0.50x" and table.gain("small [red]", "ms_1") < 0
    assert table.against("small [red]", "bytes") == "1.00x" and table.gain("small [red]", "bytes") == 0
    assert table.against("small [red]", "top1") == "−0.4" and table.gain("small [red]", "top1") < 0
    assert all(table.against("dense", column) == "" for column in table.columns)


def test_what_was_not_measured_is_absent_and_never_zero():
    table = table_of(ROWS)
    assert table.cell("dense", "memory") == "–" and table.cell("small [red]", "nonzeros") == "0"
    assert table.ratio("small [red]", "memory") is None and table.ratio("small [red]", "nonzeros") is None


def test_json_round_trip():
    table = table_of(ROWS, ["Peak memory of dense was not measured."])
    assert Table.from_json(table.to_json()) == table


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": {"a": {"b": "c"}}, "columns": {}, "notes": []}', '{"rows": 1'])
def test_another_text_is_unreadable(text):
    with pytest.raises(Unreadable):
        Table.from_json(text)


def test_six_models_fit_into_a_hundred_and_twenty_columns():
    table = table_of({f"model {number}": {**ROWS["dense"], "macs": 4e7, "memory": 2e6} for number in range(6)}, ["A note [bold]."])
    out = io.StringIO()
    rich.console.Console(file=out, width=120).print(table.rich())
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 120 and "…" not in out.getvalue()
    assert any("97.2 %" in line for line in lines)


def test_names_are_text_and_not_markup():
    out = io.StringIO()
    rich.console.Console(file=out, width=100).print(table_of(ROWS, ["why [bold]not"]).rich())
    assert "small [red]" in out.getvalue() and "why [bold]not" in out.getvalue()


def test_the_plain_text_has_a_line_per_figure():
    lines = str(table_of(ROWS)).splitlines()
    assert len(lines) == 1 + len(table_of(ROWS).columns)
    assert "small [red]" in lines[0] and any(line.startswith("MACs") for line in lines) is False
