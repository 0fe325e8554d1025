"""The command line: what it writes appears whole or not at all, and what goes wrong is one line and code 2."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from zoo import need_torchvision

pytest.importorskip("typer")

import secateur
from secateur import PlanMismatch, Sensitivity, cli_prune, load, merge, read_plan, read_sensitivity
from secateur import latency as clock
from secateur.__main__ import main
from secateur.api import SCOPES_OF_A_RUN
from secateur.cli import run
from secateur.frontends.models import build_of
from secateur.table import Table

NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )

class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 6), nn.Linear(6, 10)

    def forward(self, x):
        return self.c(self.b(self.norm(self.a(x)).relu().mean((2, 3)).view(-1, 8)).relu())  # a number in the code

def written():
    return Written()

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x):
        y = self.a(x).mean((2, 3))
        return self.b(y) if y.sum() > 0 else self.b(-y)

def branching():
    return Branching()

class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(96, 24), nn.Linear(8, 10)

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2).view(x.shape[0], 32, 96)).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        return self.out(((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2)).mean(1)

def attending():
    return Attending()

def samples(classes=10, count=200):
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    return torch.randn(count, 3, 32, 32, generator=draw) + 0.3 * y[:, None, None, None], y

def data():
    return samples()

def too_many_classes():
    return samples(12)

def residual():
    return nn.Sequential(nn.Conv2d(3, 8, 3), *(Block() for _ in range(3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

def nothing():
    return torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.long)

def flat():
    return nn.Identity()

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu()

def one_block():
    return nn.Sequential(nn.Conv2d(3, 8, 3), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

def not_a_number(outputs, targets):
    return outputs.sum() * float("nan")

def without_derivative(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()

def halves(batch):
    return [f"half {number % 2}" for number in range(len(batch[1]))]

def upside_down(task, structure):
    for gradient in task.gradients():
        yield {name: -value.abs() for name, value in structure.reduce(gradient).items()}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with net.py and w.safetensors."""
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file(build_of("net.py:build")().state_dict(), tmp_path / "w.safetensors")
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pruning(**options: object) -> list[str]:
    """A prune command, `_` of an option's name being a hyphen, True a flag; None takes the usual one away."""
    usual = {"weights": "w.safetensors", "data": "net.py:data", "amount": 0.5, "out": "out", "curve": 0} | options
    words = ["prune", str(usual.pop("model", "net.py:build"))]
    for name, value in usual.items():
        option = "--" + name.replace("_", "-")
        words += [] if value is None else [option] if value is True else [option, str(value)]
    return words


