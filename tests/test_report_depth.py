"""The sensitivity page against slow counting: the map, the conflicts, what each key lost, how sure, and curves of layers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

import browser
from secateur.conflicts import conflicts
from secateur.plan import Plan
from secateur.report import Story, depth, render, story_of, write_report
from secateur.report.depth import ALL_CELLS, CELLS, KEYS, VITAL, Depth, Lost, depth_of, means
from secateur.report.depth_figures import LEVELS, layer_curves, shades, strip
from secateur.sensitivity import Sensitivity
from secateur.sure import Stability
from secateur.table import Table

SHAPES = {"stem": (16,), "big": (200,), "weight": (9, 50)}
Made = tuple[Plan, Sensitivity, dict[str, Tensor]]


def made(shapes: dict[str, tuple[int, ...]] = SHAPES, keys: int = 3, seed: int = 0) -> Made:
    generator = torch.Generator().manual_seed(seed)

    def random() -> dict[str, Tensor]:
        drawn = {name: torch.rand(shape, generator=generator, dtype=torch.float64) ** 4 for name, shape in shapes.items()}
        total = sum(float(value.sum()) for value in drawn.values())
        return {name: value / total for name, value in drawn.items()}

    by_key = {str(number): random() for number in range(keys)}
    overall = {name: sum(scores[name] for scores in by_key.values()) / keys for name in shapes}
    local = {name: torch.stack([scores[name] for scores in by_key.values()]).amax(0) for name in shapes}
    error = {name: value / 10 for name, value in overall.items()}
    sensitivity = Sensitivity(overall, local, error, by_key, "taylor", "class", keys, 96, error=error, stability=Stability(0.5, 0.8, 0.9))
    cut = torch.cat([value.flatten() for value in local.values()]).median()
    keep = {name: value > cut for name, value in local.items()}
    return Plan("channels", keep, {}, {}, {}, "", {}, {"scope": "global"}), sensitivity, overall


def everything(values: dict[str, Tensor]) -> list[float]:
    return sorted(float(value) for part in values.values() for value in part.flatten())


def test_the_map_has_every_unit_at_its_place_among_all() -> None:
    plan, sensitivity, overall = made()
    rows = {row.name: row for row in depth_of(plan.keep, sensitivity).rows}
    assert list(rows) == list(SHAPES)
    row, mask = rows["stem"], plan.keep["stem"]
    assert list(row.units) == sorted(range(16), key=lambda unit: float(overall["stem"][unit]))
    for values, told in ((sensitivity.global_, row.overall), (sensitivity.local, row.local)):
        ordered = everything(values)
        for unit, percent in zip(row.units, told):
            lower = sum(other < float(values["stem"][unit]) for other in ordered)
            assert abs(percent - 100 * lower / len(ordered)) <= 1
    assert [gone == 100 for gone in row.gone] == [not bool(mask[unit]) for unit in row.units]
    assert (row.size, row.kept) == (16, int(mask.sum()))
    assert all(low <= high for low, high in pairwise(row.overall))


def test_large_layers_have_few_cells_that_are_means() -> None:
    plan, sensitivity, _ = made()
    for row in depth_of(plan.keep, sensitivity).rows[1:]:
        assert len(row.overall) == len(row.local) == len(row.gone) == CELLS and row.units == ()
        assert row.kept == int(plan.keep[row.name].sum())
        assert sum(row.gone) / CELLS == pytest.approx(100 * (1 - row.kept / row.size), abs=2)
    assert means(torch.tensor([0, 100, 50, 70, 10]), 2) == (50, 40)


def test_the_page_does_not_grow_with_the_network() -> None:
    plan, sensitivity, _ = made({f"layer{number}": (300,) for number in range(400)}, keys=60)
    depth = depth_of(plan.keep, sensitivity)
    assert sum(len(row.overall) for row in depth.rows) <= ALL_CELLS
    assert len(depth.vital) <= VITAL and len(depth.lost) == KEYS and depth.keys == 60
    assert f"{KEYS} of 60" in render(story_of(plan, sensitivity))


def test_what_would_take_too_long_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, sensitivity, _ = made(keys=12, seed=2)
    whole = depth_of(plan.keep, sensitivity)
    assert whole.vital and whole.note == ""
    monkeypatch.setattr(depth, "SORTED", 666 * 13 - 1)
    assert depth_of(plan.keep, sensitivity) == replace(whole, vital=(), note=depth.MANY)
    monkeypatch.setattr(depth, "MOST", 665)
    bare = depth_of(plan.keep, sensitivity)
    assert bare.rows == () and bare.lost == () and bare.sure == replace(whole.sure, near=None)  # type: ignore[type-var]
    assert depth.MANY in render(story_of(plan, sensitivity))


def test_conflicts_are_those_at_the_amount_that_was_removed() -> None:
    plan, sensitivity, _ = made(keys=12, seed=2)
    gone = sum(removed for removed, _ in plan.removed().values()) / sum(size for _, size in plan.removed().values())
    found = conflicts(sensitivity.global_, sensitivity.local, sensitivity.keys, gone, limit=VITAL)
    told = depth_of(plan.keep, sensitivity).vital
    assert len(told) == len(found) > 0
    for one, conflict in zip(told, found):
        index = torch.unravel_index(torch.tensor(conflict.unit), SHAPES[conflict.group])
        assert one.unit == f"{conflict.group}:{','.join(str(int(place)) for place in index)}" and one.key == conflict.key
        assert one.kept == bool(plan.keep[conflict.group][index])
        assert (one.local_share, one.global_rank) == (conflict.local_share, conflict.global_rank)
    assert all(one.kept for one in told)  # since the plan went by local sensitivity
    edge = sorted(everything(sensitivity.global_))[round(gone * 666)]
    by_global = {name: values >= edge for name, values in sensitivity.global_.items()}
    assert not any(one.kept for one in depth_of(by_global, sensitivity).vital)


def test_what_each_key_lost_is_its_share_of_what_was_removed() -> None:
    plan, sensitivity, _ = made(seed=3)
    depth = depth_of(plan.keep, sensitivity)
    shares = {key: sum(float(value[~plan.keep[name]].sum()) for name, value in scores.items()) for key, scores in sensitivity.keys.items()}
    assert {one.key: one.share for one in depth.lost} == pytest.approx(shares)
    assert [one.share for one in depth.lost] == pytest.approx(sorted(shares.values(), reverse=True))
    assert sum(one.first for one in depth.lost) == 16 + 200 + 450
    assert depth.mean == pytest.approx(sum(shares.values()) / 3)
    needs = [key for name in SHAPES for key in sensitivity.needs(name)]
    assert {one.key: one.first for one in depth.lost} == {key: needs.count(key) for key in sensitivity.keys}


@pytest.mark.parametrize(("shares", "widths", "scale"), [((0.021, 0.01), (21, 10), "10"), ((0.4, 0.1), (100, 25), "40")])
def test_the_bars_of_what_was_lost_have_a_scale_that_is_said(shares: tuple[float, ...], widths: tuple[int, ...], scale: str) -> None:
    """From 0 to 10 %, or to the largest: two hundredths that are gone look like that."""
    depth = Depth(lost=tuple(Lost(str(number), share, 1) for number, share in enumerate(shares)), keys=len(shares))
    text = render(Story("t", Table({}, {}), depth=depth))
    part = text[text.index('<section id="lost">') :]
    part = part[: part.index("</section>")]
    assert [float(width) for width in re.findall(r'class="local" style="width: ([\d.]+)%"', part)] == pytest.approx(list(widths))
    said = f"Bars are drawn from 0 to {scale}&nbsp;%" + (", the largest." if scale != "10" else ".")
    assert said in part and f"<span>0</span><span>{scale}&nbsp;%</span>" in part


def test_how_sure_it_is_counts_the_units_near_the_edge() -> None:
    plan, sensitivity, overall = made(seed=4)
    sure = depth_of(plan.keep, sensitivity).sure
    gone = sum(removed for removed, _ in plan.removed().values())
    ordered = everything(overall)
    edge = (ordered[gone - 1] + ordered[gone]) / 2
    assert sure is not None and sure.near == sum(abs(value - edge) < value / 10 for value in ordered)
    assert (sure.samples, sure.count, sure.agreement, sure.correlation) == (96, 3, 0.8, 0.9)
    text = render(story_of(plan, sensitivity))
    assert "agree on 80 % of what would leave at 50 % (33 % by chance)" in text
    bare = replace(sensitivity, error=None, stability=None)
    assert "its error" in render(story_of(plan, bare)) and "near the edge" not in render(story_of(plan, bare))
    assert "its error" not in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "no context came in two pieces"),
        ({"keys": {}, "contexts": "batch", "count": 1}, "there was one context, or the criterion makes one score of all the data"),
        ({"keys": {}, "contexts": "batch", "count": 1, "samples": 0}, "the criterion needs no data"),
    ],
)
def test_why_the_error_is_not_known_is_said(changes: dict[str, object], says: str) -> None:
    plan, sensitivity, _ = made()
    text = render(story_of(plan, replace(sensitivity, error=None, stability=None, **changes)))  # type: ignore[arg-type]
    assert f"is not known: {says}" in text


def test_without_keys_it_says_some_of_the_data() -> None:
    plan, sensitivity, _ = made()
    depth = depth_of(plan.keep, replace(sensitivity, keys={}, contexts="batch"))
    assert depth.lost == () and {one.key for one in depth.vital} <= {""}
    text = render(story_of(plan, replace(sensitivity, keys={}, contexts="batch")))
    assert "needed by" not in text and 'id="lost"' not in text and 'id="map"' in text


def test_nothing_removed_and_all_alike() -> None:
    scores = {"a": torch.full((4,), 0.25)}
    keep = {"a": torch.ones(4, dtype=torch.bool)}
    depth = depth_of(keep, Sensitivity(scores, scores, scores, {"0": scores}))
    assert depth.vital == () and depth.mean == 0 and depth.rows[0].gone == (0,) * 4 and depth.rows[0].overall == (0,) * 4
    assert render(story_of(Plan("channels", keep, {}, {}, {}, "", {}), Sensitivity(scores, scores, scores)))


def test_an_older_story_still_renders() -> None:
    plan, sensitivity, scores = made()
    story = story_of(plan, sensitivity, scores)
    told = {key: value for key, value in json.loads(story.to_json()).items() if key not in ("depth", "layer_curves")}
    again = Story.from_json(json.dumps(told))
    assert again.depth is None and 'id="map"' not in render(again) and 'id="sensitivity"' in render(again)
    assert Story.from_json(story.to_json()) == story


def area(path: str) -> list[tuple[int, int]]:
    """(start, cells) of the rectangles of a path."""
    return [(int(part.split()[0]), int(part.split("h")[1].split("v")[0])) for part in path.split("M")[1:]]


def test_shades_cover_every_cell_once_and_the_strip_those_that_went() -> None:
    percents = [0, 3, 12, 13, 99, 100, 50, 50, 0]
    drawn = shades(percents)
    covered = sorted((start + step, shade.level) for shade in drawn for start, count in area(shade.path) for step in range(count))
    assert covered == [(place, min(LEVELS - 1, percent * LEVELS // 100)) for place, percent in enumerate(percents)]
    assert [shade.level for shade in drawn] == sorted({level for _, level in covered})
    assert area(strip([0, 100, 100, 40, 0, 1])) == [(1, 2), (3, 1), (5, 1)]


CURVES = {
    "steady": [{"amount": 0.0, "top1": 0.9}, {"amount": 0.25, "top1": 0.9}, {"amount": 0.5, "top1": 0.88}],
    "steep": [{"amount": 0.0, "top1": 0.9}, {"amount": 0.5, "top1": 0.4}],
}


def test_layers_alone_are_told_the_most_sensitive_first() -> None:
    told = layer_curves(CURVES)
    assert told is not None and list(told.rows) == ["steep", "steady"] and told.amounts == ("25 %", "50 %") and told.level == 0.9
    missing, worst = told.rows["steep"]
    assert missing is None and worst is not None and (worst.said, worst.depth) == ("−50.0", 1.0)
    assert [fall.said for fall in told.rows["steady"] if fall] == ["0", "−2.0"]
    loss = layer_curves({"a": [{"amount": 0.0, "loss": 1.0}, {"amount": 0.5, "loss": 3.5}]})
    assert loss is not None and loss.rows["a"][0] is not None and loss.rows["a"][0].said == "+2.5" and not loss.points
    assert layer_curves({}) is None and layer_curves({"a": [{"amount": 0.5, "top1": 0.3}]}) is None


def test_the_page_shows_layers_alone() -> None:
    story = Story("t", Table({}, {}), layer_curves={name: tuple(points) for name, points in CURVES.items()})
    text = render(Story.from_json(story.to_json()))
    assert 'id="alone"' in text and "−50.0" in text and text.count('class="chart"') == 1
    assert 'id="alone"' not in render(Story("t", Table({}, {})))
    assert " split" not in text  # the story does not tell which data it was
    said = render(replace(story, curves_on="validation split"))
    assert "when one layer alone loses units, on the validation split</h3>" in said


def test_units_are_ranked_as_the_scope_made_them() -> None:
    plan, sensitivity, scores = made()
    turned = story_of(replace(plan, made={"scope": "ranks"}), sensitivity, scores, scoped=lambda values: {n: -v for n, v in values.items()})
    usual = story_of(plan, sensitivity, scores, scoped=lambda values: {n: -v for n, v in values.items()})  # the global scope is as scored
    first, again = ({unit.index: unit for unit in story.reasons[0].units} for story in (usual, turned))
    assert first.keys() == again.keys() and len(first) == 16
    for index, unit in first.items():
        assert again[index].score == -unit.score and again[index].rank == 667 - unit.rank
        assert again[index].global_rank == 667 - (unit.global_rank or 0)


@pytest.mark.skipif(browser.PROGRAM is None, reason="there is no chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [360, 1200])
def test_the_map_in_a_browser(width: int, tmp_path: Path) -> None:
    plan, sensitivity, scores = made({**SHAPES, '"><script>alert(1)</script>': (8,)})
    write_report(tmp_path / "report.html", story_of(plan, sensitivity, scores, layer_curves=CURVES))
    with browser.browser(tmp_path / "profile") as opened:
        opened.open(tmp_path / "report.html", width)
        assert opened.complaints() == [] and opened.requests() == [(tmp_path / "report.html").as_uri()]
        assert opened.value("document.documentElement.scrollWidth") <= width  # type: ignore[operator]
        assert opened.value("document.querySelectorAll('#map .heat').length") == 8
        assert opened.value("Math.min(...[...document.querySelectorAll('.heat')].map(e => e.getBoundingClientRect().width)) > 100")
        row = depth_of(plan.keep, sensitivity).rows[0]
        point = (
            "(() => { const heat = document.querySelector('.heat'), box = heat.getBoundingClientRect();"
            "heat.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + (CELL + 0.5) / 16 * box.width}));"
            "return document.getElementById('at').textContent })()"
        )
        for cell in (0, 7, 15):
            fate = "removed" if row.gone[cell] else "kept"
            ranks = f"{row.overall[cell]} % of all units (global), {row.local[cell]} % (local)"
            said = f"stem:{row.units[cell]}: needed more than {ranks}; {fate}"
            assert opened.value(point.replace("CELL", str(cell))) == said
        assert opened.complaints() == []
