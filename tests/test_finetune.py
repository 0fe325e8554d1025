"""Fine-tuning: the laws of the loop, against plain PyTorch loops and known answers."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.errors import BadInput, BadLoss, Unreadable
from secateur.finetune import Tuned, best_epoch, finetune
from secateur.surgery.hold import held, hold

pytest.importorskip("accelerate")


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))


def points(n: int = 48, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return TensorDataset(x, x[:, :3].argmax(1))


def batches(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    return [(x, y) for x, y in DataLoader(points(seed=seed), batch_size=16)]


def shuffled() -> DataLoader:
    return DataLoader(points(), batch_size=16, shuffle=True)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def without_seconds(tuned: Tuned) -> list[dict[str, float]]:
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in tuned.history]


# training -------------------------------------------------------------------------------------------------------------------------------


def test_it_learns_and_is_deterministic():
    runs = [finetune(net(), shuffled(), F.cross_entropy, 15, validation=batches(1), lr=3e-2) for _ in range(2)]
    assert runs[0].best["validation_top1"] > 0.75 and runs[0].last["loss"] < 0.5 * runs[0].history[0]["loss"]
    assert same(runs[0].model, runs[1].model) and without_seconds(runs[0]) == without_seconds(runs[1])
    other = finetune(net(), shuffled(), F.cross_entropy, 15, lr=3e-2, seed=1)
    assert not same(other.model, runs[0].model)


def test_it_equals_a_plain_loop():
    """Without dropout and chance: SGD by hand, with the cosine written out."""
    model, data = net(), batches()
    model[3].p = 0.0
    tuned = finetune(model, data, F.cross_entropy, 2, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    oracle = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.1, momentum=0.9)
    rates = 0.05 * (1 + torch.cos(torch.pi * torch.arange(6, dtype=torch.float64) / 6))
    for step, (x, y) in enumerate(data * 2):
        optimizer.param_groups[0]["lr"] = rates[step].item()
        optimizer.zero_grad()
        F.cross_entropy(oracle(x), y).backward()
        optimizer.step()
    for a, b in zip(tuned.model.state_dict().values(), oracle.state_dict().values()):
        torch.testing.assert_close(a, b)
    assert [epoch["epoch"] for epoch in tuned.history] == [1, 2] and tuned.best_epoch == 2 and tuned.last_model is tuned.model


def test_a_warm_up_is_written_out_by_hand():
    model, data = net(), batches()
    model[3].p = 0.0
    make = lambda p: torch.optim.SGD(({"params": [value], "lr": 0.1 * (1 + i)} for i, value in enumerate(p)), momentum=0.9)
    tuned = finetune(model, data, F.cross_entropy, 2, optimizer=make, rates="constant", warmup=0.5)
    oracle = copy.deepcopy(model).train()
    optimizer = make(oracle.parameters())
    for step, (x, y) in enumerate(data * 2):
        for i, group in enumerate(optimizer.param_groups):
            group["lr"] = 0.1 * (1 + i) * min(1.0, (step + 1) / 3)
        optimizer.zero_grad()
        F.cross_entropy(oracle(x), y).backward()
        optimizer.step()
    for a, b in zip(tuned.model.state_dict().values(), oracle.state_dict().values()):
        torch.testing.assert_close(a, b)
    assert [epoch["lr"] for epoch in tuned.history] == pytest.approx([0.6, 0.6])


def test_the_callers_model_data_and_random_state_are_untouched():
    model = net().eval()
    hold(model, {"0.weight": torch.rand(12, 6) > 0.5})
    model[1].train()
    before, modes, random = copy.deepcopy(model), [m.training for m in model.modules()], torch.get_rng_state()
    data = DataLoader(points(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(7))
    order = data.generator.get_state()
    tuned = finetune(model, data, F.cross_entropy, 1, validation=shuffled(), teacher=model, distill=0.5)
    assert same(model, before) and modes == [m.training for m in model.modules()] and all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state()) and torch.equal(order, data.generator.get_state())
    assert not same(tuned.model, model) and not any(m.training for m in tuned.model.modules())
    assert all(p.grad is None for p in tuned.model.parameters()) and vars(tuned.model).keys() == vars(model).keys()


def test_what_the_model_is_held_to_stays_zero():
    model, mask = net(), torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    hold(model, {"0.weight": mask})
    tuned = finetune(model, batches(), F.cross_entropy, 2)
    assert torch.equal(tuned.model[0].weight != 0, mask) and torch.equal(held(tuned.model)["0.weight"], mask)
    given = finetune(net(), batches(), F.cross_entropy, 2, masks={"0.weight": mask})
    assert same(given.model, tuned.model)


def test_best_and_last_are_both_held():
    mask = torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    rates = lambda share: 1e-3 if share < 0.5 else 1e3
    tuned = finetune(net(), batches(), F.cross_entropy, 9, batches(1), rates=rates, masks={"0.weight": mask})
    assert tuned.best_epoch < 9 and not same(tuned.model, tuned.last_model)
    for model in (tuned.model, tuned.last_model):
        assert torch.equal(held(model)["0.weight"], mask) and torch.equal(model[0].weight != 0, mask)
        assert all(p.grad is None for p in model.parameters())


def test_no_epoch_gives_a_copy():
    model = net()
    tuned = finetune(model, batches(), F.cross_entropy, 0)
    assert same(tuned.model, model) and tuned.model is not model and tuned.history == [] and tuned.best == tuned.last == {}


def test_a_frozen_parameter_stays():
    model = net()
    model[0].weight.requires_grad_(False)
    assert torch.equal(finetune(model, batches(), F.cross_entropy, 1).model[0].weight, model[0].weight)
    with pytest.raises(BadInput, match="no parameter that requires a gradient"):
        finetune(net().requires_grad_(False), batches(), F.cross_entropy, 1)


def test_accelerate_is_left_as_it_was():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = (AcceleratorState, GradientState, PartialState)
    for state in states:
        state._shared_state.clear()
    try:
        own = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
        finetune(net(), batches(), F.cross_entropy, 1)
        assert own.mixed_precision == "bf16" and own.gradient_accumulation_steps == 2
    finally:
        for state in states:
            state._shared_state.clear()
    finetune(net(), batches(), F.cross_entropy, 1, precision="bf16")
    assert not AcceleratorState._shared_state


def test_half_precision_trains_nearly_the_same():
    full, half = (finetune(net(), batches(), F.cross_entropy, 3, precision=p) for p in ("no", "bf16"))
    assert half.model[0].weight.dtype == torch.float32
    assert half.last["loss"] == pytest.approx(full.last["loss"], rel=0.05) and half.last["loss"] != full.last["loss"]


# distillation, the best epoch, sensitivity ----------------------------------------------------------------------------------------------


def test_distillation_minimises_hintons_loss():
    model, teacher, (x, y) = net(), net(1), batches()[0]
    model[3].p = 0.0
    tuned = finetune(model, [(x, y)], F.cross_entropy, 1, teacher=teacher, distill=0.3, temperature=2.0)
    s, t = copy.deepcopy(model).train()(x), teacher.eval()(x)
    p, q = (t / 2).softmax(1), (s / 2).softmax(1)
    expected = 0.7 * F.cross_entropy(s, y) + 0.3 * 4 * (p * (p / q).log()).sum(1).mean()
    assert tuned.history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_that_only_distils_comes_to_agree_with_its_teacher():
    teacher, data = net(1).eval(), batches()
    tuned = finetune(net(), data, F.cross_entropy, 60, teacher=teacher, distill=1.0, lr=3e-2)
    x = torch.cat([x for x, _ in data])
    assert (tuned.model(x).argmax(1) == teacher(x).argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("history", "best"),
    [
        ([], 0),
        ([{"loss": 1.0}, {"loss": 2.0}], 2),
        ([{"validation_loss": 1.0}, {"validation_loss": 0.5}, {"validation_loss": 0.7}], 2),
        ([{"validation_loss": 1.0, "validation_top1": 0.9}, {"validation_loss": 0.5, "validation_top1": 0.8}], 1),
        ([{"validation_loss": 1.0, "validation_top1": 0.9}, {"validation_loss": 0.5, "validation_top1": 0.9}], 2),
        ([{"validation_loss": 1.0}, {"validation_loss": 1.0}], 1),
    ],
)
def test_the_best_epoch(history, best):
    worse = {"validation_loss": 9.0, "validation_top1": 0.0}
    assert best_epoch(history, worse) == best
    better = {"validation_loss": 0.1, "validation_top1": 1.0}
    assert best_epoch(history, better) == (0 if history and "validation_loss" in history[0] else best)
    if history and best == 1:
        assert best_epoch(history, history[0]) == 0  # as good is not better


def test_what_no_epoch_made_better_stays():
    """Bit for bit, here and in a run that goes on; and patience counts from the start."""
    model = finetune(net(), batches(), F.cross_entropy, 20, lr=3e-2).model
    wrecked = finetune(model, batches(), F.cross_entropy, 5, batches(1), lambda p: torch.optim.SGD(p, lr=50.0, momentum=0.9), patience=2)
    assert wrecked.best_epoch == 0 and len(wrecked.history) == 2 and same(wrecked.model, model) and not same(wrecked.last_model, model)
    x, y = (torch.cat(values) for values in zip(*batches(1)))
    assert wrecked.best == wrecked.start
    assert (model(x).argmax(1) == y).float().mean().item() == pytest.approx(wrecked.start["validation_top1"])
    assert F.cross_entropy(model(x), y).item() == pytest.approx(wrecked.start["validation_loss"], rel=1e-5)


def test_a_teacher_alone_needs_no_targets():
    """As a loss of 0 beside it gives."""
    data, given = [(x, None) for x, _ in batches()], {"teacher": net(), "distill": 1.0}
    student = net()
    with torch.no_grad():
        student[0].weight.mul_(0.5)

    def refused(outputs, targets):
        raise AssertionError("it is not asked for")

    alone = finetune(student, data, refused, 3, lr=1e-2, **given)
    beside = finetune(student, batches(), lambda outputs, targets: outputs.sum() * 0, 3, lr=1e-2, **(given | {"distill": 0.999999}))
    assert alone.history[-1]["loss"] < alone.history[0]["loss"]
    assert alone.history[-1]["loss"] == pytest.approx(beside.history[-1]["loss"], rel=1e-3)


def test_an_optimizer_that_is_made_and_a_teacher_that_teaches_nothing_are_told():
    given = (net(), batches(), F.cross_entropy, 1)
    with pytest.raises(BadInput, match=r"one already, of the class SGD.* Give a function"):
        finetune(*given, optimizer=torch.optim.SGD(net().parameters(), 0.1))
    with pytest.raises(BadInput, match="teacher is of type str"):
        finetune(*given, teacher="bert", distill=0.5)
    with pytest.raises(BadInput, match="nothing that it teaches"):
        finetune(*given, teacher=net())


def test_early_stopping_keeps_the_best_weights():
    """An optimizer that wrecks the model after the first epoch of three steps: what comes back is the first epoch's."""

    class Wreck(torch.optim.SGD):
        steps = 0

        def step(self, closure=None):
            super().step(closure)
            self.steps += 1
            if self.steps > 3:
                with torch.no_grad():
                    self.param_groups[0]["params"][-2].zero_()

    model, validation = finetune(net(), batches(), F.cross_entropy, 20, lr=3e-2).model, batches(1)
    tuned = finetune(model, batches(), F.cross_entropy, 10, validation, lambda p: Wreck(p, lr=0.01), patience=2)
    assert tuned.best_epoch == 1 and len(tuned.history) == 3
    x, y = (torch.cat(values) for values in zip(*validation))
    assert (tuned.model(x).argmax(1) == y).float().mean().item() == pytest.approx(tuned.best["validation_top1"])
    assert F.cross_entropy(tuned.model(x), y).item() == pytest.approx(tuned.best["validation_loss"], rel=1e-5)
    assert tuned.last["validation_top1"] < tuned.best["validation_top1"]
    assert (tuned.last_model(x).argmax(1) == y).float().mean().item() == pytest.approx(tuned.last["validation_top1"])
    assert F.cross_entropy(tuned.last_model(x), y).item() == pytest.approx(tuned.last["validation_loss"], rel=1e-5)
    assert not any(module.training for module in [*tuned.model.modules(), *tuned.last_model.modules()])


