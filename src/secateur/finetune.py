"""Train a pruned model on, so that what is left learns to do without what is gone."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import checkpoints
from .distill import Lesson, check_modules, full, objective, weights_of
from .epochs import batches_of, generator_kept, samples_of
from .errors import BadInput, BadLoss, need
from .plan import Plan
from .rates import Course, rate_of
from .stepping import Collect, Step
from .structure.structure import digest_of
from .surgery.hold import held, hold
from .task import Loss, call, device_of, evaluating, number_of, split_batch, to

if TYPE_CHECKING:
    from accelerate import Accelerator

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
Progress = Callable[[int, int, str], None]  # done, total, text
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Tuned:
    """A trained copy, in evaluation mode, and how it went.

    model: with the weights of `best_epoch`. last_model: with those of the last epoch; the same model where that was the best.
    start: with a validation split, the figures that the model had on it before the first epoch.
    history: per epoch: epoch (from 1), loss (mean over the training samples, as minimised), lr, seconds; with a validation split
        validation_loss and, where outputs and targets are those of a classifier, validation_top1 (0..1).
    best_epoch: the one with the highest validation_top1 (ties: lowest validation_loss), or where that is not known the lowest
        validation_loss; 0 where none was better than the start; without validation the last.
    """

    model: nn.Module
    history: list[dict[str, float]]
    best_epoch: int
    last_model: nn.Module
    start: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> dict[str, float]:
        """The figures of the epoch whose weights the model has, or of the start."""
        return [self.start, *self.history][self.best_epoch]

    @property
    def last(self) -> dict[str, float]:
        """The figures of the last epoch, whose weights `last_model` has."""
        return self.history[-1] if self.history else {}


def finetune(
    model: nn.Module,
    data: Iterable[object],
    loss: Loss,
    epochs: int,
    validation: Iterable[object] | None = None,
    optimizer: MakeOptimizer | None = None,
    lr: float = 1e-3,
    rates: str | Course = "cosine",
    warmup: float = 0.0,
    teacher: nn.Module | None = None,
    distill: float = 0.0,
    temperature: float = 4.0,
    features: Iterable[str] | Mapping[str, float] = (),
    plan: Plan | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    masks: Mapping[str, Tensor] | None = None,
    collect: Collect | None = None,
    precision: str = "no",
    seed: int = 0,
    progress: Progress | None = None,
) -> Tuned:
    """Train a copy of `model` for `epochs` on the device that `accelerate` finds, and give back its best weights.

    With a validation split these are at least as good there as those that it began with.

    data, validation: re-iterable batches of (inputs, targets) or dicts. Order and augmentation that come from torch's random numbers follow
        `seed` and the epoch alone; data with `set_epoch(k)` or `epoch(k)` is told the epoch (see epochs.py).
    optimizer: parameters -> optimizer; otherwise AdamW with learning rate `lr`. One that asks for several passes over a batch gets them: it
        has `first_step` and `second_step` (SAM), or a `step(closure)` that must be given its closure (LBFGS); see stepping.py.
    rates, warmup: every group's rate goes along "cosine" (half of one, to 0), "constant", or a function of the share 0..1 of the run that
        is over, after a rise in equal steps over the share `warmup` of the run (0.1: the first tenth).
    teacher, distill: with a = distill, minimise (1 - a) L + a T^2 KL(softmax(teacher / T) || softmax(model / T)) (Hinton et al., 2015; with
        a = 1 no loss is asked for, so no targets are needed),
        the mean over samples and all positions, padding and labels of -100, too. Classes are dimension 1 of a tensor, as in
        `F.cross_entropy`, and the last of `logits` in a mapping, (samples, classes) or (samples, positions, classes), as in Hugging Face's.
    features, plan: add, for each of these modules (or times its weight), |s - t|^2 / |t|^2 between what it makes in the model and in the
        teacher; where the model is narrower, of the teacher only the channels that the plan, teacher to model, keeps (distill.py).
    patience: stop after this many epochs without a better validation figure.
    checkpoint: a folder; after each epoch the run is written there, and one that was killed goes on from there: on a CPU, to the same bits.
    masks: which weights stay zero, after every step; otherwise those that `model` is held to (what `secateur.mask` made stays masked).
    collect: shown the model after each backward pass; in a run that goes on, from there on.
    Raises BadInput for arguments or data that do not fit, BadLoss where the loss is not finite (epoch and batch named; the last checkpoint
    stays), Unreadable where the checkpoint is damaged or of another run.
    """
    weighed, rate = weights_of(features), rate_of(rates, warmup)
    _check(epochs, validation, optimizer, teacher, distill, temperature, weighed, patience, precision)
    check_modules(weighed, model=model, **({} if teacher is None else {"teacher": teacher}))
    lesson = Lesson(teacher, distill, temperature, weighed, plan) if teacher is not None and (distill or weighed) else None
    home, student = device_of(model), copy.deepcopy(model)
    masks = held(model) if masks is None else masks
    folder = Path(checkpoint) if checkpoint is not None else None
    with torch.random.fork_rng(range(torch.cuda.device_count())), generator_kept(data), _accelerator(precision) as accelerator:
        torch.manual_seed(seed)
        hold(student.to(accelerator.device).train(), masks)
        stepper = accelerator.prepare_optimizer(_optimizer(student, optimizer, lr), device_placement=False)
        step = Step(student, stepper, objective(loss, lesson, accelerator.device), accelerator, collect, rate)

        settings = _settings(model, lesson, masks, stepper.optimizer) | {
            "epochs": epochs, "seed": seed, "precision": precision, "distill": distill, "temperature": temperature, "patience": patience,
            "rates": rates if isinstance(rates, str) else getattr(rates, "__name__", type(rates).__name__), "warmup": warmup,
            "features": weighed, "validation": validation is not None,
        }  # fmt: skip
        history: list[dict[str, float]] = []
        best, start = checkpoints.tensors_of(student), dict[str, float]()
        if validation is not None and epochs:
            with _named("On the validation split, before the first epoch: "):
                start = _validate(student, validation, loss, accelerator)
        if folder:
            checkpoints.claim(folder)
            if standing := checkpoints.read(folder, settings, student, stepper.optimizer):
                history, best = standing.history, standing.best
                step.resume(standing)

        while len(history) < epochs and not _stopped(history, patience, start):
            epoch, started = len(history) + 1, time.perf_counter()
            batches, size = batches_of(data, epoch - 1, seed)
            if warmup and not size:
                raise BadInput("The data does not know its number of batches, so no share of a run is known. Give it a len(), or warmup=0.")
            total, samples = 0.0, 0
            for number, batch in enumerate(batches):
                inputs, targets = split_batch(to(batch, accelerator.device))
                with _named(f"In epoch {epoch}: "):
                    value = step(inputs, targets, number, (epoch - 1 + (number / size if size else 0)) / epochs, 1 / (epochs * (size or 1)))
                total, samples = total + value * samples_of(inputs), samples + samples_of(inputs)
                if progress and size:
                    progress((epoch - 1) * size + number, epochs * size, f"epoch {epoch} of {epochs}, loss {value:.4f}")
            if not samples:
                raise BadInput("The data has no batch to train on. Give a list, a loader or another re-iterable of (inputs, targets).")
            if not all(bool(torch.isfinite(value).all()) for value in student.parameters()):
                raise BadLoss(f"After epoch {epoch} the weights are not finite. Use a smaller learning rate.")
            figures = {"epoch": epoch, "loss": total / samples, "lr": step.lr}
            if validation is not None:
                with _named(f"On the validation split, after epoch {epoch}: "):
                    figures |= _validate(student, validation, loss, accelerator)
            history.append({**figures, "seconds": time.perf_counter() - started})
            if best_epoch(history, start) == epoch:
                best = checkpoints.tensors_of(student)
            if folder:
                checkpoints.write(folder, step.standing(best, history), settings)
            if progress:
                progress(epoch * (size or 1), epochs * (size or 1), f"epoch {epoch} of {epochs}, loss {total / samples:.4f}")
    student.zero_grad(set_to_none=True)
    last = student.to(home).eval()
    number = best_epoch(history, start)
    if number == len(history):
        return Tuned(last, history, number, last, start)
    chosen = copy.deepcopy(last)
    checkpoints.fill(chosen, best)
    hold(chosen, masks)
    return Tuned(chosen, history, number, last, start)


def best_epoch(history: list[dict[str, float]], start: dict[str, float]) -> int:
    """Which epoch (from 1) validated best; 0 where none was better than the start; without validation the last."""
    if not history or "validation_loss" not in history[-1]:
        return len(history)
    figures = [start, *history]
    return max(range(len(figures)), key=lambda i: (figures[i].get("validation_top1", 0.0), -figures[i]["validation_loss"], -i))


def _stopped(history: list[dict[str, float]], patience: int | None, start: dict[str, float]) -> bool:
    return patience is not None and len(history) - best_epoch(history, start) >= patience


def _optimizer(model: nn.Module, make: MakeOptimizer | None, lr: float) -> Optimizer:
    trainable = [value for value in model.parameters() if value.requires_grad]
    if not trainable:
        raise BadInput("The model has no parameter that requires a gradient, so it cannot be trained. Set requires_grad on those to train.")
    return make(trainable) if make else torch.optim.AdamW(trainable, lr=lr)


def _validate(model: nn.Module, data: Iterable[object], loss: Loss, accelerator: Accelerator) -> dict[str, float]:
    total, right, samples, classes = 0.0, 0, 0, True
    with evaluating(model), accelerator.autocast():
        for number, batch in enumerate(data):
            inputs, targets = split_batch(to(batch, accelerator.device))
            with torch.enable_grad():  # number_of refuses a loss without a derivative
                outputs = full(call(model, inputs))
                value = number_of(loss, outputs, targets, number)
            total, samples = total + value.item() * samples_of(inputs), samples + samples_of(inputs)
            if isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.dim() == 2 and targets.shape == outputs.shape[:1]:
                classes &= not targets.is_floating_point()
                right += int((outputs.argmax(1) == targets).sum())
            else:
                classes = False
    if not samples:
        raise BadInput("The validation split has no batch. Give at least one batch of (inputs, targets), or leave it out.")
    return {"validation_loss": total / samples} | ({"validation_top1": right / samples} if classes else {})


# the run's surroundings -----------------------------------------------------------------------------------------------------------------


@contextmanager
def _accelerator(precision: str) -> Iterator[Accelerator]:
    """An accelerator of our own: accelerate keeps its settings in the process, and those of the user's come back afterwards."""
    accelerate, state = need("accelerate", "tune"), need("accelerate.state", "tune")
    shared = [kind._shared_state for kind in (state.AcceleratorState, state.GradientState, state.PartialState)]
    before = [dict(values) for values in shared]
    try:
        for values in shared[:2]:  # which devices and processes there are (the third) stays
            values.clear()
        accelerator = accelerate.Accelerator(mixed_precision=precision)
        if accelerator.num_processes > 1:
            raise BadInput("Fine-tuning runs in one process, but accelerate was launched with several. Run it with plain python.")
        yield accelerator
    finally:
        for values, old in zip(shared, before):
            values.clear()
            values.update(old)


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Errors of the task say where in the run they came up."""
    try:
        yield
    except BadInput as error:
        raise type(error)(f"{place}{error}") from error


def _settings(model: nn.Module, lesson: Lesson | None, masks: Mapping[str, Tensor], optimizer: Optimizer) -> dict[str, object]:
    """What a run that goes on must have in common with the one that was interrupted."""
    digest = hashlib.sha256()
    for name, mask in sorted(masks.items()):
        digest.update(name.encode())
        digest.update(mask.bool().cpu().contiguous().numpy().tobytes())
    groups = [{key: str(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return {
        "model": digest_of(model), "teacher": digest_of(lesson.teacher) if lesson is not None else "", "masks": digest.hexdigest(),
        "optimizer": type(optimizer).__name__, "groups": groups,
    }  # fmt: skip


def _check(
    epochs: int, validation: object, optimizer: object, teacher: object, distill: float, temperature: float, features: Mapping[str, float],
    patience: int | None, precision: str,
) -> None:  # fmt: skip
    if epochs < 0:
        raise BadInput(f"epochs is {epochs}, but must be 0 or more.")
    if not 0 <= distill <= 1:
        raise BadInput(f"distill is {distill}, but must lie in 0..1: it is the teacher's share of the loss.")
    if optimizer is not None and not callable(optimizer):
        raise BadInput(
            f"optimizer is one already, of the class {type(optimizer).__name__}, but it is made for the copy that is trained. "
            "Give a function, optimizer=lambda values: torch.optim.SGD(values, 0.1)."
        )
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise BadInput(f"The teacher is of type {type(teacher).__name__}, not a torch.nn.Module. Give the dense model.")
    if teacher is not None and not distill and not features:
        raise BadInput("There is a teacher, but nothing that it teaches. Give distill=0.5 or features=, or leave it out.")
    for name, asked in (("distill", distill), ("features", list(features))):
        if asked and teacher is None:
            raise BadInput(f"{name} is {asked}, but there is no teacher. Give teacher=, the dense model.")
    if not temperature > 0:
        raise BadInput(f"temperature is {temperature}, but must be more than 0.")
    if patience is not None and (patience < 1 or validation is None):
        raise BadInput("patience counts epochs (1 or more) without a better validation figure. Give validation= as well, or leave it out.")
    if precision not in PRECISIONS:
        raise BadInput(f"precision is {precision!r}, but must be one of {', '.join(PRECISIONS)}.")
