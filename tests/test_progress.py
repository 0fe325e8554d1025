"""Progress: on a terminal of 80 columns the bar, the share and the times are there, whatever is said of a stage."""

from __future__ import annotations

import re
import sys
import time

import pytest

pytest.importorskip("rich")

from secateur.progress import bars, silent

LONG = "so far: dearest stages.0.blocks.0.conv1, stages.0.blocks.1.conv1; cheapest stages.3.blocks.0.conv2, stages.3.blocks.1.conv2"


def drawn(text: str) -> list[str]:
    """Lines without what moves the cursor and colours them."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")


def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stderr be one, of 80 columns."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")


def shown(capsys: pytest.CaptureFixture[str], until: str) -> list[str]:
    """The lines that are drawn, several times a second, until one of them has that in it."""
    said = ""
    for _ in range(200):
        time.sleep(0.05)
        said += capsys.readouterr().err
        if until in said:
            break
    return drawn(said)


@pytest.mark.parametrize("stage", ["measuring", "fine-tuning connections, magnitude and more"])
def test_nothing_that_is_said_takes_the_place_of_the_bar(
    stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(monkeypatch)
    with bars() as bar:
        bar(stage)(37, 100, LONG)
        lines = shown(capsys, "stages.3.blocks.1.conv2")
    assert any(re.search(r"[━╸╺]{20}  37% \d:\d\d:\d\d left [-\d]:[-\d]{2}:[-\d]{2}", line) for line in lines), lines
    assert any(line.startswith("so far: dearest stages.0.blocks.0.conv1, ") for line in lines)
    assert max(map(len, lines)) <= 80
    last = capsys.readouterr().err
    assert "100%" in last and "so far" not in last  # of a stage that is done


def test_a_stage_of_unknown_length_has_no_share(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal(monkeypatch)
    with bars() as bar:
        bar("reading")(5, None, "five so far")
        lines = shown(capsys, "five so far")
    assert any("reading" in line for line in lines) and not any("%" in line for line in lines)


def test_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):  # stderr is not a terminal here
        with bars(quiet) as bar:
            assert bar("measuring") is silent
    assert capsys.readouterr().err == ""
