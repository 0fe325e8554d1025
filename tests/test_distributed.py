"""Several processes end with the numbers of one, bit for bit the same in each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ranks_measure
from ranks import ranks
from ranks_measure import CASES, WHEN, keys_of, task
from secateur.distributed import Processes, processes
from secateur.measure import after, measure
from secateur.sensitivity import Sensitivity
from secateur.sensitivity_file import read_sensitivity
from secateur.task import Task

PARTS = ("global_", "local", "spread", "error", "keys")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """The folder two processes wrote to, and the lines each said."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, [said.splitlines() for said in ranks(f"ranks_measure:{ranks_measure.everything.__name__}", str(folder))]


def both(folder: Path, name: str) -> Sensitivity:
    """What both processes measured, the same to the last bit."""
    first, second = (read_sensitivity(folder / f"{name}-{rank}") for rank in range(2))
    for part in PARTS:
        torch.testing.assert_close(getattr(first, part), getattr(second, part), rtol=0, atol=0)
    assert first.stability == second.stability
    return first


def same(found: Sensitivity, expected: Sensitivity) -> None:
    for part in PARTS:
        torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=1e-12, atol=1e-12)
    for name in ("criterion", "contexts", "count", "samples", "local_by"):
        assert getattr(found, name) == getattr(expected, name)
    assert (found.stability is None) == (expected.stability is None)
    if found.stability and expected.stability:
        assert found.stability.agreement == expected.stability.agreement
        assert found.stability.correlation == pytest.approx(expected.stability.correlation)


@pytest.mark.slow
@pytest.mark.parametrize("local", ["max", 0.7])
@pytest.mark.parametrize("name", CASES)
def test_two_processes_measure_what_one_does(ran: tuple[Path, list[list[str]]], name: str, local: str | float) -> None:
    criterion, contexts, count = CASES[name]
    same(both(ran[0], f"{name}-{local}"), measure(*task(count), criterion, keys_of(contexts), local))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["given", "sampler"])
def test_data_that_is_split_already_counts_once(ran: tuple[Path, list[list[str]]], name: str) -> None:
    """Batches of eight dealt out by turns; and batches of four that are made of every other sample."""
    one, structure = task(5)
    x, y = (torch.cat(values) for values in zip(*one.data))
    dealt = [(x[rank::2][i : i + 4], y[rank::2][i : i + 4]) for i in range(0, 20, 4) for rank in range(2)]
    data = one.data if name == "given" else dealt
    same(both(ran[0], name), measure(Task(one.model, data, one.loss), structure))


@pytest.mark.slow
def test_processes_stop_together_when_it_is_enough(ran: tuple[Path, list[list[str]]]) -> None:
    found = both(ran[0], "enough")
    same(found, measure(*task(200, 2), enough=0.9, amount=0.3))
    assert found.stability and found.stability.agreement >= 0.9 and 16 < found.count < 200 and found.count % 16
    looks = {number for number in range(1, found.count + 1) if number % 16 == 0 or after(number - 1) == number}
    (words,) = (line for line in ran[1][1] if line.startswith("seen"))
    assert not any(line.startswith("seen") for line in ran[1][0])
    assert {int(word) for word in words.split()[1:]} == looks  # at the whole, though only one looks


@pytest.mark.slow
def test_stopped_processes_go_on_with_one_file_for_all(ran: tuple[Path, list[list[str]]]) -> None:
    expected = measure(*task(60), "hessian", "class")
    same(both(ran[0], "resumed"), expected)
    same(read_sensitivity(ran[0] / "resumed-alone-0"), expected)  # begun by two, ended by each for itself
    assert not (ran[0] / "checkpoint").exists()


@pytest.mark.slow
def test_what_goes_wrong_in_one_process_is_said_by_all(ran: tuple[Path, list[list[str]]]) -> None:
    zero, one = ran[1]
    wrong = "The criterion failing gave a score that is not finite in context 5"
    assert any(line.startswith(f"In process 1: {wrong}") for line in zero) and any(line.startswith(wrong) for line in one)
    for lines in (zero, one):
        for name in ("aggregating", *(name for name, when in WHEN.items() if when == "end")):
            assert any(f"{name} did not yield scores for each batch" in line for line in lines), name
        assert any("Scores by movement depend on the batches before" in line for line in lines)
        assert any("they differ in the model" in line for line in lines)
        assert any("checkpoint= does not work with data that each process has a part of" in line for line in lines)


def test_the_criteria_are_those_that_are_meant() -> None:
    assert {name for name, when in WHEN.items() if when == "data"} >= {"l1", "l2", "random"}
    assert {name for name, when in WHEN.items() if when == "batch"} >= {"taylor", "fisher", "hessian"}
    assert "never" not in [WHEN[name] for name in ("gradient", "taylor", "fisher", "hessian", "l1")]


def test_one_process_has_nobody_to_talk_to() -> None:
    alone = processes()
    assert alone == Processes() and alone.summed([3, 4]) == [3, 4] and alone.text(0, "ü") == "ü"
