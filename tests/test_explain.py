"""An explanation against slow counting; the folder gives the same as the values; what is unknown is one sentence with the nearest names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.cli_explain import explain_folder, files_of
from secateur.cost import COSTS, costs
from secateur.explain import INSTEAD, explain
from secateur.leaving import Leaving, leaving
from secateur.scope import per
from secateur.structure import all_kept
from toy import Hidden, batches, mlp

Made = tuple[sc.Plan, sc.Sensitivity, sc.tree.Scores, sc.Structure]


def made(
    scope: str = "global", local: float = 0.0, contexts: str = "class", structure: sc.Structure | None = None, **budget: object
) -> Made:
    model = mlp(6, 9, 7, 4)
    structure = structure or Hidden(model)
    measured = sc.measure(sc.Task(model, batches(6, 16, 6, 4), F.cross_entropy), structure, contexts=contexts)
    scores = sc.merge(measured, local)
    plan = sc.select(scores, structure, scope=scope, local=local, **({"amount": 0.5, "of": "parameters"} | budget))
    return plan, measured, scores, structure


def in_order(scores: dict[str, Tensor]) -> list[tuple[float, str, int]]:
    return sorted((float(value), name, place) for name, values in scores.items() for place, value in enumerate(values.flatten()))


@pytest.mark.parametrize("scope", ["global", "layer", "ranks", "lamp", "per-parameter"])
@pytest.mark.parametrize("local", [0.0, 0.6])
def test_every_number_is_the_one_that_is_counted(scope: str, local: float) -> None:
    plan, measured, scores, structure = made(scope, local)
    ranking = leaving(structure, scores, plan).ranking
    order, by_global, by_local = (in_order(values) for values in (ranking, measured.global_, measured.local))
    removed = [one for one in order if not plan.keep[one[1]][one[2]]]
    before = costs(structure, all_kept(structure))
    for value, group, place in order:
        told = explain(plan, measured, scores, f"{group}:{place}", structure)
        assert (told.unit, told.kept, told.kind) == (f"{group}:{place}", bool(plan.keep[group][place]), "channel")
        assert told.ranked_by == value and told.score == float(scores[group][place])
        assert (told.rank, told.of) == (1 + sum(other < value for other, _, _ in order), 16)
        assert told.global_rank == [one[1:] for one in by_global].index((group, place)) + 1
        assert told.local_rank == [one[1:] for one in by_local].index((group, place)) + 1
        assert told.group_rank == 1 + sum(other < value for other in ranking[group].tolist())
        assert told.cut == removed[-1][0] == pytest.approx(plan.made["cut"])
        less = all_kept(structure)
        less[group][place] = False
        after = costs(structure, less)
        assert told.saved == {of: before[of] - after[of] for of in COSTS if of != "units"}
        needs = sorted(measured.keys, key=lambda key: -float(measured.keys[key][group][place]))
        assert [need.key for need in told.needs] == needs
        most = in_order(measured.keys[needs[0]])
        assert told.needs[0].above == [one[1:] for one in most].index((group, place)) / 16
        free = {name: int(mask.sum()) - 1 for name, mask in plan.keep.items()}  # the last of a group never goes
        queue = []
        for _, name, number in (one for one in order if plan.keep[one[1]][one[2]]):
            if free[name] > 0:
                queue.append(f"{name}:{number}")
                free[name] -= 1
        assert [other.unit for other in told.instead] == [unit for unit in queue if unit != told.unit][:INSTEAD]
        assert ("stayed" if told.kept else "went") in told.text().splitlines()[0]


def test_what_local_sensitivity_protects_is_said() -> None:
    plan, measured, scores, structure = made(local=0.9)
    gone = sum(removed for removed, _ in plan.removed().values())
    alone = {(name, place) for _, name, place in in_order(measured.global_)[:gone]}
    said = {(name, place): explain(plan, measured, scores, f"{name}:{place}", structure).notes for _, name, place in in_order(scores)}
    protected = {unit for unit, notes in said.items() if any("protects it" in note for note in notes)}
    yielded = {unit for unit, notes in said.items() if any("in the place of" in note for note in notes)}
    assert protected == {(name, place) for name, place in alone if plan.keep[name][place]} and protected
    assert yielded == {(name, place) for name, place in said if not plan.keep[name][place]} - alone and yielded


def test_a_score_near_the_cut_is_said_to_be_in_doubt() -> None:
    plan, measured, scores, _ = made(contexts="batch")
    assert measured.error is not None
    cut = float(plan.made["cut"])  # type: ignore[arg-type]
    for value, name, place in in_order(scores):
        doubted = any("standard errors from the cut" in note for note in explain(plan, measured, scores, f"{name}:{place}").notes)
        assert doubted == (abs(value - cut) < 2 * float(measured.error[name][place]))


def test_a_unit_that_has_to_stay_says_so() -> None:
    plan, measured, scores, structure = made(amount=None, threshold=1.0, least={"h0": 3})
    lowest = scores["h0"].argsort()[-3:]
    told = explain(plan, measured, scores, f"h0:{int(lowest[0])}", structure)
    assert told.kept and "keeps 3 of 9 units, and no fewer may stay" in told.why and not told.instead
    plan, measured, scores, structure = made(amount=0.0)
    assert explain(plan, measured, scores, "h1:0", structure).why == "nothing was removed."


def test_without_the_structure_what_leaves_with_it_is_not_told() -> None:
    plan, measured, scores, structure = made()
    bare, full = (explain(plan, measured, scores, "h0:2", told) for told in (None, structure))
    assert bare.saved == {} and "not kept beside this plan" in bare.text()
    assert replace(full, saved={}, members=(), notes=()) == replace(bare, notes=())


def test_a_ranking_that_is_not_known_gives_no_cut() -> None:
    def mine(scores: dict[str, Tensor], structure: sc.Structure, keep: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: -value for name, value in scores.items()}

    for scope, given in ((mine, True), ("ranks", False)):
        plan, measured, scores, structure = made()
        plan = sc.select(scores, structure, amount=0.5, scope=scope)
        told = explain(plan, measured, scores, "h0:2", structure if given else None)
        assert told.cut is None and told.instead == () and "ranked them, which was not kept" in told.why


def upside_down(scores: dict[str, Tensor], structure: sc.Structure, keep: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: -value for name, value in scores.items()}


def test_a_scope_of_ones_own_is_explained_where_it_is_given() -> None:
    _, measured, scores, structure = made()
    for scope in (per(parameters_squared), upside_down, lambda scores, structure, keep: scores):
        plan = sc.select(scores, structure, amount=0.5, scope=scope)
        bare, told = (explain(plan, measured, scores, "h0:2", structure, scope=given) for given in (None, scope))
        assert "ranked them, which was not kept" in bare.why and bare.saved
        assert told.cut == plan.made["cut"] and told.instead
        ranking = leaving(structure, scores, plan, scope).ranking
        assert told.ranked_by == float(ranking["h0"][2]) == float(scope(scores, structure, all_kept(structure))["h0"][2])
    plan = sc.select(scores, structure, amount=0.5, scope=per("macs"))
    assert explain(plan, measured, scores, "h0:2", structure).cut == plan.made["cut"], "per-macs names a cost of ours"


def parameters_squared(structure: sc.Structure, keep: dict[str, Tensor]) -> float:
    return sc.cost(structure, keep, "parameters") ** 2


@pytest.mark.parametrize("scope", ["global", "layer", "ranks"])
@pytest.mark.parametrize(("multiple", "least"), [(2, 1), (3, 1), (4, 1), (2, 5)])
def test_blocks_are_held_against_the_plans_own_cut(scope: str, multiple: int, least: int) -> None:
    plan, measured, scores, structure = made(scope, multiple=multiple, least=least, amount=0.1)
    told = {(n, p): explain(plan, measured, scores, f"{n}:{p}", structure) for n, mask in plan.keep.items() for p in range(len(mask))}
    for (name, place), each in told.items():
        assert each.cut == plan.made["cut"]
        assert plan.keep[name][place] or each.ranked_by <= each.cut, "what left is no higher than the cut"
        assert not plan.keep[name][place] or each.ranked_by >= each.cut or "no fewer may stay" in each.why
        assert each.ranked_by == float(scores[name][place]) or "the mean of its block" in each.why or each.cut is None
    kept = next(unit for unit, each in told.items() if each.kept and each.instead)
    first = next(other for other in told[kept].instead)
    assert all(len(other.block) <= multiple for other in told[kept].instead)
    more = sc.select(scores, structure, threshold=first.score + 1e-12, scope=scope, multiple=multiple, least=least)
    now, then = ({f"{n}:{p}" for n, mask in some.keep.items() for p in range(len(mask)) if mask[p]} for some in (more, plan))
    assert then - now >= set(first.block or (first.unit,)), "the next block is what a little more takes"


@pytest.mark.parametrize("scope", ["global", "layer", "ranks", "per-parameter"])
@pytest.mark.parametrize("multiple", [1, 2])
def test_within_an_earlier_plan_the_ranking_is_of_what_that_left(scope: str, multiple: int) -> None:
    plan, measured, scores, structure = made(scope, amount=0.2, multiple=multiple)
    later = sc.select(scores, structure, amount=0.5, of="parameters", scope=scope, multiple=multiple, within=plan)
    assert later.made["within"] == sum(gone for gone, _ in plan.removed().values()) > 0
    for name, mask in later.keep.items():
        for place in range(len(mask)):
            told = explain(later, measured, scores, f"{name}:{place}", structure, within=plan)
            assert told.cut == later.made["cut"]
            if not plan.keep[name][place]:
                assert told.why.startswith("an earlier plan") and f"{name}:{place}" not in [other.unit for other in told.instead]
            elif not mask[place]:
                assert told.ranked_by <= told.cut
            else:
                assert told.ranked_by >= told.cut or "no fewer may stay" in told.why
            bare = explain(later, measured, scores, f"{name}:{place}", structure)
            if (scope, multiple) != ("global", 1):
                assert "was not kept beside this plan" in bare.why and bare.cut is None


def test_plans_of_a_share_a_group_have_a_cut_a_group() -> None:
    _, measured, scores, structure = made()
    losses = {name: {0.25: 0.1, 0.5: 0.3, 0.75: 0.9} for name in structure.groups}
    by_curves = sc.select_by_curves(scores, structure, losses, budget="parameters=60")
    for plan in (sc.select_each(scores, structure, {"h0": 0.5}), by_curves):
        for name, mask in plan.keep.items():
            gone = scores[name][~mask]
            for place in range(len(mask)):
                told = explain(plan, measured, scores, f"{name}:{place}", structure)
                assert told.cut == (float(gone.max()) if len(gone) else None)
                assert {other.unit.partition(":")[0] for other in told.instead} <= {name}
                assert "nothing of its group" in told.why or told.kept == (float(scores[name][place]) > told.cut)
    assert "share of its group" in told.how and ("budget parameters=60" in told.how)


def test_connections_go_by_their_index() -> None:
    plan, measured, scores, structure = made(structure=sc.weights(mlp(6, 9, 7, 4)), contexts="batch")
    shape = scores["2.weight"].shape
    told = explain(plan, measured, scores, "2.weight:3,5", structure)
    assert told == explain(plan, measured, scores, f"2.weight:{3 * shape[1] + 5}", structure)
    assert (told.unit, told.kind, told.members) == ("2.weight:3,5", "connection", ())
    assert told.saved == {"parameters": 1.0, "bytes": 8.0}
    assert told.score == float(scores["2.weight"][3, 5]) and told.instead[0].unit.count(",") == 1
    with pytest.raises(sc.BadInput, match=r"no unit '7,0' in 2\.weight, which has 63 units\. Give 2\.weight:0 to 2\.weight:6,8"):
        explain(plan, measured, scores, "2.weight:7,0", structure)


def test_blocks_go_by_their_index_and_the_last_may_be_smaller() -> None:
    structure = sc.blocks(mlp(6, 9, 7, 4), (2, 4))
    plan, measured, scores, _ = made(structure=structure, contexts="batch")
    told = explain(plan, measured, scores, "2.weight:1,2", structure)  # rows 2 and 3, the last of nine columns
    assert (told.unit, told.kind, told.members, told.saved) == ("2.weight:1,2", "block", (), {"parameters": 2.0, "bytes": 16.0})
    assert explain(plan, measured, scores, "2.weight:0,0", structure).saved["parameters"] == 8.0
    assert told.cut is not None and told.instead and explain(plan, measured, scores, "2.weight:1,2").kind == "block"


def test_of_n_of_m_the_run_is_told() -> None:
    structure = sc.n_of_m(mlp(4, 8, 4), 1, 4)
    measured = sc.measure(sc.Task(mlp(4, 8, 4), batches(4, 16, 4, 4), F.cross_entropy), structure)
    scores = sc.merge(measured, 0.5)
    plan = sc.select(scores, structure, keep=["0.*"])
    facts = Leaving.from_json(leaving(structure, scores, plan).to_json(), scores)
    for row in range(4):
        for place in range(8):
            run = scores["2.weight"][row, place // 4 * 4 :][:4]
            ahead = int((run > scores["2.weight"][row, place]).sum())
            told = explain(plan, measured, scores, f"2.weight:{row},{place}", facts)
            assert told.why == f"{ahead} of its run of 4 connections along dimension 1 score higher, and the 1 best stay."
            assert told.kept == (ahead == 0) and told.cut is None and told.instead == () and "1:4" in told.how
    assert explain(plan, measured, scores, "0.weight:0,0", facts).why == "its whole weight was left as it is."
    assert "the 1 best stay" in explain(plan, measured, scores, "2.weight:0,0").why


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).tanh()


def test_layers_are_named_by_their_place_or_their_path() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Residual(), Residual(), Residual(), nn.Linear(6, 4))
    data = [(torch.randn(8, 6), torch.arange(8) % 4) for _ in range(4)]
    structure = sc.layers(model, data[0][0])
    measured = sc.measure(sc.Task(model, data, F.cross_entropy), structure)
    plan = sc.select(scores := sc.merge(measured), structure, amount=0.3)
    told = explain(plan, measured, scores, "1", structure)
    assert told == explain(plan, measured, scores, "layers:1", structure)
    assert told.unit == "layers:1 (1)" and told.members == (("1.inner.weight", 0), ("1.inner.bias", 0)) and told.saved["parameters"] == 42


def test_rounds_have_no_one_cut() -> None:
    plan, measured, scores, structure = made()
    told = explain(plan.note(round=3, steps=3), measured, scores, "h0:2", structure)
    assert told.cut is None and told.instead == () and "first round" in told.text() and "times the cut" not in told.text()


UNKNOWN = {
    "h9:1": "no group 'h9' in this plan. The nearest: h",
    "h0:9": "no unit '9' in h0, which has 9 units. Give h0:0 to h0:8",
    "h0:-1": "no unit '-1'",
    "h0:1,1": "no unit '1,1'",
    "h0:": "h0 has 9 units. Say which",
    "h0": "h0 has 9 units. Say which",
    "": "no group ''",
    "head:1": "No unit of head could leave: an output",
}


@pytest.mark.parametrize("unit", UNKNOWN)
def test_an_unknown_unit_is_one_sentence_with_the_nearest_names(unit: str) -> None:
    plan, measured, scores, structure = made()
    with pytest.raises(sc.BadInput) as raised:
        explain(replace(plan, frozen={"head": "an output of the model"}), measured, scores, unit, structure)
    assert UNKNOWN[unit] in str(raised.value)


def test_values_of_another_plan_are_refused() -> None:
    plan, measured, scores, structure = made()
    with pytest.raises(sc.BadInput, match="not of this plan"):
        explain(plan, measured, {"h0": scores["h0"]}, "h0:1", structure)


def test_what_leaves_is_read_as_it_was_written() -> None:
    plan, _, scores, structure = made("per-parameter")
    facts = leaving(structure, scores, plan)
    assert Leaving.from_json(facts.to_json(), facts.ranking) == facts
    for text in ("", "3", "[]", '{"h0": 3}', '{"h0": {"kind": "channel", "stay": "x"}}', "[" * 100_000):
        with pytest.raises(sc.Unreadable):
            Leaving.from_json(text, {})


@pytest.fixture(params=["global", "layer"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Made]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 4))
    data = [(torch.randn(16, 6), torch.arange(16) % 4) for _ in range(4)]
    result = sc.prune(model, data[0][0], data, F.cross_entropy, contexts="class", amount=0.4, scope=request.param)
    extra = files_of(result.structure, result.sensitivity, result.scores, result.plan)
    assert ("ranking.safetensors" in extra) == (request.param != "global")
    sc.save(tmp_path / "out", result.model, result.plan, extra=extra)
    return tmp_path / "out", (result.plan, result.sensitivity, result.scores, result.structure)


def test_a_folder_explains_scopes_without_a_name_of_ours(tmp_path: Path) -> None:
    model = mlp(6, 9, 7, 4)
    data = batches(6, 16, 6, 4)
    structure = sc.channels(model, data[0][0])
    measured = sc.measure(sc.Task(model, data, F.cross_entropy), structure)
    scores = sc.merge(measured)
    own = per(parameters_squared)
    cases = {
        "each": (sc.select_each(scores, structure, {"0": 0.5}), None),
        "per": (sc.select(scores, structure, 0.4, scope=own), own),
        "unknown": (sc.select(scores, structure, 0.4, scope=upside_down), None),
    }
    for name, (plan, scope) in cases.items():
        sc.save(tmp_path / name, sc.shrink(model, plan), plan, extra=files_of(structure, measured, scores, plan, scope))
        told = explain_folder(tmp_path / name, "0:3")
        assert told == explain(plan, measured, scores, "0:3", structure, scope=scope)
        assert (told.cut is None) == (name == "unknown")


def said_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    pytest.importorskip("typer")
    from secateur.cli import run

    code = run(["explain", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_says_of_a_folder_what_the_library_says_of_the_values(
    folder: tuple[Path, Made], capsys: pytest.CaptureFixture[str]
) -> None:
    out, (plan, measured, scores, structure) = folder
    told = explain(plan, measured, scores, "0:3", structure)
    assert said_by([str(out), "--unit", "0:3"], capsys) == (0, told.text() + "\n", "")
    code, text, _ = said_by([str(out), "--unit", "0:3", "--json"], capsys)
    assert code == 0 and json.loads(text) == json.loads(told.to_json())


def test_what_cannot_be_explained_is_one_line(folder: tuple[Path, Made], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, _ = folder
    (tmp_path / "empty").mkdir()
    cases = {"nowhere": "nowhere is not there", str(tmp_path / "empty"): "has no plan.json"}
    for place, fact in cases.items():
        code, text, error = said_by([place, "--unit", "0:3"], capsys)
        assert code == 2 and text == "" and fact in error and error.count("\n") == 1
    code, _, error = said_by([str(out), "--unit", "o:3"], capsys)
    assert code == 2 and "The nearest: 0, 2" in error
    facts = (out / "units.json").read_text()
    for name, content, fact in (
        ("units.json", facts.replace('"0"', '"1"'), "not of the plan beside it"),
        ("units.json", "{", "not what Secateur wrote"),
        ("scores.safetensors", "x", "is damaged"),
        ("scores.safetensors", None, "has no scores.safetensors"),
    ):
        before = (out / name).read_bytes()
        (out / name).unlink() if content is None else (out / name).write_text(content)
        code, text, error = said_by([str(out), "--unit", "0:3"], capsys)
        assert code == 2 and text == "" and fact in error and error.count("\n") == 1
        (out / name).write_bytes(before)
    (out / "units.json").unlink()
    code, text, _ = said_by([str(out), "--unit", "0:3"], capsys)
    assert code == 0 and "was not kept beside this plan" in text