def test_regression_is_judged_by_its_loss():
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    data = [(x, x.sum(1, keepdim=True))]
    tuned = finetune(nn.Linear(6, 1), data, F.mse_loss, 3, validation=data, lr=0.1)
    assert "validation_top1" not in tuned.last and tuned.best["validation_loss"] == min(e["validation_loss"] for e in tuned.history)


def test_a_collector_sees_the_gradients_of_every_step():
    seen: list[tuple[Tensor, Tensor]] = []

    class Collector:
        def step(self, model: nn.Module, samples: int) -> None:
            assert samples == 16
            weight = model.get_parameter("4.weight")
            seen.append((weight.detach().clone(), weight.grad.clone()))

    model, data = net(), batches()
    model[3].p = 0.0
    finetune(model, data, F.cross_entropy, 2, collect=Collector())
    oracle = copy.deepcopy(model).train()
    F.cross_entropy(oracle(data[0][0]), data[0][1]).backward()
    assert len(seen) == 6 and torch.equal(seen[0][0], model[4].weight)
    torch.testing.assert_close(seen[0][1], oracle[4].weight.grad)


def test_progress_counts_up_to_the_total():
    calls: list[tuple[int, int, str]] = []
    finetune(net(), batches(), F.cross_entropy, 2, progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls) and {total for _, total, _ in calls} == {6}
    assert calls[-1][0] == 6 and calls[-1][2].startswith("epoch 2 of 2, loss ")


