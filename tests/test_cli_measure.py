"""`secateur measure`: contexts of the user's own, stopping early, going on after a stop, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")

from secateur import read_sensitivity, resume
from secateur.cli import run
from secateur.cli_measure import Early, contexts_of, ends, sure
from secateur.contexts import CONTEXTS
from secateur.errors import BadInput
from secateur.sensitivity import Sensitivity
from secateur.sure import Stability

NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

def data():
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 3
    return torch.randn(400, 6, generator=draw) + y[:, None], y

def parity(batch):
    return ["odd" if y % 2 else "even" for y in batch[1].tolist()]
"""
MEASURE = ["measure", "net.py:build", "--data", "net.py:data", "--batch", "8", "--out"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_contexts_are_names_or_functions() -> None:
    assert [contexts_of(name) for name in CONTEXTS] == [*CONTEXTS]
    keys = contexts_of("net.py:parity")
    assert not isinstance(keys, str) and keys((torch.zeros(3), torch.tensor([0, 1, 2]))) == ["even", "odd", "even"]
    with pytest.raises(BadInput, match=r"no context 'epoch'. Choose batch, sample, class, or give file\.py:function"):
        contexts_of("epoch")


def test_keys_of_the_users_own_are_measured_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*MEASURE, "s", "--contexts", "net.py:parity"]) == 0
    found = read_sensitivity("s")
    assert [*found.keys] == ["even", "odd"] and found.contexts == "parity"
    said = capsys.readouterr().out
    assert "odd (" in said and "class" not in said and "Halves of the data agree on" in said and "320 samples, 2 contexts" in said


def test_it_stops_when_it_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*MEASURE, "s", "--enough", "0.5", "--amount", "0.8"]) == 0
    found = read_sensitivity("s")
    assert 8 <= found.count < 40 and found.stability and found.stability.agreement >= 0.5 and found.stability.amount == 0.8
    said = " ".join(capsys.readouterr().out.split())
    assert f"{8 * found.count} samples, {found.count} contexts" in said
    assert f"Stopped early, after {8 * found.count} samples and {found.count} contexts: at least 50% was asked for (--enough 0.5)." in said
    assert said.count("% of what would leave") == 1  # what was found


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--enough", "1"], "Not stopped early: it took all 320 samples and 40 contexts."),
        (["--enough", "0", "--samples", "72"], "Stopped early, after 64 samples and 8 contexts: "),  # before the last batch, which was read
        (["--enough", "0", "--samples", "64"], "Not stopped early: it took all 64 samples and 8 contexts."),
        (["--enough", "0", "--contexts", "class", "--samples", "72"], "Stopped early, after "),
        ([], ""),
    ],
)
def test_it_says_what_it_took_and_whether_it_stopped_early(capsys: pytest.CaptureFixture[str], options: list[str], says: str) -> None:
    assert run([*MEASURE, "s", *options]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert says in said and ("topped early" in said) == bool(options)


def test_a_checkpoint_goes_when_it_is_done(here: Path) -> None:
    assert run([*MEASURE, "s", "--checkpoint", "c"]) == 0
    assert sorted(path.name for path in here.glob("[sc]")) == ["s"]


def test_ctrl_c_says_what_is_kept_and_the_same_command_that_it_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Early, done: int, total: int | None) -> None:
        if done == 9:
            raise KeyboardInterrupt

    words = [*MEASURE, "s", "--checkpoint", "c"]
    with monkeypatch.context() as patch:
        patch.setattr(Early, "progress", interrupted)
        assert run(words) == 130  # before the first 30 seconds
        assert "Stopped; nothing was written." in capsys.readouterr().err and not (here / "c").exists()
        patch.setattr(resume, "EVERY", 0.0)
        assert run(words) == 130
    said = capsys.readouterr()
    assert "Stopped; what was measured so far is in c, and the same command goes on from there." in said.err and (here / "c").exists()
    assert "goes on" not in said.out
    assert run(words) == 0 and not (here / "c").exists()
    assert capsys.readouterr().out.startswith("goes on from c\n")
    assert run([*MEASURE, "t"]) == 0
    torch.testing.assert_close(read_sensitivity("s").global_, read_sensitivity("t").global_, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["s", "--contexts", "epoch"], "There is no context 'epoch'"),
        (["s", "--contexts", "net.py:none"], "none"),
        (["s", "--enough", "90", "--weights", "nowhere"], "--enough must lie in 0..1, but it is 90."),  # before anything is read
        (["s", "--amount", "-1", "--weights", "nowhere"], "--amount must lie in 0..1, but it is -1."),
        (["s", "--checkpoint", "no/where"], "its folder does not exist"),
        (["s", "--checkpoint", "net.py"], "net.py is damaged"),
    ],
)
def test_what_cannot_be_is_one_line(capsys: pytest.CaptureFixture[str], options: list[str], says: str) -> None:
    assert run([*MEASURE, *options]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not Path("s").exists()


def scores(**means: float) -> Sensitivity:
    values = {name: torch.full((2,), mean) for name, mean in means.items()}
    return Sensitivity(values, values, values)


def test_the_early_ranking_names_both_ends() -> None:
    assert ends(scores(a=0.1, b=0.4, c=0.3, d=0.2, e=0.25)) == "dearest b, c; cheapest a, d"
    assert ends(scores(a=0.1, b=0.4, c=0.3)) == "dearest b; cheapest a"
    assert ends(scores(a=0.1)) == ""


def test_it_is_shown_below_the_bar_where_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int | None, str]] = []
    early = Early(lambda done, total, words="": told.append((done, total, words)), quiet=False)
    assert early.watch is None  # stderr is not a terminal here
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    early.progress(1, 9)
    assert early.watch is not None
    early.watch(scores(a=0.1, b=0.4))
    early.progress(2, 9)
    assert told == [(1, 9, ""), (2, 9, "so far: dearest b; cheapest a")]
    assert Early(early.tell, quiet=True).watch is None


def test_how_sure_it_is_and_for_whom_it_is_wrong() -> None:
    cheap, vital = {"a": torch.tensor([0.1, 0.2, 0.7])}, {"a": torch.tensor([0.9, 0.05, 0.05])}
    found = Sensitivity(cheap, vital, cheap, {"x": vital, "y": cheap}, stability=Stability(0.5, 0.913, 0.987))
    first, second = sure(Sensitivity(cheap, vital, cheap)), sure(found)
    assert first == []
    assert second[0] == "Halves of the data agree on 91% of what would leave at 0.5 (rank correlation 0.99)."
    assert sure(scores(a=0.5)) == []


@pytest.mark.slow
def test_torchrun_measures_the_same(here: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "secateur"]
    done = subprocess.run([*launch, *MEASURE, "two", "--contexts", "class"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("320 samples, 3 contexts") == 1
    assert run([*MEASURE, "one", "--contexts", "class", "--quiet"]) == 0
    one, two = read_sensitivity("one"), read_sensitivity("two")
    torch.testing.assert_close(two.global_, one.global_)
    assert two.samples == one.samples and two.stability == one.stability
