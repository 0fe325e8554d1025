"""Gradual masking in the real `transformers.Trainer`, on a BERT of two small layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur as sc

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'secateur[huggingface]'")

from secateur.frontends.huggingface import GradualMasking  # noqa: E402 - after the library is known to be there

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own
STEPS = 8


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        words = torch.randint(0, 30, (6,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": words, "attention_mask": torch.ones(6, dtype=torch.long), "labels": words[0] % 3}


def bert() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.BertConfig(vocab_size=30, max_position_embeddings=8, num_labels=3, **sizes)
        return transformers.BertForSequenceClassification(config).eval()


def planned(kind: str, model: nn.Module) -> tuple[sc.Plan, sc.Structure, dict[str, Tensor]]:
    example = {name: value[None] for name, value in Rows()[0].items() if name != "labels"}
    structure = sc.channels(model, example, exact=True) if kind == "channels" else sc.weights(model)
    generator = torch.Generator().manual_seed(1)
    scores = {name: torch.rand(group.shape, generator=generator) for name, group in structure.groups.items()}
    return sc.select(scores, structure, 0.5, scope="layer"), structure, scores


class Watching(transformers.TrainerCallback):
    """Behind ours: how many of the plan's units are there after every step."""

    def __init__(self, gradual: sc.Gradual) -> None:
        self.gradual, self.seen = gradual, []

    def on_step_end(self, args: object, state: object, control: object, **given: object) -> None:
        inside = self.gradual.structure.expand(self.gradual.keep)
        assert all((value[inside[name] == 0] == 0).all() for name, value in self.gradual.model.named_parameters() if name in inside)
        self.seen.append(self.gradual.gone)


def arguments(folder: Path, **options: object) -> transformers.TrainingArguments:
    usual = {"max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.1, "save_strategy": "no"}
    return transformers.TrainingArguments(str(folder), report_to=[], disable_tqdm=True, use_cpu=True, **(usual | options))


def trained(folder: Path, model: nn.Module, gradual: sc.Gradual, resume: bool = False, **options: object) -> list[int]:
    watching = Watching(gradual)
    trainer = transformers.Trainer(model, arguments(folder, **options), train_dataset=Rows(), callbacks=[GradualMasking(gradual), watching])
    trainer.train(resume_from_checkpoint=resume)
    return watching.seen


def schedule(plan: sc.Plan, steps: int, of: int) -> list[int]:
    """ceil(s(t) n) units are gone after each step."""
    gone = sum(int((~mask).sum()) for mask in plan.keep.values())
    return [-int(-gone * (1 - (1 - min(1.0, step / steps)) ** 3) // 1) for step in range(1, of + 1)]


@pytest.mark.parametrize("kind", ["channels", "weights"])
@pytest.mark.parametrize("steps", [None, 5])
def test_the_masks_follow_the_schedule_and_the_plan_holds_at_the_end(kind, steps, tmp_path):
    model = bert()
    plan, structure, scores = planned(kind, model)
    seen = trained(tmp_path, model, sc.gradual(model, plan, structure, scores, steps))
    assert seen == pytest.approx(schedule(plan, steps or STEPS, STEPS), abs=1) and seen[-1] > seen[0]
    example = {"input_ids": Rows()[3]["input_ids"][None]}
    masked = sc.mask(model, plan).eval()(**example).logits
    torch.testing.assert_close(model.eval()(**example).logits, masked, rtol=0, atol=0)  # nothing was left to mask
    torch.testing.assert_close(sc.shrink(model, plan).eval()(**example).logits, masked, rtol=1e-4, atol=1e-5)


def test_steps_are_the_optimizers_where_gradients_are_accumulated(tmp_path):
    model = bert()
    plan, structure, scores = planned("channels", model)
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    seen = trained(tmp_path, model, sc.gradual(model, plan, structure, scores), **halves)
    assert len(seen) == STEPS and seen == pytest.approx(schedule(plan, STEPS, STEPS), abs=1)


def test_a_run_that_stopped_goes_on_where_its_masks_were(tmp_path):
    plan, structure, scores = planned("channels", bert())

    class Stop(transformers.TrainerCallback):
        def on_step_begin(self, args: object, state: object, control: object, **given: object) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    model = bert()
    saved = {"save_strategy": "steps", "save_steps": 4}
    callbacks = [GradualMasking(sc.gradual(model, plan, structure, scores)), Stop()]
    with pytest.raises(KeyboardInterrupt):
        transformers.Trainer(model, arguments(tmp_path / "run", **saved), train_dataset=Rows(), callbacks=callbacks).train()
    again, whole = bert(), bert()
    seen = trained(tmp_path / "run", again, sc.gradual(again, plan, structure, scores), resume=True, **saved)
    assert seen == pytest.approx(schedule(plan, STEPS, STEPS)[4:], abs=1) and len(seen) == 4
    trained(tmp_path / "whole", whole, sc.gradual(whole, plan, structure, scores), **saved)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters()))


def test_training_that_ends_early_still_ends_with_the_plan(tmp_path):
    model = bert()
    plan, structure, scores = planned("channels", model)
    gradual = sc.gradual(model, plan, structure, scores, steps=100)
    trained(tmp_path, model, gradual)
    assert all(torch.equal(gradual.keep[name], mask) for name, mask in plan.keep.items())
    masked = sc.mask(model, plan).state_dict()
    assert all(torch.equal(value, masked[name]) for name, value in model.state_dict().items())
