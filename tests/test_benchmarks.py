"""The benchmarks' own arithmetic, on rows that were never measured: what is run again, what a page says, what happens without the data."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not part of an installed package")
sys.path.append(str(BENCHMARKS))

import accuracy  # noqa: E402
import allocate  # noqa: E402
import cifar  # noqa: E402
import cifar_table  # noqa: E402
import cost  # noqa: E402
import cost_ways  # noqa: E402
import criteria  # noqa: E402
import criteria_table  # noqa: E402
import latency  # noqa: E402
import minilm  # noqa: E402
import nets  # noqa: E402
import recipes  # noqa: E402
import results  # noqa: E402
import secateur as sc  # noqa: E402
import smallest  # noqa: E402
import streamed  # noqa: E402
import subjects  # noqa: E402
import trained  # noqa: E402


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


def test_the_page_on_pruning_from_disk_compares_peaks(tmp_path: Path) -> None:
    one = {"before": 100 * 2**20, "seconds": 24.0, "cpu": 12.0, "weights": 12, "error": 0.6, "size": 2**20, "layers": 12, "sequences": 4}
    rows = [
        {**one, "peak": 200 * 2**20, "spilled": False}, {**one, "layers": 48, "peak": 210 * 2**20, "spilled": False},
        {**one, "sequences": 32, "peak": 290 * 2**20, "spilled": False},
        {**one, "sequences": 32, "peak": 203 * 2**20, "spilled": True, "cpu": 18.0},
    ]  # fmt: skip
    about = {"width": 8, "sequences": 4, "seed": 0, "threads": 1, "commit": "abc1234", "machine": "a machine"}
    page = streamed.page({"rows": rows, **about})
    assert "| 12 | 4 | in memory | 1 MiB | 100 MiB | 200 MiB | 100 MiB | 2.0 | 1.0 | 0.60 |" in page
    assert "it is 90 MiB more with their activations in memory, and 3 MiB more with those of all batches but one on disk" in page
    assert "in 1.50 times the processor time" in page
    assert "with 48 layers is 1.050 times that with 12 (target: at most 1.1), what is beyond the start 1.100 times" in page
    size = streamed.write_shards(tmp_path / "dense", 1, 64, 0)
    assert size == sum(value.nbytes for value in streamed.Transformer(1, 64).state_dict().values())


def test_the_latency_page_tells_errors_of_all_plans_but_the_dense_one():
    figures = [(10.0, 10.0, 100.0), (6.0, 5.0, 40.0), (3.0, 4.0, 20.0), (2.0, 2.0, 10.0)]
    rows = [{"predicted": predicted, "measured": measured, "macs": macs} for predicted, measured, macs in figures]
    off = latency.errors(rows)
    assert off == pytest.approx({"median": 0.2, "largest": 0.25, "ratio": 0.2, "macs": 0.5, "macs, largest": 0.5, "rank": 1.0})
    run = {"net": "ResNet-20", "batch": 1, "rows": rows, "operators": 9, "line": [0, 1], "filled": 2, "again": 0.1, "device": "cpu"}
    page = latency.page({"runs": [run], "seed": 0, "threads": 1, "load": 3.0, "commit": "abc1234", "machine": "a machine"})
    assert "| ResNet-20, cpu | 1 | 10.00 | 2.00 | 20.0 % | 25.0 % | 20.0 % | 1.000 | 50.0 % | 50.0 % |" in page
    assert "| ResNet-20, cpu | 1 | 40.0 | 6.000 | 5.000 | +20.0 % |" in page and "a load of 3.0" in page


def test_a_part_of_the_page_on_scale_replaces_itself_only():
    rows = [{"way": way, "size": 10**8, "seconds": [3.0, 1.0, 2.0], "memory": [1.04, 1.05]} for way in smallest.NAMES]
    part = smallest.page({"rows": rows, "seed": 0, "threads": 2, "commit": "abc1234", "machine": "a machine"})
    assert "Measured: 2.00 s and 1.050x." in part and "| 100,000,000 | 2.000 | 20.0 | 1.050 |" in part
    first = smallest.written("", part)
    assert first == f"# Scale\n\n{part}"
    between = f"# Scale\n\nwords\n\n{smallest.TITLE}\n\nstale words\n\n## processes\n\nmore\n"
    again = smallest.written(between, part)
    assert again.startswith("# Scale\n\nwords\n\n") and again.endswith("\n## processes\n\nmore\n") and "stale" not in again
    assert smallest.written(again, part) == again


def test_the_allocation_page_has_a_line_a_way():
    rows = [{"ratio": 1.5, "way": "solver", "straight": 0.7, "repaired": 0.8, "macs": 0.66}]
    page = allocate.page({
        "rows": rows, "dense": 0.92, "curves": {"a": [[0.5, 1.25]]}, "loss": 0.4, "images": 512, "test": 1000, "solver seconds": 0.5,
        "seed": 0, "threads": 1, "commit": "abc1234", "machine": "a machine",
    })  # fmt: skip
    assert "| 1.5x | solver | 66.00 | 70.00 | 80.00 |" in page and "| a | 1.250 |" in page


@pytest.mark.parametrize("script", ["cifar.py", "cost.py", "allocate.py"])
def test_without_the_data_a_script_says_so_in_one_sentence(script: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(BENCHMARKS / script), "--data", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "--data" in done.stderr


# criteria.py ----------------------------------------------------------------------------------------------------------------------------


def criteria_row(
    model: str, structure: str, criterion: str, scope: str, budget: float, seconds: float, *figures: float, seed: int = 0
) -> results.Row:
    place: results.Row = {"model": model, "structure": structure, "criterion": criterion, "scope": scope, "budget": budget, "seed": seed}
    told = dict(zip(("straight", "reestimated"), figures))
    return {**place, **told, "images": 1024, "test": 100, "seconds": seconds, "plain": 1.0, "commit": "abc1234", "machine": "a machine"}


def subject(structures: tuple[str, ...] = ("channels", "connections"), name: str = "resnet20") -> subjects.Subject:
    model = torch.nn.Linear(2, 2)
    return subjects.Subject(
        name,
        model,
        dict.fromkeys(structures, sc.weights(model)),
        subjects.cross_entropy,
        lambda seed, number: [],
        lambda model: 0.9,
        1024,
        100,
    )


def test_every_criterion_meets_every_structure_once_and_chance_three_times() -> None:
    works = criteria.works([subject(), subject(("heads", "feed-forward"), "minilm")], [])
    assert len(set(works)) == len(works)
    for structure in ("channels", "connections", "heads", "feed-forward"):
        mine = [work for work in works if work.structure == structure]
        ran = {id(sc.CRITERIA[work.criterion]) for work in mine}
        alike = {id(sc.CRITERIA[name]) for name in criteria.ALIKE} if structure == "connections" else set()
        assert ran | alike == {id(function) for function in sc.CRITERIA.values()}
        assert {work.criterion for work in mine if work.seed} == set(criteria.CHANCE)
    assert set(criteria.LAYERWISE) | {name for name, _ in criteria.FEWER} <= set(sc.CRITERIA)


def test_a_comparison_that_was_stopped_goes_on_and_takes_rows_of_other_numbers_of_samples_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[criteria.Work] = []

    def run(work: criteria.Work, subject: subjects.Subject, wanted: list[tuple[str, float]], *_: object) -> Iterator[results.Row]:
        ran.append(work)
        if work.criterion == "taylor":
            raise RuntimeError("the device lacks something")
        if work.criterion == "cosine":
            yield {**work.settings(subject, "", None), "refused": "no direction"}
            return
        yield from ({**work.settings(subject, scope, budget), "straight": 0.5} for scope, budget in wanted)

    monkeypatch.setattr(criteria, "run", run)
    given, only, made = subjects.Setting(tmp_path), ["magnitude", "taylor", "cosine"], {"commit": "abc1234", "machine": "a machine"}
    fill = lambda one, until=float("inf"), fresh=False: criteria.fill(
        [one], given, criteria.Kept(tmp_path / "rows.json", made, fresh), only, until
    )
    assert fill(subject(), 0.0) == (6, 0) and not ran
    assert fill(subject()) == (0, 2) and len(ran) == 6
    assert fill(subject()) == (0, 2) and len(ran) == 8  # only what failed
    rows = results.read(tmp_path / "rows.json")
    assert fill(dataclasses.replace(subject(), images=64))[1] == 2 and len(ran) == 14
    again = results.read(tmp_path / "rows.json")
    assert len(again) == len(rows) and {row["images"] for row in again if "budget" in row} == {64}


def test_the_page_of_criteria_marks_the_best_three_and_says_what_is_cheap_and_as_good() -> None:
    rows: list[results.Row] = [{"model": "resnet20", "structure": "dense", "straight": 0.9, "test": 100}]
    for criterion, seconds, repaired in (
        ("fisher", 1.0, 0.88),
        ("gate", 1.2, 0.878),
        ("magnitude", 0.01, 0.6),
        ("taylor", 1.0, 0.7),
        ("grasp", 4.0, 0.1),
    ):
        rows += [criteria_row("resnet20", "channels", criterion, "per-mac", budget, seconds, 0.3, repaired) for budget in (0.2, 0.5)]
    rows += [criteria_row("resnet20", "channels", "magnitude", "layer", budget, 0.01, 0.3, 0.5) for budget in (0.2, 0.5)]
    rows += [
        criteria_row("resnet20", "channels", "random", "per-mac", budget, 0.0, 0.1, value, seed=seed)
        for budget in (0.2, 0.5)
        for seed, value in enumerate((0.1, 0.2, 0.3))
    ]
    rows.append({**rows[1], "criterion": "entropy", "scope": "", "budget": None, "refused": "It ranks heads."})
    page = criteria_table.page(rows)
    body = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [line[0] for line in body] == [
        f"| `{name}`" for name in ("fisher", "gate", "taylor", "magnitude", "magnitude", "random", "grasp")
    ]
    assert [line[3].partition(" / ")[2].startswith("**") for line in body] == [True, True, True, False, False, False, False]
    assert body[5][3] == "10.00 ± 0.0 / 20.00 ± 10.0"
    assert "- `entropy` (ResNet-20, channels): It ranks heads." in page
    advice = page.partition("## Advice")[2]
    assert "`fisher` 2.00, `gate` 2.20, `taylor` 20.00" in advice and "Nothing cheaper comes within 0.5 points of it" in advice
    assert "Of those that cost next to nothing, `magnitude` is the best: 30.00." in advice
    assert "No better than random: `grasp`." in advice
    assert "per-mac is better in 1 of 1 (+10.00 points, the median)" in advice


def test_without_any_data_the_comparison_says_why_each_network_is_left_out(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "criteria.py"), "--data", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert [line.partition(" is left out: There is no folder")[0] for line in done.stderr.splitlines()] == list(subjects.SUBJECTS)


def test_the_keyword_net_and_the_encoder_have_as_many_parameters_as_published() -> None:
    assert sum(value.numel() for value in nets.dscnn().parameters()) == 22_604
    with torch.device("meta"):
        assert sum(value.numel() for value in minilm.Similarity().parameters()) == 22_565_376


def test_padding_changes_no_similarity_and_every_head_is_a_unit() -> None:
    torch.manual_seed(0)
    model = minilm.Similarity(words=20, width=8, heads=2, inner=6, layers=2).eval().double()
    tokens, mask = minilm.padded([[1, 2, 3], [4, 5]])
    wider = torch.nn.functional.pad(tokens, (0, 3)), torch.nn.functional.pad(mask, (0, 3))
    torch.testing.assert_close(model(tokens, mask), model(*wider))
    heads, inner = (sc.channels(model, (tokens, mask), exact=True, units=(kind,)) for kind in ("head", "channel"))
    assert [group.size for group in heads.groups.values()] == [2, 2] and [group.size for group in inner.groups.values()] == [6, 6]


def test_the_correlation_of_ranks_shares_ranks_among_equals() -> None:
    assert minilm.spearman(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 4, 9, 16])) == pytest.approx(1)
    assert minilm.ranks(torch.tensor([5.0, 1, 5, 0]).numpy()).tolist() == [3.5, 2, 3.5, 1]
    assert minilm.spearman(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 3, 2])) == pytest.approx(0.5)


def kept(case: str, way: str, score: float, seed: int = 0, images: int = 1024) -> results.Row:
    about = {"case": case, "way": way, "seed": seed, "images": images, "test": 5000, "score": score, "seconds": 10.0, "MiB": 500}
    return {**about, "commit": "abc1234", "machine": "a machine"}


def test_the_page_on_repair_says_what_is_met_and_what_was_not_run() -> None:
    rows = [{"case": "resnet56", "score": 0.9}, kept("resnet56-2x", "least squares", 0.92), kept("resnet56-2x", "random", 0.5)]
    rows += [kept("resnet56-90%", "least squares", 0.85, seed, 1024 * (1 + seed)) for seed in (0, 1)]
    rows.append(kept("resnet56-1.5x", "random", 0.6))
    page = accuracy.page(rows)
    assert "Target: 92.80. Tested" in page  # ours was not run
    assert "Dense: 90.00. Target: 91.00, met. Tested on 5,000." in page and "Target: 90.00, missed by 5.00." in page
    assert "| least squares | 92.00 | 1,024 | 1 | 10 | 500 |" in page and "| random | 50.00 |" in page
    assert "| least squares | 85.00 ± 0.00 | 1,024 and 2,048 | 2 |" in page and accuracy.TRIED["resnet56-90%"] in page
    assert accuracy.TRIED["dscnn-2x"] not in page and "## dscnn" not in page and "dscnn-2x" in page.splitlines()[-1]
    assert accuracy.headline(rows).splitlines()[-1] == "| resnet56 | connections, 90% | 90.00 | 85.00 |"


def test_the_page_on_training_judges_the_last_epoch_and_leaves_out_what_was_not_measured() -> None:
    sizes = {f"{which}_{name}": value for which, value in (("dense", 2e6), ("small", 1e6)) for name, *_ in trained.QUANTITIES}
    about = {"commit": "abc1234", "machine": "a machine", "seed": 0, "images": 64, "seconds": 20}
    one = {"case": "resnet56-70%", "epochs": 3, "epoch_seconds": 5, "dense": 0.93, "pruned": 0.8, "last": 0.915, **about, **sizes}
    other = {"case": "resnet50-70%", "whole_seconds": 310, "MiB": 2000, **about, **sizes, "small_memory": None}
    page = trained.page([{**one, "recipe": "logits"}, other])
    assert "Not run yet: resnet56-2.11x." in page and "Target: 92.00, missed by 0.50 after 3 epochs of 5 s." in page
    assert "removed, trained by logits\n" in page and page.count("trained by") == 1
    assert "missed by 10 s" in page and page.count("peak memory of a run") == 1 and "| file, MB | 2.00 | 1.00 | 2.00x |" in page


def test_training_images_are_shifted_and_mirrored_and_follow_the_seed() -> None:
    x = torch.arange(256 * 3 * 32 * 32).view(256, 3, 32, 32).float() + 1
    data = trained.Augmented(x, torch.arange(256))

    def drawn() -> list[tuple[torch.Tensor, torch.Tensor]]:
        torch.manual_seed(0)
        return list(data)

    found = drawn()
    assert len(found) == len(data) == 2 and sorted(torch.cat([y for _, y in found]).tolist()) == list(range(256))
    assert all(torch.equal(a, b) for one, other in zip(found, drawn()) for a, b in zip(one, other))
    for image, label in zip(*found[0]):
        wide = torch.nn.functional.pad(x[label], (4,) * 4)
        wide = [wide[:, down : down + 32, right : right + 32] for down in range(9) for right in range(9)]
        assert sum(torch.equal(image, crop) or torch.equal(image, crop.flip(2)) for crop in wide) >= 1


def test_shared_options_have_the_defaults_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    parser = results.options("What it is.\n\nMore.", data=results.DATA, threads=2)
    assert vars(parser.parse_args([])) == {"data": results.DATA, "threads": 2}
    assert vars(parser.parse_args(["--data", "x", "--threads", "1"])) == {"data": Path("x"), "threads": 1}
    with pytest.raises(SystemExit):
        parser.parse_args(["--threads", "many"])
    assert parser.description == "What it is." and "invalid int value" in capsys.readouterr().err


@pytest.mark.parametrize("module", [allocate, cifar, cost, latency, smallest], ids=lambda module: module.__name__)
def test_a_benchmark_says_its_options(module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    assert ("--repeats" if module is smallest else "--threads") in capsys.readouterr().out
