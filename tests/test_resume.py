"""A measurement that was stopped goes on, with the numbers it would have had."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ranks_measure import WHEN
from secateur.errors import BadInput, Unreadable
from secateur.measure import measure
from secateur.resume import Checkpoint, batch_told, loss_told
from secateur.sensitivity import Sensitivity
from secateur.sensitivity_file import read_sensitivity
from secateur.structure import Structure, weights
from secateur.task import Task
from secateur.tree import Scores
from test_stream import Skipping
from toy import Hidden, batches, mlp


class Stopped(KeyboardInterrupt):
    pass


@pytest.fixture(autouse=True)
def at_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "due", True)


def toy(count: int = 10, size: int = 8, seed: int = 0) -> tuple[Task, Hidden]:
    model = mlp(6, 5, 4, 3)
    return Task(model, batches(count, size, 6, 3, seed), F.cross_entropy, seed=1), Hidden(model)


def stopped(task: Task, structure: Structure, path: Path, at: int, **settings: object) -> None:
    """A measurement that ends after so many scores, and leaves a checkpoint."""
    told: list[int] = []

    def stop(done: int, total: int | None) -> None:
        told.append(done)
        if len(told) == at:
            raise Stopped

    with pytest.raises(Stopped):
        measure(task, structure, progress=stop, checkpoint=path, **settings)  # type: ignore[arg-type]
    assert path.exists()


def equal(a: Sensitivity, b: Sensitivity) -> None:
    """To the last bit."""
    for part in ("global_", "local", "spread", "error", "keys"):
        torch.testing.assert_close(getattr(a, part), getattr(b, part), rtol=0, atol=0)
    for part in ("criterion", "contexts", "count", "samples", "local_by", "stability"):
        assert getattr(a, part) == getattr(b, part)


def domain(batch: tuple[Tensor, Tensor]) -> str:
    return f"domain {int(batch[1].sum()) % 3}"


WITH_DATA = [name for name, when in WHEN.items() if when == "batch"]


@pytest.mark.parametrize("name", WITH_DATA)
@pytest.mark.parametrize("contexts", ["batch", "sample", "class", domain])
def test_it_goes_on_with_the_same_numbers(tmp_path: Path, name: str, contexts: str) -> None:
    task, structure = toy(4 if contexts == "sample" else 10)
    whole = measure(task, structure, name, contexts, 0.7)
    for at in (2, 7):
        stopped(task, structure, tmp_path / "c", at, criterion=name, contexts=contexts, local=0.7)
    counted: list[int] = []
    equal(measure(task, structure, name, contexts, 0.7, lambda done, total: counted.append(done), checkpoint=tmp_path / "c"), whole)
    assert len(counted) < (32 if contexts == "sample" else 10) - 5
    assert not list(tmp_path.iterdir())


def test_chance_of_models_loaders_and_images_is_the_same_as_well(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.dropout(self.a(x), training=True))

    class Augmented(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return torch.full((6,), float(index)) + torch.randn(6), torch.tensor(index % 3)

    model = Noisy()
    task, structure = Task(model, DataLoader(Augmented(), 4, shuffle=True), F.cross_entropy), weights(model)
    before = torch.get_rng_state()
    for contexts in ("batch", "class"):
        whole = measure(task, structure, contexts=contexts)
        stopped(task, structure, tmp_path / "c", 6, contexts=contexts)
        equal(measure(task, structure, contexts=contexts, checkpoint=tmp_path / "c"), whole)
    assert torch.equal(torch.get_rng_state(), before)


class Streamed(IterableDataset[tuple[Tensor, Tensor]]):
    """Samples that come one after the other, of which nobody knows how many there are."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in toy(10)[0].data:  # type: ignore[misc]
            yield from zip(x, y)


class Generated:
    def __iter__(self) -> Iterator[object]:
        yield from toy(10)[0].data


@pytest.mark.parametrize(
    "data", [DataLoader(Streamed(), 8), Generated(), Skipping(toy(10)[0].data)], ids=["IterableDataset", "generator", "skip"]  # type: ignore[arg-type]
)
def test_data_that_only_flows_by(tmp_path: Path, data: object) -> None:
    task, structure = toy(10)
    whole = measure(task, structure)
    flowing = Task(task.model, data, task.loss, task.seed)  # type: ignore[arg-type]
    equal(measure(flowing, structure), whole)
    stopped(flowing, structure, tmp_path / "c", 6)
    if isinstance(data, Skipping):
        data.read.clear()
    equal(measure(flowing, structure, checkpoint=tmp_path / "c"), whole)
    if isinstance(data, Skipping):
        assert data.read == [0, 5, 6, 7, 8, 9]  # the first, to see that it is the same data


def test_a_run_that_stops_when_it_is_enough_stops_there(tmp_path: Path) -> None:
    task, structure = toy(60)
    whole = measure(task, structure, enough=0.9, amount=0.8)
    assert 8 <= whole.count < 60
    stopped(task, structure, tmp_path / "c", whole.count - 1, enough=0.9, amount=0.8)
    equal(measure(task, structure, checkpoint=tmp_path / "c", enough=0.9, amount=0.8), whole)


def other(outputs: object, targets: object) -> Tensor:
    return 2 * F.cross_entropy(outputs, targets)  # type: ignore[arg-type]


def smooth(by: float) -> Callable[[object, object], Tensor]:
    return lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=by)  # type: ignore[arg-type]


LOSSES: list[Callable[[], object]] = [
    lambda: F.cross_entropy,
    lambda: other,
    lambda: smooth(0.1),
    lambda: smooth(0.2),
    lambda: partial(F.cross_entropy, label_smoothing=0.1),
    lambda: partial(F.cross_entropy, label_smoothing=0.2),
    lambda: nn.CrossEntropyLoss(),
    lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
    lambda: nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0])),
    lambda: nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 4.0])),
    lambda: lambda outputs, targets: outputs.sum() if targets.dtype in {"a", "b", "c"} else outputs.mean(),
    lambda: torch.dot,
]


