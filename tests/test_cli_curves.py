"""`secateur curves`: the file, the page, and the report that shows them; a second call measures only what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("typer")

import secateur
from secateur import Curves, cli_curves
from secateur.cli import run
from secateur.frontends.models import build_of
from test_cli import NET, pruning


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file(build_of("net.py:build")().state_dict(), tmp_path / "w.safetensors")
    return tmp_path


def curving(*more: str, out: str = "c.json", amounts: str = "0.25,0.5") -> list[str]:
    usual = ["curves", "net.py:build", "--weights", "w.safetensors", "--data", "net.py:data", "--out", out]
    return [*usual, "--amounts", amounts, "--criterion", "magnitude", *more]


def test_the_file_the_page_and_the_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(curving()) == 0
    said = capsys.readouterr().out
    assert "25 %" in said and "c.html" in said
    made = Curves.from_json((here / "c.json").read_text())
    assert {name: list(points) for name, points in made.points.items()} == {"0": [0.25, 0.5], "3": [0.25, 0.5]}
    assert 'id="alone"' in (here / "c.html").read_text() and "on the validation split</h3>" in (here / "c.html").read_text()
    assert run(pruning(quiet=True)) == 0
    before = (here / "out" / "report.html").read_text()
    assert 'id="alone"' not in before
    assert run(["report", "out", "--curves", "c.json"]) == 0
    shown = (here / "out" / "report.html").read_text()
    assert 'id="alone"' in shown and "on the validation split</h3>" in shown
    told = json.loads((here / "out" / "report.json").read_text())["layer_curves"]
    assert [point["amount"] for point in told["0"]] == [0, 0.25, 0.5]
    assert told["3"][1]["top1"] == made.points["3"][0.25]["top1"] and told["3"][0]["top1"] == made.dense["top1"]
    assert run(["report", "out"]) == 0 and (here / "out" / "report.html").read_text() == shown  # from now on


def test_what_is_there_is_not_measured_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(curving("--groups", "3", "--quiet")) == 0
    times: list[tuple[int, int | None]] = []
    real = cli_curves.curves
    monkeypatch.setattr(
        cli_curves, "curves", lambda *a, **k: real(*a, **{**k, "progress": lambda done, total: times.append((done, total))})
    )
    assert run(curving("--quiet")) == 0
    assert times[0] == (2, 4)  # of two groups at two amounts
    whole = (here / "c.json").read_bytes()
    assert run(curving("--quiet")) == 0 and (here / "c.json").read_bytes() == whole


def test_scores_may_come_from_a_file(here: Path) -> None:
    measure = ["measure", "net.py:build", "--weights", "w.safetensors", "--data", "net.py:data", "--out", "s", "--quiet"]
    assert run([*measure, "--criterion", "magnitude"]) == 0
    assert run(curving("--quiet")) == run(curving("--quiet", "--sensitivity", "s", out="d.json")) == 0
    assert (here / "c.json").read_text() == (here / "d.json").read_text()


def test_a_plan_by_curves_is_that_of_the_library(here: Path) -> None:
    """The same solver, scores and curves; the budget is met; the folder explains itself."""
    same = ["--criterion", "fisher", "--contexts", "class", "--multiple", "2"]
    words = ["curves", "net.py:build", "--weights", "w.safetensors", "--data", "net.py:data", "--out", "c.json", "--quiet", *same]
    assert run(words) == 0
    options = {"criterion": "fisher", "contexts": "class", "multiple": 2, "curves": "c.json", "quiet": True}
    assert run(pruning(**options, amount=0.3, of="macs")) == 0
    plan, scores = secateur.read_plan("out"), load_file("out/scores.safetensors")
    made = Curves.from_json((here / "c.json").read_text())
    structure = secateur.channels(build_of("net.py:build")(), torch.randn(2, 3, 32, 32))
    own = secateur.select_by_curves(scores, structure, made.losses("top1"), 0.3, "macs", multiple=2)
    assert all(torch.equal(plan.keep[name], own.keep[name]) for name in own.keep) and plan.made["amounts"] == own.made["amounts"]
    assert plan.cost["macs"][1] <= 0.7 * plan.cost["macs"][0] and plan.made["scope"] == "each" and plan.made["curves"] == "c.json"
    assert (plan.made["criterion"], plan.made["contexts"], plan.made["amount"]) == ("fisher", "class", 0.3)
    assert run(["explain", "out", "--unit", "0:1"]) == 0
    assert run(pruning(**options, amount=None, budget="macs=1.0M", out="b")) == 0
    assert secateur.read_plan("b").cost["macs"][1] <= 1e6
    assert run(pruning(**options, amount=None, drop=100, of="macs", out="d")) == 0
    assert len(secateur.read_plan("d").made["trials"]) == 7  # type: ignore[arg-type]


def test_curves_of_a_graph_and_of_kinds_of_units(here: Path) -> None:
    assert run(curving("--quiet", "--as-graph", "--units", "channel", "--exact")) == 0
    assert run(pruning(criterion="magnitude", as_graph=True, units="channel", exact=True, curves="c.json", amount=0.2, quiet=True)) == 0
    assert secateur.read_plan("out").made["as_graph"] is True


def test_curves_that_prune_cannot_use_are_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(curving("--quiet")) == 0
    cases: list[tuple[dict[str, object], str]] = [
        ({"criterion": "fisher"}, "of other scores. Give both commands the same --sensitivity"),
        ({"multiple": 2}, "and --multiple"),
        ({"scope": "layer"}, "Leave --scope out"),
        ({"amount": None, "threshold": 0.1}, "Leave --threshold out"),
        ({"schedule": "cubic"}, "Leave --schedule out"),
        ({"curves": "w.safetensors"}, "w.safetensors"),
        ({"curves": "nowhere"}, "nowhere cannot be read"),
        ({"amount": None, "budget": "macs=1M, 5 KB"}, "The solver meets one budget"),
    ]
    for options, fact in cases:
        capsys.readouterr()
        assert run(pruning(**{"criterion": "magnitude", "curves": "c.json", "quiet": True, **options})) == 2
        said = capsys.readouterr().err
        assert fact in said and said.count("\n") == 1 and not (here / "out").exists()


BAD = {
    "amounts that are none": (curving(amounts="0.5,x"), "fractions in 0..1"),
    "amounts of nothing": (curving(amounts="0"), "fractions in 0..1"),
    "no such group": (curving("--groups", "9"), "No group is called 9"),
    "a file that is none": (curving("--sensitivity", "w.safetensors"), "w.safetensors"),
    "no folder": (curving(out="no/c.json"), "does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.iterdir())
    words, fact = BAD[case]
    assert run(words) == 2
    said = capsys.readouterr().err
    assert fact in said and said.count("\n") == 1 and [path for path in sorted(here.iterdir()) if path.name != "__pycache__"] == before


def test_a_file_that_was_cut_off_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(curving("--quiet")) == 0
    whole = (here / "c.json").read_text()
    (here / "c.json").write_text(whole[: len(whole) // 2])
    capsys.readouterr()
    assert run(curving("--quiet")) == 2
    assert "c.json has no curves of secateur, or not all (" in (said := capsys.readouterr().err) and "Delete it and measure again" in said
    (here / "c.json").unlink()
    assert run(curving("--quiet")) == 0 and (here / "c.json").read_text() == whole


def test_curves_that_are_none_leave_the_report_as_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(pruning(quiet=True)) == 0
    before = (here / "out" / "report.json").read_bytes(), (here / "out" / "report.html").read_bytes()
    for name in ("w.safetensors", "nowhere"):
        assert run(["report", "out", "--curves", name]) == 2
        assert name in capsys.readouterr().err or name == "w.safetensors"
    assert before == ((here / "out" / "report.json").read_bytes(), (here / "out" / "report.html").read_bytes())


def test_curves_of_other_units_are_not_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of another structure, of groups that the plan has not, and (from files that do not tell their structure) of names alone."""
    assert run(curving("--quiet")) == 0
    assert run(curving("--quiet", "--structure", "weights", "--groups", "0.*", out="w.json", amounts="0.5")) == 0
    assert run(pruning(quiet=True)) == run(pruning(quiet=True, structure="weights", out="zeros")) == 0
    told = json.loads((here / "c.json").read_text())
    (here / "old.json").write_text(json.dumps({name: value for name, value in told.items() if name != "structure"}))
    (here / "other.json").write_text(json.dumps({**told, "points": {"9": told["points"]["0"]}}))
    before = {path: path.read_bytes() for path in here.glob("*/report.*")}
    for folder, file, fact in (
        ("zeros", "c.json", "has curves of channels, but the groups of the plan in zeros are of weights: 0.weight, "),
        ("zeros", "old.json", "has a curve of 0, but the groups of the plan in zeros are of weights"),
        ("out", "w.json", "has curves of weights, but the groups of the plan in out are of channels: 0, 3. Measure"),
        ("out", "other.json", "has a curve of 9"),
    ):
        capsys.readouterr()
        assert run(["report", folder, "--curves", file]) == 2
        said = capsys.readouterr().err
        assert f"{file} {fact}" in said and "--structure" in said and said.count("\n") == 1
    assert before == {path: path.read_bytes() for path in here.glob("*/report.*")}
    assert run(["report", "out", "--curves", "old.json"]) == run(["report", "zeros", "--curves", "w.json"]) == 0