# resuming -------------------------------------------------------------------------------------------------------------------------------

SETTINGS = {"epochs": 4, "lr": 1e-2, "seed": 3}


def killed_at(folder: str, epoch: int, batch: int) -> None:
    """Runs in a process of its own: fine-tuning that kills itself in the middle of an epoch."""

    def progress(done: int, total: int, text: str) -> None:
        if done == epoch * 3 + batch and batch:
            os.kill(os.getpid(), signal.SIGKILL)

    finetune(net(), shuffled(), F.cross_entropy, validation=batches(1), checkpoint=folder, progress=progress, **SETTINGS)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    code = f"import test_finetune; test_finetune.killed_at({str(tmp_path / 'run')!r}, 2, 1)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    finished: list[int] = []
    arguments = {**SETTINGS, "validation": batches(1)}
    resumed = finetune(
        net(), shuffled(), F.cross_entropy, checkpoint=tmp_path / "run", progress=lambda done, *_: finished.append(done), **arguments
    )
    whole = finetune(net(), shuffled(), F.cross_entropy, **arguments)
    assert min(finished) == 6, "the first two epochs were not run again"
    assert same(resumed.model, whole.model) and without_seconds(resumed) == without_seconds(whole)
    again = finetune(net(), shuffled(), F.cross_entropy, checkpoint=tmp_path / "run", progress=pytest.fail, **arguments)
    assert same(again.model, whole.model) and again.history == resumed.history


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adam, groups": lambda p: torch.optim.Adam([{"params": (p := list(p))[:2]}, {"params": p[2:], "lr": 1e-3}], lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_run_whose_data_fails_goes_on_to_the_same_bits(make, tmp_path):
    class Failing:
        """A data set whose disk goes away in its third epoch."""

        def __init__(self, fails: bool) -> None:
            self.fails = fails

        def epoch(self, k: int):
            order = torch.randperm(48, generator=torch.Generator().manual_seed(k))
            for number, chosen in enumerate(order.split(16)):
                if self.fails and (k, number) == (2, 1):
                    raise OSError("the disk is gone")
                yield points()[chosen]

        def __iter__(self):
            raise AssertionError("epoch() is asked instead")

    arguments = (F.cross_entropy, 4, None, make)
    with pytest.raises(OSError, match="the disk is gone"):
        finetune(net(), Failing(True), *arguments, checkpoint=tmp_path)
    resumed = finetune(net(), Failing(False), *arguments, checkpoint=tmp_path)
    assert same(resumed.model, finetune(net(), Failing(False), *arguments).model) and len(resumed.history) == 4


