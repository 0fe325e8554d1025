"""Gradual masking in a `transformers.Trainer`.

    from secateur.frontends.huggingface import GradualMasking
    Trainer(model, ..., callbacks=[GradualMasking(secateur.gradual(model, plan, structure, scores))]).train()
    small = secateur.shrink(model, plan)
"""

from __future__ import annotations

from typing import Protocol

from ..errors import need
from ..gradual import Gradual

TrainerCallback = need("transformers", "huggingface").TrainerCallback


class State(Protocol):
    """What a `TrainerState` knows."""

    global_step: int
    max_steps: int


class GradualMasking(TrainerCallback):  # type: ignore[misc, valid-type]
    """After every step of the optimizer the mask that the schedule says; when training ends, all that the plan removes.

    It goes by the trainer's count, of `gradual.steps` or else of all its steps: a run that resumes from a checkpoint goes on where it was.
    """

    def __init__(self, gradual: Gradual) -> None:
        self.gradual = gradual

    def on_train_begin(self, args: object, state: State, control: object, **given: object) -> None:
        self.gradual.reached(state.global_step, state.max_steps)

    def on_step_end(self, args: object, state: State, control: object, **given: object) -> None:
        self.gradual.reached(state.global_step, state.max_steps)

    def on_train_end(self, args: object, state: State, control: object, **given: object) -> None:
        self.gradual.at(1.0)
