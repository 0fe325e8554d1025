"""A result is measured anew on the samples it was meant for, and nothing that came with it runs unasked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("typer")

from secateur import prune, read_plan, save
from secateur.cli import run
from secateur.frontends.data import data_of
from secateur.frontends.models import build_of

NET = """
import pathlib
import torch
from torch import nn

pathlib.Path("ran").touch()

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

def data():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(90, 6, generator=draw), torch.arange(90) % 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with net.py, w.safetensors and a result in out."""
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    result()
    return tmp_path


def result(**made: object) -> None:
    torch.manual_seed(0)
    model, splits = build_of("net.py:build")(), data_of("net.py:data", 3)
    save_file(model.state_dict(), "w.safetensors")
    pruned = prune(model, torch.randn(2, 6), splits.train, torch.nn.functional.cross_entropy, amount=0.5)
    plan = pruned.plan.note(**({"model": "net.py:build", "data": "net.py:data", "seed": 3, "weights": "w.safetensors"} | made))
    save("out", pruned.model, plan, force=True, extra={"split.json": json.dumps(splits.record)})
    Path("ran").unlink()


INSIDE: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "a file": ("out/evil.py:build", lambda patch: None),
    "a file by a roundabout way": ("out/../out/evil.py:build", lambda patch: None),
    "a link into the folder": ("link.py:build", lambda patch: Path("link.py").symlink_to(Path("out/evil.py").resolve())),
    "a module below the working folder": ("out.evil:build", lambda patch: None),
    "a module of a path": ("evil:build", lambda patch: patch.syspath_prepend(Path("out").resolve())),
    "a file of the working folder": ("evil.py:build", lambda patch: patch.chdir("out")),
    "a module of the working folder": ("evil:build", lambda patch: patch.chdir("out")),
    "a module that imports from the working folder": ("secateur.demo:build", lambda patch: patch.chdir("out")),
}


@pytest.mark.parametrize("name", ["model", "data"])
@pytest.mark.parametrize("case", INSIDE)
def test_code_in_the_folder_never_runs_unasked(case: str, name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    spec, arrange = INSIDE[case]
    result(**{name: spec.replace("build", name if name == "data" else "build")})
    (here / "out" / "evil.py").write_text(NET.replace('"ran"', repr(str(here / "evil ran"))))
    arrange(monkeypatch)
    assert run(["evaluate", str(here / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "if you trust it" in said.err
    assert not list(here.rglob("*ran"))  # nor did any other code that the plan names
    given = {"model": "net.py:build", "data": "net.py:data", name: f"out/evil.py:{'data' if name == 'data' else 'build'}"}
    monkeypatch.chdir(here)
    assert run(["evaluate", "out", "--model", given["model"], "--data", given["data"]]) == 0
    assert (here / "evil ran").exists()


def test_code_outside_that_the_plan_names_is_said_to_run(here: Path, capsys):
    assert run(["evaluate", "out"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"secateur: Running the code of {spec!r}, which the plan in out names as its {name}."
        for name, spec in (("model", "net.py:build"), ("data", "net.py:data"))
    ]
    assert run(["evaluate", "out", "--model", "net.py:build", "--data", "net.py:data"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("spec", ["~nobody at all/net.py:build", "a\0b.py:build", "a\0b:build", "..:build", ":build", "net.py"])
def test_a_plan_that_names_nothing_sensible_is_one_sentence(spec: str, here: Path, capsys):
    result(model=spec)
    assert run(["evaluate", "out"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("secateur: ")


@pytest.mark.slow
def test_the_dense_model_stands_beside_it(here: Path, capsys):
    def heads() -> str:
        assert run(["evaluate", "out"]) == 0
        return capsys.readouterr().out

    assert "dense" in heads()
    save_file({"0.weight": torch.zeros(2, 2)}, "w.safetensors")
    assert "The dense model is not shown: The weights in w.safetensors do not fit" in " ".join(heads().split())
    (here / "w.safetensors").unlink()
    assert "dense" not in heads()
    torch.save(torch.nn.Linear(2, 2), "whole.pt")  # could run code when it is read
    result(weights="whole.pt")
    assert "could run code, so it is not read" in " ".join(heads().split())


@pytest.mark.parametrize("change", [("randn(90", "randn(120"), ("arange(90)", "arange(90).flip(0).div(2).long()")])
def test_data_that_changed_is_refused(change: tuple[str, str], here: Path, capsys):
    changed = NET.replace(*change).replace("torch.arange(90)", "torch.arange(120)" if "120" in change[1] else "torch.arange(90)")
    (here / "net.py").write_text(changed)
    assert run(["evaluate", "out"]) == 2
    assert "split of net.py:data is not the one in" in capsys.readouterr().err
    (here / "other.py").write_text(changed)
    assert run(["evaluate", "out", "--data", "other.py:data"]) == 0


@pytest.mark.parametrize("text", ["", "[1]", "[" * 100_000, '{"data": "net.py:data", "test": 3}'])
def test_a_damaged_split_is_said(text: str, here: Path, capsys):
    (here / "out" / "split.json").write_text(text)
    assert run(["evaluate", "out"]) == 2
    assert "split.json" in capsys.readouterr().err


def test_a_seed_that_no_run_can_have_had_is_said(here: Path, capsys):
    result(seed=-1)
    assert read_plan("out").made["seed"] == -1
    assert run(["evaluate", "out"]) == 2
    assert "0..4294967295" in capsys.readouterr().err
