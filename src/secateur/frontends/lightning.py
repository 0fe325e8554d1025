"""Gradual masking in a Lightning `Trainer`, of `lightning` or of `pytorch_lightning`.

    from secateur.frontends.lightning import GradualMasking
    Trainer(..., callbacks=[GradualMasking(secateur.gradual(module.net, plan, structure, scores))]).fit(module, batches)
    small = secateur.shrink(module.net, plan)
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Protocol

from ..errors import need
from ..gradual import Gradual

OLDER = "lightning.pytorch" not in sys.modules and (  # its trainer takes callbacks of its own kind
    "pytorch_lightning" in sys.modules or importlib.util.find_spec("lightning") is None
)
Callback = need("pytorch_lightning" if OLDER else "lightning.pytorch", "lightning").Callback


class Trainer(Protocol):
    """What a trainer knows. Steps are the optimizer's; infinite where it has no end."""

    global_step: int
    estimated_stepping_batches: float


class GradualMasking(Callback):  # type: ignore[misc, valid-type]
    """After every step of the optimizer the mask that the schedule says; when training ends, all that the plan removes.

    It goes by the trainer's count, of `gradual.steps` or else of all its steps: a run that resumes from a checkpoint goes on where it was.
    """

    def __init__(self, gradual: Gradual) -> None:
        self.gradual = gradual

    def on_train_start(self, trainer: Trainer, pl_module: object) -> None:
        self.gradual.reached(trainer.global_step, trainer.estimated_stepping_batches)

    def on_train_batch_end(self, trainer: Trainer, pl_module: object, outputs: object, batch: object, batch_idx: int) -> None:
        self.gradual.reached(trainer.global_step, trainer.estimated_stepping_batches)

    def on_train_end(self, trainer: Trainer, pl_module: object) -> None:
        self.gradual.at(1.0)
