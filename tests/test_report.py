"""The story against slow counting; the page in a real browser: drawn, quiet, narrow enough, readable, and asking nobody for anything."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

import browser
from secateur.errors import BadInput, Unreadable
from secateur.plan import Plan
from secateur.report import Story, figures, page, render, story_of, write_report
from secateur.sure import Stability
from secateur.table import table_of

HOSTILE = '<script>document.title="taken"</script><img src=x onerror=alert(1)>'
CHROMIUM = pytest.mark.skipif(browser.PROGRAM is None, reason="there is no chromium here (Debian: apt-get install chromium)")


@dataclass
class Measured:
    global_: dict[str, Tensor]
    local: dict[str, Tensor]
    keys: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    error: dict[str, Tensor] | None = None
    stability: Stability | None = None
    criterion: str = "taylor"
    contexts: str = "class"
    count: int = 3
    samples: int = 96


def a_plan(keep: dict[str, Tensor], **made: object) -> Plan:
    structure = "channels" if all(mask.dim() == 1 for mask in keep.values()) else "weights"
    return Plan(structure, keep, {}, {}, {}, "", {}, made, approximate={next(iter(keep)): "LayerNorm"}, frozen={"head": "an output"})


def a_story(shapes: dict[str, tuple[int, ...]], seed: int = 0, scope: str = "global", **more: object) -> tuple[Story, Plan, Measured, dict]:
    generator = torch.Generator().manual_seed(seed)

    def random() -> dict[str, Tensor]:
        return {name: torch.rand(shape, generator=generator) ** 4 for name, shape in shapes.items()}

    measured = Measured(
        random(), random(), {str(label): random() for label in range(3)}, error=random(), stability=Stability(0.5, 0.81, 0.93)
    )
    scores = {name: (measured.global_[name] + measured.local[name]) / 2 for name in shapes}
    keep = {name: value >= value.median() for name, value in scores.items()}
    if scope == "global":
        cut = torch.cat([value.flatten() for value in scores.values()]).median()
        keep = {name: value >= cut for name, value in scores.items()}
    plan = a_plan(keep, scope=scope, criterion="taylor", threshold=None)
    return story_of(plan, measured, scores, local=0.5, **more), plan, measured, scores


def full(shapes: dict[str, tuple[int, ...]], name: str = "small") -> Story:
    rows = {
        "dense": {"top1": 0.972, "worst_class": 0.91, "macs": 4e7, "bytes": 1.1e6, "nonzeros": 27e4, "ms_1": 0.5, "ms_1_p95": 0.6},
        name: {"top1": 0.968, "worst_class": 0.9, "macs": 2e7, "bytes": 5e5, "nonzeros": 13e4, "ms_1": 0.3, "ms_1_p95": 0.4},
    }
    points = [{"amount": amount / 10, "top1": 1 - (amount / 10) ** 3, "worst_class": 1 - (amount / 10) ** 2} for amount in range(1, 10)]
    return a_story(
        shapes,
        table=table_of(rows, [f"Peak memory of {name} was not measured."]),
        curve={name: points, "random": [{**point, "top1": point["top1"] ** 2} for point in points]},
        history=[{"epoch": epoch, "loss": 1 / epoch, "top1": 1 - 0.1 / epoch, "lr": 0.1} for epoch in range(1, 6)],
        machine=f"2 cores, {name}",
        notes=[name],
    )[0]


SHAPES = {
    "stem": (16,),
    "layer1.0.conv1": (40,),
    "a.very.long.name.of.a.layer.that.a.framework.made.up.block_17.project_conv.weight": (200,),
}


def ranked(values: dict[str, Tensor], names: list[str]) -> list[tuple[float, str, int]]:
    """All units in order of their score."""
    return sorted((float(score), name, index) for name in names for index, score in enumerate(values[name].flatten()))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_protected_are_those_that_global_alone_would_cut(scope):
    story, plan, measured, _ = a_story(SHAPES, seed=1, scope=scope)
    pools = [[name] for name in SHAPES] if scope == "layer" else [list(SHAPES)]
    protected, yielded = dict.fromkeys(SHAPES, 0), dict.fromkeys(SHAPES, 0)
    for pool in pools:
        gone = {(name, index) for name in pool for index, kept in enumerate(plan.keep[name].tolist()) if not kept}
        alone = {(name, index) for _, name, index in ranked(measured.global_, pool)[: len(gone)]}
        for name, _ in alone - gone:
            protected[name] += 1
        for name, _ in gone - alone:
            yielded[name] += 1
    assert sum(protected.values()) > 0
    assert {layer.name: layer.protected for layer in story.layers} == protected
    assert {layer.name: layer.yielded for layer in story.layers} == yielded
    assert {layer.name: (layer.size - layer.kept, layer.size) for layer in story.layers} == plan.removed()


def test_scores_of_the_first_of_several_rounds_have_no_cut():
    at_once, plan, measured, scores = a_story(SHAPES)
    story = story_of(plan.note(cut=0.5), measured, scores, local=0.5, by_rounds=True)
    assert {group.cut for group in story.reasons} == {None} and "cut" not in story.made
    assert not any(layer.protected or layer.yielded for layer in story.layers)
    assert [[unit.rank for unit in group.units] for group in story.reasons] == [
        [unit.rank for unit in group.units] for group in at_once.reasons
    ]
    assert 'class="cut' in render(at_once) and 'class="cut' not in render(story)
    assert "the cut is the highest" not in render(story) and "no one cut" in render(story)


def test_a_unit_is_told_with_its_ranks_and_who_needs_it():
    story, plan, measured, scores = a_story(SHAPES)
    names = list(SHAPES)
    orders = [[(name, index) for _, name, index in ranked(values, names)] for values in (scores, measured.global_, measured.local)]
    cut = max(score for score, name, index in ranked(scores, names) if not plan.keep[name][index])
    for group in story.reasons:
        assert group.cut == pytest.approx(cut) and group.of == 256
        for unit in group.units:
            place = (group.group, int(unit.index))
            assert [unit.rank, unit.global_rank, unit.local_rank] == [order.index(place) + 1 for order in orders]
            assert unit.kept == bool(plan.keep[place[0]][place[1]])
            assert unit.needs == max(measured.keys, key=lambda key: measured.keys[key][place[0]][place[1]])


def test_shares_sum_to_one_and_are_the_groups_sums():
    story, _, measured, _ = a_story(SHAPES)
    total = sum(float(value.sum()) for value in measured.local.values())
    assert sum(layer.global_share for layer in story.layers) == pytest.approx(1)
    for layer in story.layers:
        assert layer.local_share == pytest.approx(float(measured.local[layer.name].sum()) / total, rel=1e-5)


def test_large_groups_list_the_units_nearest_the_cut_and_say_so():
    story, plan, _, scores = a_story({"big": (200,), "weight": (9, 50)})
    for group in story.reasons:
        values, keep = scores[group.group].flatten(), plan.keep[group.group].flatten()
        removed = [unit.score for unit in group.units if not unit.kept]
        kept = [unit.score for unit in group.units if unit.kept]
        assert removed == pytest.approx(sorted(values[~keep].tolist())[-len(removed) :])
        assert kept == pytest.approx(sorted(values[keep].tolist())[: len(kept)])
        assert f"{values.numel():,} units" in group.listed
        assert sum(removed + kept for _, _, removed, kept in group.histogram) + group.zeros == values.numel()
        assert sum(kept for _, _, _, kept in group.histogram) == int(keep.sum())
    assert story.reasons[1].units[0].index.count(",") == 1


def test_a_plan_alone_has_a_story():
    keep = {"a": torch.tensor([True, False])}
    story = story_of(a_plan(keep))
    assert story.layers[0].kept == 1 and story.reasons == () and story.layers[0].global_share is None
    assert "What was kept" in render(story) and "Why units went" not in render(story)


def test_scores_of_zero_and_nothing_removed():
    keep = {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)}
    scores = {"a": torch.zeros(3), "b": torch.full((2,), 0.5)}
    story = story_of(a_plan(keep), Measured(scores, scores), scores)
    assert [(group.cut, group.zeros) for group in story.reasons] == [(None, 3), (None, 0)]
    assert render(story)


def test_json_round_trip():
    story = full(SHAPES)
    again = Story.from_json(story.to_json())
    assert again == story and render(again) == render(story)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"title": "a", "table": {}}', "[" * 100_000, '{"title": "a", "table": 3}'])
def test_another_text_is_unreadable(text):
    with pytest.raises(Unreadable):
        Story.from_json(text)


def places(value: object) -> Iterator[tuple[dict | list, object]]:
    """Every (container, key) in nested dicts and lists."""
    for key, item in list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []:
        yield value, key
        yield from places(item)


def test_a_story_with_anything_in_the_wrong_place_is_unreadable_or_a_story():
    told = json.loads(full({"a": (3,), "b": (4,)}).to_json())
    types = (3, -1, 0.5, 10**400, float("nan"), "x", True, None, [], {}, [[1]], {"x": 1})
    told["reasons"][0]["histogram"], before = 3, told["reasons"][0]["histogram"]
    with pytest.raises(Unreadable, match=r"reasons\[0\]\.histogram is '3'"):
        Story.from_json(json.dumps(told))
    told["reasons"][0]["histogram"] = before
    number = 0
    for number, (inside, key) in enumerate(places(told)):
        right = inside[key]
        for wrong in [types[number % len(types)], types[(number // len(types) + 1) % len(types)]]:
            inside[key] = wrong
            with suppress(Unreadable):
                assert isinstance(Story.from_json(json.dumps(told)), Story)
        inside[key] = right
    assert number > 500 and Story.from_json(json.dumps(told))


def test_the_headline_has_the_numbers():
    assert page.headline(full(SHAPES)) == "2.0× fewer MACs, 2.2× smaller file, 0.4 points of top-1 lost"
    masked = Story("t", table_of({"dense": {"top1": 0.9, "nonzeros": 100.0}, "m": {"top1": 0.9, "nonzeros": 10.0}}), "m")
    assert page.headline(masked) == "10.0× fewer non-zero weights, same top-1"
    assert page.headline(Story("title", table_of({}))) == "title"
    dense = {"macs": 1000.0, "bytes": 1000.0, "memory": 1000.0, "top1": 0.9}
    little = Story("t", table_of({"dense": dense, "m": {"macs": 980.0, "bytes": 909.0, "memory": 950.0, "top1": 0.9}}), "m")
    assert page.headline(little) == "1.1× smaller file, 1.05× less memory, same top-1"  # 2 % fewer MACs are not told


def test_units_are_called_what_they_are():
    _, plan, measured, scores = a_story({"layers": (40,)})
    called = {"channels": "channels", "weights": "connections", "layers": "layers", "2x2": "blocks", "2:4": "connections"}
    for structure, word in called.items():
        told = story_of(replace(plan, structure=structure), measured, scores)
        assert f" of 40 {word} stay." in render(told)
        assert len(told.reasons[0].units) == (40 if structure in ("channels", "layers") else 12)


def test_where_the_structure_says_how_much_stays_there_is_no_one_cut():
    _, plan, measured, scores = a_story({"w": (4, 8)})
    told = story_of(replace(plan, structure="2:4"), measured, scores)
    assert told.reasons[0].cut is None and not any(layer.protected or layer.yielded for layer in told.layers)
    assert "of every 4 that follow each other the 2 best stay, so there is no one cut" in render(told)


def test_charts_of_accuracy_say_which_data_they_show():
    story = replace(full(SHAPES), curves_on="validation split")
    assert [chart.title for chart in page.charts(Story.from_json(story.to_json()))] == [
        f"{what} against the amount removed, on the validation split" for what in ("top-1", "worst class")
    ]
    tuned = replace(story, history=({"loss": 1.0, "validation_top1": 0.5}, {"loss": 0.5, "validation_top1": 0.6}))
    assert [chart.title for chart in page.tuning(tuned)] == [
        f"{what} by epoch of fine-tuning" for what in ("training loss", "validation top-1")
    ]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.34), (5, 5), (-3, 1e6), (0.1, 0.1000001), (1, 5)])
def test_ticks_are_few_round_and_around(low, high):
    ticks = figures.ticks(low, high)
    assert 2 <= len(ticks) <= 8 and ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    steps = [b - a for a, b in pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


def test_a_chart_keeps_order_and_stays_inside():
    drawn = figures.chart({"a": [{"x": 0.9, "y": 0.1}, {"x": 0.1, "y": 0.9}], "none": [{"x": 1.0}]}, "x", "y", "t", ("x", "y"), level=0.95)
    (series,) = drawn.series
    left, right = series.marks
    assert left.x < right.x and left.y < right.y  # more is higher, and y grows downwards
    assert all(0 <= mark.x <= figures.WIDTH and 0 <= mark.y <= figures.HEIGHT for mark in series.marks)
    assert drawn.level[0] < left.y


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_the_page_asks_nobody_and_names_are_text():
    hostile = {**SHAPES, HOSTILE: (8,)}
    text = render(full(hostile, HOSTILE))
    tags = Tags(text)
    assert tags.tags.count("script") == 1 and not {"img", "link", "iframe", "object"} & set(tags.tags)
    assert not [name for name, _ in tags.attributes if name in ("src", "href") or name.startswith("on")]
    assert "url(" not in text and "@import" not in text and not re.search(r"https?://", text)


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(path, full(SHAPES))
    before = path.read_text()
    assert before.endswith("</html>") or before.endswith("</html>\n")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(BadInput, match="No space left"):
        write_report(path, Story("another", table_of({})))
    assert path.read_text() == before and [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(BadInput, match="cannot be written"):
        write_report(tmp_path / "nowhere" / "report.html", full(SHAPES))


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.1."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_marks_have_contrast(theme):
    style = (Path(page.__file__).parent / "page.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#\w{6})", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[theme]))
    for text in ("ink", "soft", "good", "bad", "local"):
        for ground in ("paper", "panel"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for mark in ("keep", "global", "local", "s0", "s1", "s2", "s3", "s4", "s5"):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


VISIBLE = (
    "[...document.querySelectorAll('{}')].filter(e => {{ const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0 }}).length"
)


@CHROMIUM
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_in_a_browser(chromium, tmp_path, width, dark):
    path = tmp_path / "report.html"
    write_report(path, full({**SHAPES, HOSTILE: (8,)}, HOSTILE))
    chromium.open(path, width, dark)
    assert chromium.complaints() == []
    assert chromium.requests() == [path.as_uri()]
    assert chromium.value("innerWidth") == width
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.value("document.title") == "What was pruned, and what it cost – Secateur"
    assert chromium.value(VISIBLE.format("svg.chart")) == 4
    assert chromium.value(VISIBLE.format(".point")) == 9 * 2 * 2 + 5 * 2
    assert chromium.value(VISIBLE.format("#kept .track i")) >= 3
    assert chromium.value(VISIBLE.format("#sensitivity .track i")) == 8
    assert chromium.value(VISIBLE.format("#why .bin .stay")) >= 1
    ground = chromium.value("getComputedStyle(document.body).backgroundColor")
    shade = sum(map(int, re.findall(r"\d+", ground)[:3]))
    assert (shade < 200) if dark else (shade > 600)
    boxes = "[...document.querySelectorAll('.scroll')].every(box => box.getBoundingClientRect().right <= innerWidth)"
    assert chromium.value(boxes) is True


@CHROMIUM
def test_a_layer_is_found_by_its_name(chromium, tmp_path):
    write_report(tmp_path / "report.html", full(SHAPES))
    chromium.open(tmp_path / "report.html", 1200)
    assert chromium.value(VISIBLE.format("details")) == 3
    chromium.value("box.value = 'CONV1'; box.dispatchEvent(new Event('input'))")
    assert chromium.value(VISIBLE.format("details")) == 1
    assert chromium.complaints() == []
