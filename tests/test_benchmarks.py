"""The benchmarks' own arithmetic, on rows that were never measured: what is run again, what a page says, what happens without the data."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import secateur as sc

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not part of an installed package")
sys.path.append(str(BENCHMARKS))

import cifar  # noqa: E402
import cifar_table  # noqa: E402
import cost  # noqa: E402
import cost_ways  # noqa: E402
import nets  # noqa: E402
import recipes  # noqa: E402
import results  # noqa: E402


def row(case: cifar.Case, repair: str, top1: float, worst: float = 0.5) -> results.Row:
    figures = {"top1": top1, "top5": 0.99, "worst_class": worst, "worst_class_is": 3.0}
    return {**case.settings(repair), **figures, "commit": "abc1234", "machine": "a machine"}


def channel_case(criterion: str, value: float = 1.3, **recipe: object) -> cifar.Case:
    return cifar.Case(56, "channels", cifar.ratio(value), recipes.Recipe(criterion, **recipe))  # type: ignore[arg-type]


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [row(channel_case("taylor"), repair, 0.9) for repair in cifar.REPAIRS]
    path = tmp_path / "deep" / "rows.json"
    assert results.read(path) == []
    results.write(path, rows)
    assert results.read(path) == rows
    assert [file.name for file in path.parent.iterdir()] == ["rows.json"]
    assert len(path.read_text().splitlines()) == len(rows) + 2  # a row a line


def test_every_case_is_there_once_and_tells_its_rows_apart() -> None:
    cases = cifar.all_cases()
    keys = [json.dumps(case.settings(repair)) for case in cases for repair in cifar.repairs_of(case)]
    assert len(set(keys)) == len(keys)
    for net in (20, 56):
        mine = [case for case in cases if case.net == net]
        for structure, budgets in (("channels", [cifar.ratio(value) for value in cifar.RATIOS]), ("connections", list(cifar.CONNECTIONS))):
            for amount in budgets:
                some = [case for case in mine if case.structure == structure and case.amount == amount]
                assert {case.recipe.criterion for case in some} >= set(cifar.CRITERIA)
                assert {case.recipe.local for case in some if case.recipe.contexts == "class"} == set(cifar.LOCALS)


def test_a_run_that_was_stopped_goes_on_behind_its_last_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[cifar.Case, list[str]]] = []
    stop = [2]  # after the first row of which case

    def run(case: cifar.Case, data: Path, wanted: list[str]) -> Iterator[tuple[str, results.Row]]:
        ran.append((case, wanted))
        for repair in wanted:
            yield repair, {"top1": 0.5}
            if len(ran) == stop[-1]:
                raise KeyboardInterrupt

    monkeypatch.setattr(cifar, "run", run)
    cases, path = [channel_case("taylor"), channel_case("fisher"), cifar.Case(56)], tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        cifar.fill(cases, path, tmp_path)
    first, second, third = (cifar.repairs_of(case) for case in cases)
    assert len(results.read(path)) == len(first) + 1
    ran.clear()
    stop.append(0)
    rows = cifar.fill(cases, path, tmp_path)
    assert ran == [(cases[1], list(second[1:])), (cases[2], list(third))]
    assert len(rows) == len(first) + len(second) + len(third)
    cifar.fill(cases, path, tmp_path)
    assert len(ran) == 2  # nothing was left
    monkeypatch.setattr(results, "commit", lambda: "another")
    assert len(cifar.fill(cases, path, tmp_path, fresh=True)) == len(rows)
    assert len(ran) == 2 + len(cases)


def test_only_filters_by_settings() -> None:
    cases = cifar.chosen_by(cifar.all_cases(), ["net=20", "criterion=fisher", "structure=channels", "contexts=batch", "per_mac=False"])
    assert [case.amount for case in cases] == [cifar.ratio(value) for value in cifar.RATIOS]


def test_a_budget_is_named_by_its_ratio() -> None:
    for value in cifar.RATIOS:
        assert cifar_table.ratio(row(channel_case("l1", value), "none", 0.5)) == f"{value:g}x"


def test_the_page_puts_the_best_first_and_straight_before_repaired() -> None:
    rows = [row(cifar.Case(56), "none", 0.9339, 0.85)]
    for criterion, straight, repaired in (("random", 0.1, 0.2), ("l1", 0.3, 0.926), ("fisher", 0.4, 0.7)):
        rows += [row(channel_case(criterion), "none", straight), row(channel_case(criterion), "statistics", repaired)]
    page = cifar_table.page(rows)
    lines = [line for line in page.splitlines() if line.startswith(("| l1 ", "| fisher ", "| random "))]
    assert [line.split(" | ")[0] for line in lines] == ["| l1", "| fisher", "| random"]
    assert lines[0] == "| l1 | 30.00 | 99.00 | 50.00 cat | 92.60 | 99.00 | 50.00 cat |"
    assert "| ≥ 92.50 | 92.60 |" in page
    assert "abc1234" in page and "a machine" in page and "Seed: 0" in page


def test_the_page_counts_how_often_local_sensitivity_helped() -> None:
    rows = []
    for criterion, worst in (("taylor", (0.5, 0.6, 0.4)), ("fisher", (0.5, 0.5, 0.7))):
        for local, value in zip(cifar.LOCALS, worst):
            rows.append(row(channel_case(criterion, contexts="class", local=local), "statistics", 0.9, value))
    page = cifar_table.page(rows)
    assert "Local weight 0.3 against 0, over 2 pairs of a budget and a criterion: the worst class is better in 1, worse in 0, +5.00" in page
    assert "Local weight 0.6 against 0, over 2 pairs of a budget and a criterion: the worst class is better in 1, worse in 1, +5.00" in page


def test_the_cost_page_takes_medians_and_the_ratios_to_the_plain_run_before() -> None:
    seconds, before = (1.1, 2.2, 4.4), (1.0, 2.0, 3.0)
    rows = [{"wall": a, "cpu": 2 * a, "before": b, "before CPU": b} for a, b in zip(seconds, before)]
    times = {"plain": [{"wall": value, "cpu": value} for value in (1.0, 5.0, 2.0)], **{way.what: rows for way in cost.WAYS}}
    beside = {"a loop": {"ratio": 8.04}, "another": {"why": "ImportError: no module"}}
    page = cost.page({
        "nets": {"A net": {"about": "a net of nets", "times": times, "beside": beside}},
        "peaks": {"batch weights taylor": {"64": 100.0 * 2**20, "4096": 101.0 * 2**20}},
        "imports": {"torch": [1.0], "secateur": [0.1, 0.3, 0.2], "secateur, CPU": [0.1]},
        "repeats": 3, "seed": 0, "threads": 2, "commit": "abc1234", "machine": "a machine",
    })  # fmt: skip
    assert "### A net\n\nA net of nets." in page
    assert "| plain forward + backward | 2.00 | 1 | 1 |  |" in page
    assert "| Fisher of every connection, per sample | 2.20 | 1.10 | 2.20 | ≤ 1.5 |" in page
    assert "| a loop | 8.0 |" in page and "| another | ImportError: no module |" in page
    assert "| batch weights taylor | 100 MiB | 101 MiB | 1.010 | ≤ 1.05 |" in page
    assert "| secateur, beyond torch | 0.20 | ≤ 0.3 |" in page


def test_others_are_timed_only_where_they_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    net = cost_ways.net_of("net", "", model, [(torch.randn(6, 3), torch.arange(6) % 2)])
    wrong = {"wrong": lambda *args: {name: 2 * value for name, value in cost_ways.loop(*args).items()}}
    monkeypatch.setattr(cost, "OTHERS", {**cost_ways.OTHERS, **wrong})
    monkeypatch.setattr(cost, "times", lambda ways, repeats: {name: [{"wall": 1.0, "before": 1.0, "cpu": 1.0}] for name in ways})
    found = cost.beside(net)
    assert "ratio" in found["a loop of one backward a sample"] and "ratio" in found["torch.func.vmap(grad)"]
    assert "other numbers" in str(found["wrong"]["why"])
    assert set(net.ways()) == {"plain", *(way.what for way in cost_ways.WAYS)}


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018)])
def test_the_networks_have_as_many_parameters_as_published(depth: int, parameters: int) -> None:
    assert sum(value.numel() for value in nets.resnet(depth).parameters()) == parameters


def test_inner_channels_leave_the_residual_stream_whole() -> None:
    model = nets.resnet(20)
    whole, inner = (recipes.channels_of(model, torch.zeros(1, 3, 32, 32), only) for only in (False, True))
    added = {"layer2.0.conv2", "layer3.0.conv2"}  # by a padding, to the residual stream
    assert set(whole.groups) - set(inner.groups) == {"conv1", *added}
    assert all(name.endswith("conv1") for name in inner.groups) and len(inner.groups) == 9


def test_scores_per_mac_rank_by_the_macs_that_really_leave() -> None:
    model = nets.resnet(20)
    structure = recipes.channels_of(model, torch.zeros(1, 3, 32, 32), inner=True)
    keep = sc.structure.all_kept(structure)
    scores = recipes.per_mac(structure, keep)({name: torch.ones(group.shape) for name, group in structure.groups.items()})
    whole = sc.cost(structure, keep, "macs")
    for name, values in scores.items():
        less = {**keep, name: torch.arange(len(keep[name])) != 3}
        assert 1 / values[3].item() == pytest.approx(whole - sc.cost(structure, less, "macs"), rel=1e-5)


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_plan_in_rounds_meets_the_same_budget(rounds: int) -> None:
    torch.manual_seed(0)
    model = nets.resnet(20)
    structure = recipes.channels_of(model, torch.zeros(1, 3, 32, 32), inner=True)
    data = [(torch.randn(4, 3, 8, 8), torch.arange(4))]
    recipe = recipes.Recipe("taylor", per_mac=True, inner=True, steps=rounds)
    plan = recipes.plan_by(
        recipe, model, structure, data, 0.3, lambda now: recipes.measure(recipe, now, structure, data, cifar.F.cross_entropy, 0)
    )
    before, after = plan.cost["macs"]
    assert 0.68 < after / before <= 0.7


@pytest.mark.parametrize("script", ["cifar.py", "cost.py"])
def test_without_the_data_a_script_says_so_in_one_sentence(script: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(BENCHMARKS / script), "--data", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "--data" in done.stderr