def test_losses_are_told_apart_and_are_the_same_when_made_again() -> None:
    assert len({loss_told(make()) for make in LOSSES}) == len(LOSSES)
    for make in LOSSES:
        assert loss_told(make()) == loss_told(make())
    command = [sys.executable, "-c", "import test_resume as t; print(*map(t.loss_told, [make() for make in t.LOSSES]), sep='\\n')"]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ran = [
        subprocess.run(command, env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        for seed in "12"
    ]
    assert [found.stdout.splitlines() for found in ran] == [[loss_told(make()) for make in LOSSES]] * 2


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(2), "en"),
        (torch.zeros(2), "de"),
        (torch.zeros(2, 1), "en"),
        (torch.zeros(2, dtype=torch.bfloat16), "en"),
        {"x": torch.tensor(1.5)},
        {"x": torch.tensor(2.5)},
        [numpy.array([1, 2])],
        [numpy.array([1, 3])],
        torch.eye(2).to_sparse(),
    ],
)
def test_a_batch_is_told_by_its_values(batch: object) -> None:
    told = batch_told(batch)
    assert told == batch_told(copy.deepcopy(batch)) and told not in TOLD
    TOLD.append(told)


TOLD: list[str] = []


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("criterion", {"criterion": "fisher"}),
        ("contexts", {"contexts": "sample"}),
        ("local", {"local": 0.5}),
        ("seed", {"seed": 7}),
        ("model", {"other": True}),
        ("batches", {"count": 9}),
        ("contexts' code", {"contexts": lambda batch: "b"}),
        ("loss", {"loss": other}),
        ("loss", {"loss": lambda outputs, targets: F.cross_entropy(outputs, targets)}),
        ("loss", {"loss": smooth(0.2)}),
        ("first batch", {"size": 16}),
        ("first batch", {"data_seed": 1}),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, name: str, settings: dict[str, object]) -> None:
    task, structure = toy()
    task = replace(task, loss=smooth(0.1))
    first = {"contexts": lambda batch: "a"} if name == "contexts' code" else {}
    stopped(task, structure, tmp_path / "c", 4, **first)
    kept = (tmp_path / "c").read_bytes()
    if settings.pop("other", False):
        model = mlp(6, 5, 4, 3, seed=1)
        task, structure = Task(model, task.data, task.loss, 1), Hidden(model)
    sizes = [settings.pop(name, usual) for name, usual in (("count", 10), ("size", 8), ("data_seed", 0))]
    data = batches(sizes[0], sizes[1], 6, 3, sizes[2])  # type: ignore[arg-type]
    task = Task(task.model, data, settings.pop("loss", task.loss), int(str(settings.pop("seed", 1))))  # type: ignore[arg-type]
    with pytest.raises(Unreadable, match=rf"c belongs to another measurement: its {name} is .*, now it is .*"):
        measure(task, structure, checkpoint=tmp_path / "c", **settings)  # type: ignore[arg-type]
    assert (tmp_path / "c").read_bytes() == kept


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"{}"])
def test_a_damaged_checkpoint_is_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(Unreadable, match=r"c is (damaged|not a checkpoint)"):
        measure(*toy(), checkpoint=tmp_path / "c")


def test_a_criterion_that_yields_at_its_end_cannot_go_on(tmp_path: Path) -> None:
    def mine(task: Task, structure: Structure) -> Iterator[Scores]:
        list(task.batches())
        yield {name: torch.ones(group.shape) for name, group in structure.groups.items()}

    task, structure = toy()
    assert measure(task, structure, mine).count == 1
    with pytest.raises(BadInput, match="mine did not yield scores for each batch"):
        measure(task, structure, mine, checkpoint=tmp_path / "c")


def test_a_criterion_that_goes_by_the_batches_before_cannot_go_on(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Scores by movement depend on the batches before"):
        measure(*toy(), "movement", checkpoint=tmp_path / "c")


SCRIPT = """
import sys, time
from pathlib import Path
import torch.nn.functional as F
from secateur import resume
from secateur.measure import measure
from secateur.sensitivity_file import write_sensitivity
from secateur.task import Task
from toy import Hidden, batches, mlp

class Slow:
    def __iter__(self):
        for batch in batches(40, 8, 6, 3):
            time.sleep(float(sys.argv[2]))
            yield batch

model, folder = mlp(6, 5, 4, 3), Path(sys.argv[1])
task = Task(model, Slow(), F.cross_entropy)
resume.EVERY = 0.1
told = lambda done, total: print(done, flush=True)
write_sensitivity(folder / "s", measure(task, Hidden(model), "hessian", "class", 0.7, told, checkpoint=folder / "c"))
"""


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen([*command, "0.1"], env=environment, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "c").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "s").exists()
    again = subprocess.run([*command, "0"], env=environment, capture_output=True, text=True, check=True)
    model = mlp(6, 5, 4, 3)
    told: list[int] = []
    task = Task(model, batches(40, 8, 6, 3), F.cross_entropy)
    whole = measure(task, Hidden(model), "hessian", "class", 0.7, lambda done, total: told.append(done))
    assert 1 <= len(again.stdout.splitlines()) < len(told)
    found = read_sensitivity(tmp_path / "s")
    for part in ("global_", "local", "spread", "error"):
        torch.testing.assert_close(getattr(found, part), getattr(whole, part), rtol=1e-14, atol=0)
    assert os.listdir(tmp_path) == ["s"]