def test_data_is_told_the_epoch():
    class Told(list):
        epochs: list[int] = []  # noqa: RUF012

        def set_epoch(self, k: int) -> None:
            self.epochs.append(k)

    finetune(net(), data := Told(batches()), F.cross_entropy, 3)
    assert data.epochs == [0, 1, 2]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    finetune(net(), batches(), F.cross_entropy, 1, checkpoint=tmp_path)
    for model, changes, what in [
        (net(1), {}, "model"),
        (net(), {"epochs": 2}, "epochs is 1, now it is 2"),
        (net(), {"seed": 5}, "seed is 0, now it is 5"),
        (net(), {"lr": 0.5}, "groups"),
        (net(), {"rates": "constant"}, "rates is cosine, now it is constant"),
        (net(), {"warmup": 0.5}, r"warmup is 0\.0, now it is 0\.5"),
        (net(), {"teacher": net(), "features": ["0"]}, "teacher"),
        (net(), {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-3)}, "optimizer is AdamW, now it is SGD"),
        (net(), {"masks": {"0.weight": torch.zeros(12, 6, dtype=torch.bool)}}, "masks"),
    ]:
        with pytest.raises(Unreadable, match=f"belongs to another run: its {what}"):
            finetune(model, batches(), F.cross_entropy, **{"epochs": 1, **changes}, checkpoint=tmp_path)


