"""Gradual masking in the real Lightning trainer."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc

NAMES = ("lightning.pytorch", "pytorch_lightning")
found = next((name for name in NAMES if importlib.util.find_spec(name.partition(".")[0])), None)
if found is None:
    pytest.skip("Lightning is not installed: pip install 'secateur[lightning]'", allow_module_level=True)
lightning = importlib.import_module(found)

from secateur.frontends.lightning import GradualMasking  # noqa: E402 - after the library is known to be there

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own
STEPS = 8


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


class Watching(lightning.Callback):
    """Behind ours: how many of the plan's units are there after every step."""

    def __init__(self, gradual: sc.Gradual, stop: int = -1) -> None:
        self.gradual, self.seen, self.stop = gradual, {}, stop

    def on_train_batch_start(self, trainer: object, pl_module: object, batch: object, batch_idx: int) -> None:
        if trainer.global_step == self.stop:
            raise RuntimeError("the machine is gone")

    def on_train_batch_end(self, trainer: object, pl_module: object, outputs: object, batch: object, batch_idx: int) -> None:
        inside = self.gradual.structure.expand(self.gradual.keep)
        assert all((value[inside[name] == 0] == 0).all() for name, value in self.gradual.model.named_parameters())
        self.seen[trainer.global_step] = self.gradual.gone


def batches(size: int = 4) -> torch.utils.data.DataLoader:
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, :3].argmax(1)), batch_size=size)


def planned(module: Module) -> tuple[sc.Plan, sc.Structure, dict[str, Tensor]]:
    structure = sc.channels(module.net.eval(), torch.randn(2, 5))
    module.net.train()
    generator = torch.Generator().manual_seed(1)
    scores = {name: torch.rand(group.shape, generator=generator) for name, group in structure.groups.items()}
    return sc.select(scores, structure, 0.5), structure, scores


def fitted(module: Module, gradual: sc.Gradual, stop: int = -1, size: int = 4, **options: object) -> dict[int, int]:
    watching, more = Watching(gradual, stop), options.pop("callbacks", [])
    resumed = options.pop("ckpt_path", None)
    trainer = lightning.Trainer(
        **({"max_epochs": 2, "enable_checkpointing": False} | options), logger=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, callbacks=[GradualMasking(gradual), watching, *more],
    )  # fmt: skip
    trainer.fit(module, batches(size), ckpt_path=resumed)
    return watching.seen


def schedule(plan: sc.Plan, steps: int) -> dict[int, int]:
    """ceil(s(t) n) units are gone after each step."""
    gone = sum(int((~mask).sum()) for mask in plan.keep.values())
    return {step: -int(-gone * (1 - (1 - min(1.0, step / steps)) ** 3) // 1) for step in range(1, STEPS + 1)}


@pytest.mark.parametrize("steps", [None, 5])
def test_the_masks_follow_the_schedule_and_the_plan_holds_at_the_end(steps):
    module = Module()
    plan, structure, scores = planned(module)
    seen = fitted(module, sc.gradual(module.net, plan, structure, scores, steps))
    assert seen == pytest.approx(schedule(plan, steps or STEPS), abs=1) and seen[STEPS] > seen[1]
    x, net = torch.randn(4, 5), module.net.eval()
    torch.testing.assert_close(net(x), sc.mask(net, plan).eval()(x), rtol=0, atol=0)  # nothing was left to mask
    torch.testing.assert_close(sc.shrink(net, plan).eval()(x), net(x))


def test_steps_are_the_optimizers_where_gradients_are_accumulated():
    module = Module()
    plan, structure, scores = planned(module)
    seen = fitted(module, sc.gradual(module.net, plan, structure, scores), size=2, accumulate_grad_batches=2)
    assert {step: seen[step] for step in range(1, STEPS + 1)} == pytest.approx(schedule(plan, STEPS), abs=1)


def test_a_run_that_stopped_goes_on_where_its_masks_were(tmp_path):
    plan, structure, scores = planned(Module())
    kept = importlib.import_module(f"{lightning.__name__}.callbacks").ModelCheckpoint
    saving = lambda: {"callbacks": [kept(tmp_path, save_last=True, every_n_epochs=1)], "enable_checkpointing": True}
    module = Module()
    with pytest.raises(RuntimeError, match="the machine is gone"):
        fitted(module, sc.gradual(module.net, plan, structure, scores), stop=6, **saving())
    again, whole = Module(), Module()
    seen = fitted(again, sc.gradual(again.net, plan, structure, scores), ckpt_path=str(tmp_path / "last.ckpt"), **saving())
    assert list(seen) == [5, 6, 7, 8]
    expected = fitted(whole, sc.gradual(whole.net, plan, structure, scores))
    assert seen == {step: expected[step] for step in seen}
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters()))


def test_training_that_ends_early_still_ends_with_the_plan():
    module = Module()
    plan, structure, scores = planned(module)
    gradual = sc.gradual(module.net, plan, structure, scores, steps=100)
    seen = fitted(module, gradual)
    assert seen[STEPS] < sum(int((~mask).sum()) for mask in plan.keep.values())
    assert all(torch.equal(gradual.keep[name], mask) for name, mask in plan.keep.items())
    masked = sc.mask(module.net, plan).state_dict()
    assert all(torch.equal(value, masked[name]) for name, value in module.net.state_dict().items())


def test_a_trainer_without_an_end_needs_to_be_told_the_steps():
    module = Module()
    plan, structure, scores = planned(module)
    with pytest.raises(sc.BadInput, match="does not know how many steps"):
        fitted(module, sc.gradual(module.net, plan, structure, scores), max_epochs=-1)