MEASURE = ["measure", "net.py:build", "--data", "net.py:data", "--out"]
BAD: dict[str, tuple[list[str], str]] = {
    "amount above 1": (pruning(amount=1.5), "0..1"),
    "amount below 0": (pruning(amount=-0.1), "0..1"),
    "amount that is no number": (pruning(amount="half"), "--amount"),
    "neither amount nor threshold": (pruning(amount=None), "--threshold"),
    "both amount and threshold": (pruning(threshold=0.1), "Leave out --amount or --threshold."),
    "both amount and budget": (
        pruning(of="macs", budget="7 kB"),
        'Leave out --amount or --budget; or ask for both in one budget: --budget "macs=0.5, 7 kB".',
    ),
    "amount, budget and drop": (pruning(budget="7 kB", drop=1), "Leave out all but one."),
    "out of reach": (pruning(amount=0.999, of="macs"), "at most"),
    "loss not a number": (pruning(loss="net.py:not_a_number"), "batch 0 the loss is nan"),
    "loss without derivative": (pruning(loss="net.py:without_derivative"), "batch 0 the loss"),
    "no data": (pruning(data="net.py:nothing"), "empty"),
    "no such data": (pruning(data="folder:nowhere"), "nowhere"),
    "labels that do not fit": (pruning(data="net.py:too_many_classes"), "batch 0"),
    "example that does not fit": (pruning(example="1,4,32,32"), "example"),
    "example that is none": (pruning(example="1,x"), "1,x"),
    "nothing to prune": (pruning(model="net.py:flat", weights=None), "channel"),
    "weights of another model": (pruning(model="secateur.demo:build"), "do not fit the model"),
    "no weights": (pruning(weights="nowhere.pt"), "nowhere.pt"),
    "no model": (pruning(model="net.py:bild"), "build"),
    "unknown criterion": (pruning(criterion="tailor"), "taylor"),
    "unknown structure": (pruning(structure="chanels"), "channels"),
    "unknown cost": (pruning(of="flops"), "macs"),
    "unknown scope": (pruning(scope="world"), "layer"),
    "a budget of nothing": (pruning(amount=None, budget="30M"), "does not say of what"),
    **{f"a budget of {text!r}": (pruning(amount=None, budget=text), "The budget is empty") for text in ("", " ", ";", ",")},
    "a budget of an unknown cost": (pruning(amount=None, budget="flops=30M"), "no cost 'flops'"),
    "a budget out of reach": (pruning(amount=None, budget="10 B"), "budget of 10 bytes is out of reach"),
    "a drop below 0": (pruning(amount=None, drop=-1), "drop= is a number of points"),
    "both amount and drop": (pruning(drop=1), "Leave out --amount or --drop."),
    "gradually to a drop": (pruning(amount=None, drop=1, schedule="cubic"), "--amount"),
    "gradually to milliseconds": (pruning(of="latency", schedule="cubic"), "counts units, parameters"),
    "no such group to keep": (pruning(keep="conv9"), "No group is called 'conv9'"),
    "a least that is none": (pruning(least="few"), "--least is a number of units (4), a share (0.1)"),
    "a most that is none": (pruning(most="0=x"), "--most is a number"),
    "gradually per millisecond": (pruning(scope="per-ms", schedule="cubic"), "--scope"),
    "unknown schedule": (pruning(schedule="square"), "cubic"),
    "unknown context": (pruning(contexts="epoch"), "class"),
    "unknown repair": (pruning(repair="glue"), "statistics"),
    "unknown kind of unit": (pruning(units="head,neuron"), "no kind of unit 'neuron'. Choose channel"),
    "unknown kind to measure": ([*MEASURE, "s.safetensors", "--units", "heads"], "no kind of unit 'heads'"),
    "unknown kind to inspect": (["inspect", "net.py:build", "--example", "1,3,32,32", "--units", ""], "no kind of unit ''"),
    "an amount of n of m": (pruning(structure="2:4"), "Leave --amount out"),
    "rounds of n of m": (pruning(structure="2:4", amount=None, schedule="linear"), "Leave --schedule out"),
    "a curve of n of m": (pruning(structure="2:4", amount=None, curve=8), "Leave --curve out"),
    "a block of nothing": (pruning(structure="0x4"), "There is no structure '0x4'"),
    "kinds of connections": (pruning(units="head", structure="weights"), "Leave --units out"),
    "a graph of what branches": (pruning(model="net.py:branching", weights=None, as_graph=True), "cannot be exported as a graph"),
    "local above 1": (pruning(local=2), "--local"),
    "distill above 1": (pruning(distill=2, tune=1), "--distill must"),
    "warm-up above 1": (pruning(warmup=2, tune=1), "--warmup must"),
    "features of no module": (pruning(features="head", tune=1), "no module 'head'"),
    "a rate of no training": (pruning(lr=0.1), "--lr is of the fine-tuning, of which there is none. Add --tune 5"),
    "rounds at once": (pruning(steps=8), "Add --schedule linear"),
    "no batch": (pruning(batch=0), "--batch"),
    "a share of an unknown cost": (pruning(amount=None, budget="flops=0.5"), "no cost 'flops'"),
    "no such sensitivity": (pruning(sensitivity="nowhere"), "nowhere does not exist"),
    "a sensitivity that is none": (pruning(sensitivity="w.safetensors"), "w.safetensors is damaged or was not written"),
    "a sensitivity for rounds": (pruning(sensitivity="s", schedule="cubic"), "--sensitivity"),
    "enough for rounds": (pruning(enough=0.9, schedule="cubic"), "--enough"),
    "enough above 1": (pruning(enough=1.5), "--enough"),
    "no such contexts": (pruning(contexts="net.py:nothere"), "nothere"),
    "no samples": (pruning(samples=0), "--samples must be at least 1"),
    "no samples to measure": ([*MEASURE, "s.safetensors", "--samples", "0"], "--samples must be at least 1"),
    "no batch to measure": ([*MEASURE, "s.safetensors", "--batch", "0"], "--batch must be at least 1"),
    "no batch to evaluate": (["evaluate", "out", "--batch", "0"], "--batch must be at least 1"),
    "seed below 0": (pruning(seed=-1), "0..4294967295"),
    "seed beyond 32 bits": (pruning(seed=2**32), "0..4294967295"),
    "seed of measure": ([*MEASURE, "s.safetensors", "--seed", "-1"], "0..4294967295"),
    "seed of demo": (["demo", "--seed", "-1"], "0..4294967295"),
    "gradually to a threshold": (pruning(amount=None, threshold=0.1, schedule="cubic"), "--amount"),
    "layers in rounds": (pruning(structure="layers", schedule="cubic"), "removes channels or connections. Leave --schedule out"),
    "an option that is not there": (pruning(speed=3), "--speed"),
    "data left out": (["prune", "net.py:build", "--out", "out"], "--data"),
    "no such command": (["proon"], "proon"),
    "an output that is a file": (pruning(out="net.py"), "is a file"),
    "an output that is the working folder": (pruning(out="."), "working"),
    "no result to evaluate": (["evaluate", "nowhere", "--data", "net.py:data"], "nowhere"),
    "no result to report": (["report", "."], "plan.json"),
    "example of inspect": (["inspect", "net.py:build", "--example", "1,4,32,32"], "example"),
    "sensitivity into no folder": ([*MEASURE, "no/s.safetensors"], "does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(case: str, here: Path, capsys: pytest.CaptureFixture[str]):
    before = files(here)
    words, fact = BAD[case]
    assert run(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("secateur: ") and said.err.count("\n") == 1 and said.err.endswith(".\n")
    assert fact in said.err
    assert files(here) == before


def test_it_says_which_version_it_is(capsys: pytest.CaptureFixture[str]):
    assert run(["--version"]) == 0
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert capsys.readouterr().out == f"secateur {project['version']}\n" and secateur.__version__ == project["version"]


def test_a_folder_that_is_not_ours_is_refused_before_anything_is_computed(here: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    (here / "out").mkdir()
    (here / "out" / "thesis.txt").write_text("years of work")
    monkeypatch.setattr(cli_prune, "read", lambda asked: pytest.fail("it began"))
    assert run(pruning()) == 2
    assert "--force" in capsys.readouterr().err
    assert (here / "out" / "thesis.txt").read_text() == "years of work"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the root user can write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(here: Path, capsys):
    here.chmod(0o500)
    try:
        assert run(pruning()) == 2
    finally:
        here.chmod(0o700)
    assert "cannot be written" in capsys.readouterr().err


def example_of(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert run([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 60 and max(map(len, said.splitlines())) <= 80, "the help does not fit a screen"
    found = re.search(r"Example: secateur (.*)\n\Z", said)  # on one line, to be copied
    assert found, "the help does not end with an example"
    return found[1].split()


RUNNING = "secateur: Running the code of 'net.py:build', which the plan in out names as its model.\n"


@pytest.mark.slow
def test_the_example_of_every_help_runs(here: Path, capsys: pytest.CaptureFixture[str]):
    for command in ("inspect", "measure", "prune", "evaluate", "explain", "report", "curves"):
        words = example_of(command, capsys)
        assert words[0] == command
        assert run(words) == 0
        said = capsys.readouterr()
        assert said.err == ("" if command != "evaluate" else RUNNING) and said.out
    assert {path.name for path in (here / "out").iterdir()} == {
        "model.safetensors", "plan.json", "split.json", "sensitivity.safetensors", "scores.safetensors", "units.json", "report.json",
        "report.html",
    }  # fmt: skip
    assert isinstance(read_sensitivity(here / "s.safetensors"), Sensitivity)
    assert example_of("demo", capsys) == ["demo"]


@pytest.mark.parametrize("command", ["measure", "prune", "curves"])
def test_the_help_lists_what_there_is_to_choose_from(command: str, capsys: pytest.CaptureFixture[str]):
    assert run([command, "--help"]) == 0
    lists = dict(re.findall(r"^  (Criteria|Scopes): (.*?)\n\n", capsys.readouterr().out, re.MULTILINE | re.DOTALL))
    named = {title: tuple(" ".join(names.split()).split(", ")) for title, names in lists.items()}
    assert named.pop("Criteria") == tuple(secateur.CRITERIA)
    assert named == ({"Scopes": (*secateur.SCOPES, *SCOPES_OF_A_RUN)} if command == "prune" else {})


def test_what_prune_writes_is_what_it_says(here: Path, capsys: pytest.CaptureFixture[str]):
    assert run(pruning(of="macs", local=0.3, contexts="class", tune=1, curve=16, criterion="net.py:upside_down")) == 0
    small, plan = load("out", build_of("net.py:build")), read_plan("out")
    assert plan.cost["macs"][1] <= 0.5 * plan.cost["macs"][0]
    assert sum(value.numel() for value in small.parameters()) == plan.cost["parameters"][1]
    assert {"model": "net.py:build", "weights": "w.safetensors", "data": "net.py:data", "tune": 1}.items() <= plan.made.items()
    story = json.loads((here / "out" / "report.json").read_text())
    assert list(story["table"]["rows"]) == ["dense", "pruned", "repaired", "tuned"]
    assert {"warmup": 0.0, "features": ""}.items() <= plan.made.items()
    assert set(story["curve"]) == {"net.py:upside_down, local 0.3", "magnitude", "random"}
    record = json.loads((here / "out" / "split.json").read_text())
    assert sorted(record["train"] + record["validation"] + record["test"]) == list(range(200))
    page = (here / "out" / "report.html").read_bytes()
    assert b"top-1 against the amount removed, on the validation split</h3>" in page
    (here / "out" / "report.html").unlink()
    assert run(["report", "out"]) == 0
    assert (here / "out" / "report.html").read_bytes() == page


def test_fine_tuning_as_it_is_asked_for_with_best_and_last_epoch(here: Path, monkeypatch: pytest.MonkeyPatch):
    real, seen = cli_prune.finetune, {}

    def watched(*arguments: object, **options: object) -> object:
        seen.update(options)
        tuned = real(*arguments, **options)
        return replace(tuned, best_epoch=1, last_model=copy.deepcopy(tuned.model))

    monkeypatch.setattr(cli_prune, "finetune", watched)
    assert run(pruning(of="macs", tune=2, warmup=0.5, features="3, 4", quiet=True)) == 0
    assert (seen["warmup"], seen["features"]) == (0.5, ("3", "4")) and seen["plan"].cost["macs"]
    rows = json.loads((here / "out" / "report.json").read_text())["table"]["rows"]
    assert list(rows) == ["dense", "pruned", "repaired", "tuned, last epoch", "tuned"]
    assert rows["tuned"]["parameters"] == rows["tuned, last epoch"]["parameters"]
    assert run(["evaluate", "out"]) == 0


def test_budgets_and_limits_of_the_command_line(here: Path):
    assert run(pruning(amount=None, budget="macs=600k, parameters=1,000", keep="0", least="3=2,*=0.1", most=0.9, quiet=True)) == 0
    plan = read_plan("out")
    assert plan.cost["macs"][1] <= 600e3 and plan.cost["parameters"][1] <= 1000
    assert plan.made["budget"] == "macs=600k, parameters=1,000" and plan.made["keep"] == ["0"]
    assert plan.keep["0"].all() and plan.keep["3"].sum() >= 2
    assert run(pruning(amount=0.3, of="activations", scope="per-mac", out="b", quiet=True)) == 0
    plan = read_plan("b")
    assert plan.cost["activations"][1] <= 0.7 * plan.cost["activations"][0]


def test_as_much_as_costs_so_much_accuracy(here: Path):
    assert run(pruning(amount=None, drop=100, of="macs", quiet=True)) == 0
    made = read_plan("out").made
    assert len(made["trials"]) == 7 and made["drop"] == 100 and made["reached"] >= 0
    assert made["amount"] == max(amount for amount, value in made["trials"] if value is not None)
    (said,) = (note for note in json.loads((here / "out" / "report.json").read_text())["table"]["notes"] if "--drop" in note)
    assert said == (
        f"--drop 100 removes {100 * made['amount']:.1f} % of the MACs; top-1 on the validation split {100 * made['reached']:.2f}, "
        f"dense {100 * made['dense']:.2f}, at least 0.00 asked for. The table is of the test split."
    )


def test_scores_per_millisecond_and_why_they_decided(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clock, "operator_ms", lambda call: 0.001 * sum(call.sizes))
    monkeypatch.setattr(clock, "whole_ms", lambda models, inputs, seconds: {"dense": 1.0, "half": 0.9})
    assert run(pruning(amount=0.1, of="latency", scope="per-ms", curve=20, quiet=True)) == 0
    plan = read_plan("out")
    assert plan.made["scope"] == "per-latency" and plan.cost["latency"][1] <= 0.9 * plan.cost["latency"][0]
    group = next(name for name, mask in plan.keep.items() if not mask.all())
    place = int((~plan.keep[group]).nonzero()[0])
    capsys.readouterr()
    assert run(["explain", "out", "--unit", f"{group}:{place}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cut"] == plan.made["cut"] >= told["ranked_by"] != told["score"]


FOLDERS: dict[str, tuple[dict[str, object], str, str]] = {
    "channels": ({}, "0:3", "0:3 (channel) "),
    "channels, round by round": ({"schedule": "linear", "steps": 2}, "0:3", "after rounds that each measured anew"),
    "channels of a graph": ({"as_graph": True, "scope": "layer"}, "0:3", "0:3 (channel) "),
    "channels of a file": ({"sensitivity": "s.safetensors", "scope": "lamp"}, "0:3", ", ranked as "),
    "connections": ({"structure": "weights"}, "1.conv.weight:3,2,1,1", "1.conv.weight:3,2,1,1 (connection) "),
    "connections, round by round": ({"structure": "weights", "schedule": "cubic", "steps": 2}, "6.weight:3,2", "(connection) "),
    "blocks": ({"structure": "4x1"}, "1.conv.weight:1,2,1,1", "1.conv.weight:1,2,1,1 (block) "),
    "blocks, round by round": ({"structure": "blocks", "schedule": "cubic", "steps": 2}, "6.weight:3,1", "(block) "),
    "n of m": ({"structure": "2:4", "amount": None}, "1.conv.weight:3,2,1,1", "of its run of 4 connections along dimension 1 score higher"),
    "layers": ({"structure": "layers", "scope": "per-mac"}, "layers:1", "layers:1 (2) (layer) "),
    "a layer by its path": ({"structure": "layers", "amount": None, "threshold": 0.1}, "2", "layers:1 (2) (layer) "),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_explain_takes_every_folder_that_prune_writes(case: str, here: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli_prune, "compare", lambda *models, **options: Table({}, {}))  # what takes the most time is not asked for here
    options, unit, says = FOLDERS[case]
    usual: dict[str, object] = {"model": "net.py:residual", "weights": None, "amount": 0.4, "samples": 64, "quiet": True}
    if "sensitivity" in options:
        assert run(["measure", "net.py:residual", "--data", "net.py:data", "--out", "s.safetensors", "--quiet"]) == 0
    else:
        usual["contexts"] = "class"
    assert run(pruning(**usual | options)) == 0
    assert run(["explain", "out", "--unit", unit]) == 0
    said, plan = capsys.readouterr(), read_plan("out")
    assert says in said.out and said.err == ""
    assert f" of {sum(mask.numel() for mask in plan.keep.values()):,} from the least needed" in said.out
    assert ("who needs it:" in said.out) == (usual.get("contexts") == "class")
    assert run(["explain", "out", "--unit", "elsewhere:1"]) == 2
    units = {"channels": "channels", "layers": "layers", "4x1": "blocks", "1x4": "blocks"}.get(plan.structure, "connections")
    assert f"Its units are {units}." in capsys.readouterr().err


def test_a_sensitivity_is_used_instead_of_measuring_again(here: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    usual = {"criterion": "fisher", "contexts": "net.py:halves", "local": 0.3, "quiet": True}
    assert run(pruning(**usual)) == 0
    words = [*MEASURE, "s.safetensors", "--weights", "w.safetensors", "--criterion", "fisher", "--contexts", "net.py:halves", "--quiet"]
    assert run(words) == 0
    with monkeypatch.context() as patch:
        patch.setattr(cli_prune, "measure", lambda *arguments, **options: pytest.fail("it measured again"))
        assert run(pruning(sensitivity="s.safetensors", local=0.3, out="again", quiet=True)) == 0
        assert run(pruning(sensitivity="s.safetensors", **usual, out="again")) == 0
    for name in ("model.safetensors", "scores.safetensors", "sensitivity.safetensors"):
        assert (here / "again" / name).read_bytes() == (here / "out" / name).read_bytes()
    made = read_plan("again").made
    assert (made["criterion"], made["contexts"]) == ("fisher", "halves")
    story = json.loads((here / "again" / "report.json").read_text())
    assert {one["key"] for one in story["depth"]["lost"]} == {"half 0", "half 1"}
    capsys.readouterr()
    for options, fact in (
        ({"criterion": "l2"}, "--criterion l2 asks for a measurement, but s.safetensors is one (by fisher, halves, "),
        ({"criterion": "taylor"}, "--criterion taylor asks"),
        ({"contexts": "batch"}, "--contexts batch asks"),
        ({"samples": 7, "repair": "none"}, "--samples 7 asks"),
        ({"contexts": "sample"}, "--contexts sample"),
        ({"enough": 0.5}, "--enough 0.5"),
        ({"weights": None, "seed": 3}, "measured on other weights"),
        ({"structure": "weights"}, "in the group 0.weight"),
    ):
        assert run(pruning(sensitivity="s.safetensors", out="third", **options)) == 2
        said = capsys.readouterr().err
        assert fact in said and said.count("\n") == 1
    assert not (here / "third").exists()


def test_shares_and_sizes_in_one_budget(here: Path):
    assert run(pruning(amount=None, budget="macs=0.4, bytes=3.5 kB", quiet=True)) == 0
    plan = read_plan("out")
    assert plan.cost["macs"][1] <= 0.6 * plan.cost["macs"][0] and plan.cost["bytes"][1] <= 3500
    assert plan.made["amount"] == {"macs": 0.4}
    assert run(pruning(amount=None, budget="parameters=0.2, macs=0.6", quiet=True)) == 0
    plan = read_plan("out")
    assert plan.cost["macs"][1] <= 0.4 * plan.cost["macs"][0] and plan.made["amount"] == {"parameters": 0.2, "macs": 0.6}


def test_measuring_stops_when_it_is_sure_enough(here: Path):
    assert run(pruning(enough=0.1, batch=4, quiet=True)) == 0
    story = json.loads((here / "out" / "report.json").read_text())
    assert story["depth"]["sure"]["samples"] == 32 < 160 and story["depth"]["sure"]["agreement"] >= 0.1


def test_the_report_shows_the_sensitivity_in_depth(here: Path):
    assert run(pruning(contexts="class", local=0.3, quiet=True)) == 0
    depth = json.loads((here / "out" / "report.json").read_text())["depth"]
    assert [row["name"] for row in depth["rows"]] == ["0", "3"] and len(depth["lost"]) == 10
    page = (here / "out" / "report.html").read_text()
    assert 'id="map"' in page and 'id="lost"' in page and "class 3" in page and 'id="sure"' in page


WRONG: dict[str, Callable[[dict], object]] = {
    "a number for a list": lambda told: told["reasons"][0].update(histogram=3),
    "bins of nothing": lambda told: told["reasons"][0].update(histogram=[[0.0, 1.0, 0, 0]]),
    "a number beyond all numbers": lambda told: told["layers"][0].update(kept=10**400),
    "powers beyond all numbers": lambda told: told["reasons"][0].update(histogram=[[0.0, 1e300, 1, 1]]),
    "a layer that is not there": lambda told: told["reasons"][0].update(group="nowhere"),
    "a figure that is none": lambda told: told["table"]["rows"]["dense"].update(top1="best"),
    "no table": lambda told: told.pop("table"),
}


def test_a_damaged_story_is_refused_whatever_is_wrong_in_it(here: Path, capsys: pytest.CaptureFixture[str]):
    assert run(pruning(quiet=True)) == 0
    before = files(here / "out")
    for case, damage in WRONG.items():
        told = json.loads(before["report.json"])
        damage(told)
        (here / "out" / "report.json").write_text(json.dumps(told))
        assert run(["report", "out"]) == 2, case
        said = capsys.readouterr().err
        assert said.startswith("secateur: ") and said.count("\n") == 1 and "Prune again" in said, case
        assert (here / "out" / "report.html").read_bytes() == before["report.html"]


def test_connections_are_zeroed_and_stay_zero(here: Path):
    assert run(pruning(structure="weights", amount=0.8, tune=1, quiet=True)) == 0
    weights = [value for value in load_file(here / "out" / "model.safetensors").values() if value.dim() >= 2]
    assert sum(int((value == 0).sum()) for value in weights) == round(0.8 * sum(value.numel() for value in weights))


def test_two_of_every_four_stay(here: Path, capsys: pytest.CaptureFixture[str]):
    words = [part for part in pruning(structure="2:4", amount=None, curve=None, tune=1) if part != "--quiet"]
    assert run(words) == 0
    stored = load_file(here / "out" / "model.safetensors")
    assert (stored["3.weight"].unflatten(1, (2, 4)) != 0).sum(2).eq(2).all() and stored["0.weight"].all()
    assert read_plan("out").frozen == {"0.weight": "its 3 inputs are no multiple of 4"}
    assert run(["report", "out"]) == 0 and "the 2 best stay" in (here / "out" / "report.html").read_text()
    capsys.readouterr()
    assert run(["inspect", "net.py:build", "--example", "1,3,32,32", "--structure", "2:4"]) == 0
    assert "its 3 inputs are no multiple of 4" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["model.safetensors", "plan.json"])
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"x" + content])
def test_a_damaged_result_is_refused(name: str, damage: Callable[[bytes], bytes], here: Path, capsys: pytest.CaptureFixture[str]):
    from secateur import prune, save

    torch.manual_seed(0)
    model = build_of("net.py:build")()
    inputs, labels = torch.randn(20, 3, 32, 32), torch.arange(20) % 10
    pruned = prune(model, inputs, [(inputs, labels)], torch.nn.functional.cross_entropy, amount=0.5)
    save("out", pruned.model, pruned.plan)
    (here / "out" / name).write_bytes(damage((here / "out" / name).read_bytes()))
    assert run(["evaluate", "out", "--model", "net.py:build", "--data", "net.py:data"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_inspect_tells_what_may_leave_and_what_not(here: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["inspect", "net.py:build", "--example", "1,3,32,32"]) == 0
    said = capsys.readouterr().out
    assert "2 groups, 16 units" in said and "MACs" in said and "output of the model" in said


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, list[str]], dict[str, list[str]], str]:
    """The lines of what inspect says may leave and must stay, by the name of the group, and all of it."""
    assert run(words) == 0
    said = capsys.readouterr().out
    leaves, _, stays = said.partition("What stays whole")
    lines = [{line.split()[0]: line.split()[1:] for line in part.splitlines() if line.strip()} for part in (leaves, stays)]
    return lines[0], lines[1], said


@pytest.mark.parametrize(
    ("model", "structure", "says"),
    [
        ("build", "layers", "Nothing may leave: no module of it is skipped by a residual connection. Try another --structure. 0 groups"),
        ("one_block", "layers", "1 1 layer it is the only layer that could be skipped, and one has to stay"),
        ("flat", "channels", "Nothing may leave: no dimension of its weights is a channel. Try another --structure. 0 groups"),
    ],
)
def test_inspect_says_why_nothing_may_leave(model: str, structure: str, says: str, here: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["inspect", f"net.py:{model}", "--example", "1,3,32,32", "--structure", structure]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert says in said and said.startswith("Nothing may leave") and "What may leave" not in said


def test_inspect_says_where_a_graph_would_reach_further(here: Path, capsys: pytest.CaptureFixture[str]):
    words = ["inspect", "net.py:written", "--example", "1,3,32,32"]
    leaves, stays, said = told(words, capsys)
    assert "b" in leaves and "a" not in leaves and stays["a"][:2] == ["8", "channel"] and "fixed in the code" in " ".join(said.split())
    assert "note: 1 group of a size that is fixed in the code" in said and "try --as-graph" in " ".join(said.split())
    leaves, stays, said = told([*words, "--as-graph"], capsys)
    assert leaves["a"][:2] == ["8", "channel"] and "a" not in stays and "--as-graph" not in said
    assert "--as-graph" not in told(["inspect", "net.py:build", "--example", "1,3,32,32"], capsys)[2]


def test_inspect_shows_kinds_of_units_and_takes_those_that_are_asked_for(here: Path, capsys: pytest.CaptureFixture[str]):
    words = ["inspect", "net.py:attending", "--example", "2,3,32,32"]
    leaves, stays, _ = told(words, capsys)
    assert leaves["qkv"][:2] == ["4", "head"] and "head dimension" in " ".join(stays["qkv#2"])
    leaves, stays, _ = told([*words, "--units", "head-dimension"], capsys)
    assert [line[1:3] for name, line in leaves.items() if name.startswith("qkv")] == [["head", "dimension"]] * len(
        [name for name in leaves if name.startswith("qkv")]
    )
    assert "no unit that was asked for" in " ".join(" ".join(stays["qkv"]).split())
    both, _, _ = told([*words, "--units", "head, head dimension"], capsys)
    assert len([name for name in both if name.startswith("qkv")]) > 1


@pytest.mark.slow
def test_a_result_of_a_graph_is_pruned_further_and_evaluated_by_what_its_plan_says(here: Path, capsys: pytest.CaptureFixture[str]):
    words = pruning(model="net.py:written", weights=None, of="macs", units="channel", quiet=True)
    assert run(words) == 2 and "at most" in capsys.readouterr().err  # in its class only a little can go
    assert run([*words, "--as-graph", "--tune", "1"]) == 0
    plan = read_plan("out")
    assert plan.made["as_graph"] is True and plan.made["units"] == ["channel"] and plan.cost["macs"][1] <= 0.5 * plan.cost["macs"][0]
    assert "a" in plan.keep
    rows = json.loads((here / "out" / "report.json").read_text())["table"]["rows"]
    assert rows["tuned"]["parameters"] == plan.cost["parameters"][1] < rows["dense"]["parameters"]
    capsys.readouterr()
    assert run(["evaluate", "out"]) == 0
    said = capsys.readouterr()
    assert "pruned" in said.out and said.err.count("\n") == said.err.count("Running the code of 'net.py:") == 2
    with pytest.raises(PlanMismatch, match="as_graph"):
        load("out", build_of("net.py:written"))


@pytest.mark.slow
def test_a_graph_is_made_again_by_the_example_that_the_plan_names(here: Path, capsys: pytest.CaptureFixture[str]):
    assert run(pruning(model="net.py:written", weights=None, as_graph=True, quiet=True, example="2,3,32,32")) == 0
    plan = (here / "out" / "plan.json").read_text()
    assert '"example": "2,3,32,32"' in plan
    facts = {
        "1,3,32": "cannot be exported",
        "1,3,x,32": "example cannot be made again",
        "2,3,16,16": "exported for inputs",
        "2,3,32,32": "",
    }
    for example, fact in facts.items():
        (here / "out" / "plan.json").write_text(plan.replace("2,3,32,32", example))
        code = run(["evaluate", "out", "--model", "net.py:written", "--data", "net.py:data"])
        said = capsys.readouterr().err
        assert (code, said) == (0, "") if not fact else (code == 2 and fact in said and said.count("\n") == 1), said


def test_measure_knows_the_units_of_a_graph(here: Path, capsys: pytest.CaptureFixture[str]):
    words = ["measure", "net.py:written", "--data", "net.py:data", "--out", "s.safetensors", "--samples", "32"]
    assert run(words) == 0 and "a" not in read_sensitivity("s.safetensors").global_
    assert run([*words, "--as-graph"]) == 0 and read_sensitivity("s.safetensors").global_["a"].shape == (8,)


@pytest.mark.slow
def test_a_gradual_run_of_a_graph_goes_on_after_a_stop(here: Path, monkeypatch: pytest.MonkeyPatch):
    words = pruning(
        model="net.py:written", weights=None, as_graph=True, units="channel", schedule="linear", steps=2, tune=1, of="macs", quiet=True
    )
    assert run([*words, "--out", "whole"]) == 0
    for name in ("finetune", "compare"):  # after the first round, and after the last
        with monkeypatch.context() as patch:
            times, real = [], getattr(cli_prune, name)

            def stopping(*arguments: object, times=times, real=real, name=name, **options: object) -> object:
                times.append(1)
                if len(times) == (2 if name == "finetune" else 1):
                    raise KeyboardInterrupt
                return real(*arguments, **options)

            patch.setattr(cli_prune, name, stopping)
            assert run(words) == 130
    assert run([word for word in words if word != "--as-graph"]) == 2
    assert run(words) == 0
    assert files(here / "out")["model.safetensors"] == files(here / "whole")["model.safetensors"]
    assert read_plan("out").made["as_graph"] is True and "a" in read_plan("out").keep
    assert run(["evaluate", "out"]) == 0


def test_ctrl_c_leaves_with_130_and_says_what_is_kept(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def interrupted(*arguments: object, **words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_prune, "measure", interrupted)
    before = files(here)
    assert run(pruning()) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert files(here) == before


GRADUAL = pruning(schedule="linear", steps=3, tune=2, structure="channels", of="macs", quiet=True)


def begun(here: Path, until: str) -> subprocess.Popen[str]:
    """A gradual run that has got so far. It yields the processor to us, so that it is not through before we look."""
    command = ["nice", "-n", "19", sys.executable, "-m", "secateur", *GRADUAL]
    process = subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 600  # it takes seconds, but gets no time where others want it
    while not (here / until).exists():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(f"It did not get to {until}: {process.communicate()[1]}")
        time.sleep(0.005)
    return process


@pytest.mark.slow
def test_a_gradual_run_goes_on_after_a_kill_and_after_ctrl_c(here: Path, capsys: pytest.CaptureFixture[str]):
    process = begun(here, "out.rounds/round-1/plan.json")
    process.kill()
    process.communicate()
    assert not (here / "out").exists()

    process = begun(here, "out.rounds/tune-2/run.safetensors")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)  # as above, it gets no time where others want it
    assert process.returncode == 130 and "out.rounds" in said and len(said.strip().splitlines()) == 1
    assert not (here / "out").exists()

    other = [word if word != "2" else "1" for word in GRADUAL]  # --tune 1
    assert run(other) == 2
    assert "--tune 2" in capsys.readouterr().err

    torch_threads = torch.get_num_threads()
    assert run(GRADUAL) == 0
    assert not (here / "out.rounds").exists() and torch.get_num_threads() == torch_threads
    told = json.loads((here / "out" / "report.json").read_text())
    assert list(told["table"]["rows"]) == ["dense", "after 3 rounds"]
    plan = read_plan("out")
    assert plan.cost["macs"][1] <= 0.5 * plan.cost["macs"][0]

    resumed = files(here / "out")["model.safetensors"]
    assert run([*GRADUAL, "--out", "again"]) == 0
    assert files(here / "again")["model.safetensors"] == resumed  # as if nothing had happened


@pytest.mark.slow
def test_a_gradual_run_that_stopped_after_its_last_round_trains_nothing_again(here: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*arguments: object, **words: object) -> None:
        raise KeyboardInterrupt

    def refused(*arguments: object, **words: object) -> None:
        raise AssertionError("it was trained already")

    assert run([*GRADUAL, "--out", "whole"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(cli_prune, "compare", interrupted)
        assert run(GRADUAL) == 130
    with monkeypatch.context() as patch:
        patch.setattr(cli_prune, "finetune", refused)
        assert run(GRADUAL) == 0
    assert files(here / "out")["model.safetensors"] == files(here / "whole")["model.safetensors"]
    history = json.loads((here / "out" / "report.json").read_text())["history"]
    assert [epoch["epoch"] for epoch in history] == list(range(1, 7))  # two in each of three rounds, counted on


def test_groups_that_are_nearly_gone_are_told(here: Path, capsys: pytest.CaptureFixture[str]):
    assert run(pruning(amount=0.95, of="units", structure="weights")) == 0
    assert "Less than a tenth is left of" in capsys.readouterr().out


def test_groups_that_are_nearly_gone_are_counted_and_named():
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    whole = secateur.select({"0": torch.rand(32), "2": torch.rand(32)}, secateur.channels(model, torch.randn(2, 4)), amount=0.0)
    little = torch.arange(32) == 3
    (one,) = cli_prune.nearly_empty(replace(whole, keep={**whole.keep, "2": little}))
    assert one.startswith("Less than a tenth is left of 1 group (group 2: 1 of 32). If") and "--least 0.1" in one
    (both,) = cli_prune.nearly_empty(replace(whole, keep={"0": little, "2": little}))
    assert both.startswith("Less than a tenth is left of 2 groups (group 0: 1 of 32, 2: 1 of 32). If")
    assert cli_prune.nearly_empty(whole) == []


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ((0.9, 2), (0.5, 7), "Of its worst class (7) the result has 50.0 % right, the dense model 90.0 % of its own worst (2)"),
        ((0.05, 2), (0.0, 2), "Of its worst class (2) the result has 0.0 % right, the dense model 5.0 % of its own worst (2)"),
        ((0.9, 2), (0.85, 7), ""),
        ((0.0, 2), (0.0, 2), ""),
        ((0.5, 2), (0.9, 2), ""),
        (None, None, ""),
    ],
)
def test_a_worst_class_that_fell_far_is_told(before: tuple[float, int] | None, after: tuple[float, int] | None, says: str):
    rows = {"dense": before, "pruned": (0.0, 0), "tuned": after}  # the last is the result
    table = Table({name: {"worst_class": found[0], "worst_class_is": found[1]} if found else {} for name, found in rows.items()}, {})
    said = cli_prune.worst_off(table, mock.Mock(tune=0, contexts="batch"))
    assert all(line.endswith("try less, or --tune 5, or --contexts class --local 0.3.") for line in said)
    assert all(line.endswith("try less.") for line in cli_prune.worst_off(table, mock.Mock(tune=2, contexts="class")))
    assert len(said) == bool(says) and all(line.startswith(says) and line.count(". ") == 0 for line in said)


def test_it_stands_below_the_table(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    real = cli_prune.compare

    def fallen(*arguments: object, **options: object) -> Table:
        table = real(*arguments, **options)
        worst = {name: {"worst_class": float(name == "dense"), "worst_class_is": 3.0} for name in table.rows}
        return replace(table, rows={name: {**row, **worst[name]} for name, row in table.rows.items()})

    monkeypatch.setattr(cli_prune, "compare", fallen)
    assert run(pruning()) == 0
    assert "Of its worst class (3) the result has 0.0 % right" in capsys.readouterr().out


def test_a_budget_that_pulls_far_is_told_below_the_table(here: Path, capsys: pytest.CaptureFixture[str]):
    with (here / "net.py").open("a") as file:
        file.write(
            "def early():\n    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(16), nn.Conv2d(32, 4, 1),"
            " nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 10))\n"
        )
    options = {"model": "net.py:early", "weights": None, "of": "activations", "scope": "per-activations"}
    assert run(pruning(**options, amount=0.88)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Few groups decide the budget of activations: 0 keeps" in said and "would be lost" in said
    assert "(--least 0.1)" in said and "group 0:" not in said  # which would say it twice
    assert "Few groups decide" in json.loads((here / "out" / "report.json").read_text())["table"]["notes"][-1]
    assert run(pruning(**options, amount=0.3, out="less")) == 0 and "Few groups" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["channels", "weights"])
def test_a_gradual_run_tells_of_the_dense_model_also_after_a_stop(structure: str, here: Path, monkeypatch: pytest.MonkeyPatch):
    words = pruning(schedule="linear", steps=3, tune=1, structure=structure, local=0.3, contexts="class", curve=16, quiet=True)
    assert run(words) == 0
    assert run([*MEASURE, "s.safetensors", "--weights", "w.safetensors", "--structure", structure, "--contexts", "class"]) == 0
    dense = read_sensitivity("s.safetensors")
    assert all(torch.equal(value, dense.global_[name]) for name, value in read_sensitivity("out/sensitivity.safetensors").global_.items())
    scores = load_file(here / "out" / "scores.safetensors")
    assert scores.keys() == dense.global_.keys()
    assert all(torch.equal(value, scores[name]) for name, value in merge(dense, 0.3).items())
    story = json.loads((here / "out" / "report.json").read_text())
    assert [group["group"] for group in story["reasons"]] == list(scores) and {group["cut"] for group in story["reasons"]} == {None}
    assert any(note.startswith("Scores are of the first round, on the dense model") for note in story["notes"])

    times, real = [], cli_prune.finetune

    def stopping(*arguments: object, **options: object) -> object:
        times.append(1)
        if len(times) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(cli_prune, "finetune", stopping)
    again = [*words, "--out", "again"]
    assert run(again) == 130 and run(again) == 0
    for name in ("sensitivity.safetensors", "scores.safetensors"):
        assert (here / "again" / name).read_bytes() == (here / "out" / name).read_bytes()
    assert json.loads((here / "again" / "report.json").read_text())["reasons"] == story["reasons"]


def test_a_folder_in_the_way_of_the_rounds_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "out.rounds").mkdir()
    (here / "out.rounds" / "notes.txt").write_text("mine")
    assert run(GRADUAL) == 2
    assert files(here / "out.rounds") == {"notes.txt": b"mine"}


def test_without_typer_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delitem(sys.modules, "secateur.cli")
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main() == 2
    assert "secateur[cli]" in capsys.readouterr().err


def test_an_unexpected_error_is_shown(here: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*arguments: object, **words: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(cli_prune, "measure", broken)
    with pytest.raises(ZeroDivisionError):
        run(pruning())


def test_a_model_of_torchvision(here: Path, capsys: pytest.CaptureFixture[str]):
    need_torchvision()
    assert run(["inspect", "torchvision:resnet18", "--example", "1,3,64,64"]) == 0
    assert "11,689,512 parameters" in capsys.readouterr().out