def test_a_damaged_checkpoint_is_refused_and_left_alone(tmp_path):
    finetune(net(), batches(), F.cross_entropy, 2, checkpoint=tmp_path)
    path = tmp_path / "run.safetensors"
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    damages = [b"", whole[:7], whole[: len(whole) // 2], whole[:-1], b"\xff" * 8 + whole[8:], b"{}"]
    for _ in range(60):
        at = int(torch.randint(8 + int.from_bytes(whole[:8], "little"), (), generator=generator))
        damages.append(whole[:at] + bytes([int(torch.randint(256, (), generator=generator))]) + whole[at + 1 :])
    for damaged in damages:
        path.write_bytes(damaged)
        try:
            finetune(net(), batches(), F.cross_entropy, 2, checkpoint=tmp_path)
        except Unreadable as error:
            assert str(path) in str(error)
        assert path.read_bytes() == damaged
    save_file(load_file_of(whole, tmp_path), path, {"format": "something else"})
    with pytest.raises(Unreadable, match="not a checkpoint of this version"):
        finetune(net(), batches(), F.cross_entropy, 2, checkpoint=tmp_path)


def load_file_of(content: bytes, folder: Path) -> dict[str, Tensor]:
    (folder / "copy.safetensors").write_bytes(content)
    return load_file(folder / "copy.safetensors")


def test_a_checkpoint_is_tensors_and_json(tmp_path):
    finetune(net(), batches(), F.cross_entropy, 1, checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]
    tensors = load_file(tmp_path / "run.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"model", "best", "optimizer"} and "optimizer.0.exp_avg" in tensors
    length = int.from_bytes((content := (tmp_path / "run.safetensors").read_bytes())[:8], "little")
    facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["facts"])
    assert facts["history"][0]["epoch"] == 1 and facts["settings"]["epochs"] == 1


# what cannot be used --------------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_named_and_nothing_is_lost(tmp_path):
    calls = 0

    def loss(outputs: object, targets: object) -> Tensor:
        nonlocal calls
        calls += 1
        value = F.cross_entropy(outputs, targets)
        return value * float("nan") if calls == 5 else value

    with pytest.raises(BadLoss, match="In epoch 2: In batch 1 the loss is nan"):
        finetune(net(), batches(), loss, 3, checkpoint=tmp_path)
    resumed = finetune(net(), batches(), loss, 3, checkpoint=tmp_path)
    assert same(resumed.model, finetune(net(), batches(), F.cross_entropy, 3).model)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(BadLoss, match="After epoch 1 the weights are not finite"):
        finetune(nn.Linear(6, 3), batches()[:1], F.cross_entropy, 1, optimizer=lambda p: torch.optim.SGD(p, lr=float("inf")))


def test_a_validation_split_that_does_not_fit_is_named():
    with pytest.raises(BadInput, match="On the validation split, before the first epoch: In batch 0 the loss could not be computed"):
        finetune(net(), batches(), F.cross_entropy, 1, validation=[(batches()[0][0], torch.full((16,), 9))])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"data": []}, "The data has no batch to train on"),
        ({"validation": []}, "The validation split has no batch"),
        ({"epochs": -1}, "epochs is -1"),
        ({"distill": 0.5}, "there is no teacher"),
        ({"distill": 1.5}, "must lie in 0..1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"patience": 2}, "Give validation= as well"),
        ({"rates": "step"}, "no course 'step'"),
        ({"warmup": 2.0}, "warmup is 2.0"),
        ({"warmup": 0.5, "data": iter(batches())}, r"Give it a len\(\), or warmup=0"),
        ({"features": ["0"]}, "features is .* but there is no teacher"),
        ({"features": ["9"], "teacher": net()}, "The model has no module '9'"),
        ({"precision": "fp8"}, "precision is 'fp8', but must be one of no, bf16, fp16"),
        ({"teacher": nn.Linear(6, 2), "distill": 0.5}, "Distillation needs logits"),
    ],
)
def test_arguments_that_cannot_be_used(wrong, sentence):
    with pytest.raises(BadInput, match=sentence):
        finetune(**{"model": net(), "data": batches(), "loss": F.cross_entropy, "epochs": 1, **wrong})


def test_a_checkpoint_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match="cannot be written"):  # before anything is trained
        finetune(net(), batches(), F.cross_entropy, 1, checkpoint=tmp_path / "file", progress=pytest.fail)
    assert (tmp_path / "file").read_text() == "mine"
