"""What fine-tuning minimises: the task's loss, and how far the model is from a teacher, by logits and by what chosen modules make.

    (1 - a) L + a T^2 KL(softmax(teacher / T) || softmax(model / T)) + sum_m b_m |s_m - t_m[kept]|^2 / |t_m|^2

The second term is Hinton et al. (2015), "Distilling the knowledge in a neural network", section 2: summed over the classes (`logits_of`
says which dimension they are), the mean over samples and positions. All positions count, padding and what the labels leave out
(-100), too: which logits a label belongs to only the loss knows (causal language models shift them).

The third term compares features, as FitNets do (Romero et al., 2015, eq. 3), but where the student is narrower it needs no learned
projection: a pruned module's channels *are* channels of the dense one, those that the plan keeps. Which indices of an output these are is
not guessed from a layer's type: those kept indices of the plan's tensors are taken for which the shrunk teacher's output equals the masked
teacher's, on numbers (`kept_of`).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import BadInput
from .plan import Plan
from .surgery.mask import mask
from .surgery.shrink import shrink
from .task import Loss, call, describe, number_of

Objective = Callable[[nn.Module, object, object, int], Tensor]  # model, inputs, targets, number of the batch -> what to minimise
Seen = dict[str, list[Tensor]]  # module -> what it made, call by call
Indices = tuple[Tensor | None, ...]  # of each dimension of an output; None: all


@dataclass(frozen=True)
class Lesson:
    """What the teacher teaches: a share `a` of the loss by logits, at temperature T; and modules' outputs, each with its weight b."""

    teacher: nn.Module
    share: float = 0.0
    temperature: float = 4.0
    features: Mapping[str, float] = field(default_factory=dict)
    plan: Plan | None = None


def objective(loss: Loss, lesson: Lesson | None, device: torch.device) -> Objective:
    """The loss of one batch, with what the lesson adds. The teacher is copied, and in evaluation mode."""
    if lesson is None or not (lesson.share or lesson.features):
        return lambda model, inputs, targets, number: number_of(loss, full(call(model, inputs)), targets, number)
    a, features, teacher = lesson.share, lesson.features, copy.deepcopy(lesson.teacher).to(device).eval()
    kept: dict[str, list[Indices]] = {}

    def taught(model: nn.Module, inputs: object, targets: object, number: int) -> Tensor:
        with watched(model, features) as made:
            outputs = full(call(model, inputs))
        with torch.no_grad(), watched(teacher, features) as shown:
            truth = full(call(teacher, inputs))
        value = (1 - a) * number_of(loss, outputs, targets, number) if a < 1 else torch.zeros((), device=device)
        if a:
            value = value + a * divergence(truth, outputs, lesson.temperature)
        if features and not kept:
            kept.update(kept_of(teacher, lesson.plan, features, inputs, shown, made))
        for name, weight in features.items():
            value = value + weight * distance(made[name], shown[name], kept[name])
        return value

    return taught


def divergence(truth: object, outputs: object, temperature: float) -> Tensor:
    """T^2 KL(teacher || model): the sum over classes, the mean over samples and positions. Raises BadInput where these are not told."""
    (t, classes), (s, same) = logits_of(truth), logits_of(outputs)
    if t is None or s is None or t.shape != s.shape or classes != same:
        raise BadInput(
            "Distillation needs logits of one shape in model and teacher, (samples, classes, ...), or under `logits` (samples, classes) or "
            f"(samples, positions, classes), but the model makes outputs {describe(outputs)}, the teacher {describe(truth)}. "
            "Let both return such logits, or set distill=0."
        )
    log_p, log_q = (F.log_softmax(exact(logits) / temperature, classes) for logits in (t, s))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(classes).mean()


def logits_of(outputs: object) -> tuple[Tensor | None, int]:
    """The logits, None where there are none, and the dimension of their classes.

    Of a tensor it is 1, as in `F.cross_entropy`. Of `logits` among other outputs, in a mapping or as an attribute, it is the last, as in
    Hugging Face's language models. With more than three dimensions it may be either there (1 of maps of images), so those are not taken.
    """
    if isinstance(outputs, Tensor):
        return (outputs if outputs.dim() >= 2 else None), 1
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    return (named, named.dim() - 1) if isinstance(named, Tensor) and named.dim() in (2, 3) else (None, 1)


def distance(made: list[Tensor], shown: list[Tensor], kept: list[Indices]) -> Tensor:
    """|s - t[kept]|^2 / |t[kept]|^2, over all calls of a module."""
    truth = [part(exact(value), indices) for value, indices in zip(shown, kept)]
    far = torch.stack([(exact(s) - t).square().sum() for s, t in zip(made, truth)]).sum()
    size = torch.stack([t.square().sum() for t in truth]).sum()
    return far / size.clamp_min(torch.finfo(size.dtype).tiny)


def full(outputs: object) -> object:
    """Half precision in float32, of a tensor or of those in a dict: the loss is computed in that."""
    if not isinstance(outputs, dict):
        return exact(outputs) if isinstance(outputs, Tensor) else outputs
    made = copy.copy(outputs)  # of the same class: a loss may read outputs.logits
    for name, value in outputs.items():
        if isinstance(value, Tensor):
            made[name] = exact(value)
    return made


def exact(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


# features ---------------------------------------------------------------------------------------------------------------------------------


@contextmanager
def watched(model: nn.Module, names: Iterable[str]) -> Iterator[Seen]:
    """What these modules make while the model runs: their output, or the first tensor of a tuple."""
    seen: Seen = {name: [] for name in names}

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(module: nn.Module, inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if not isinstance(first, Tensor) or not first.is_floating_point():
                raise BadInput(f"The module {name} makes no tensor of numbers, so its features cannot be taught. Choose another one.")
            seen[name].append(first)

        return note

    hooks = [model.get_submodule(name).register_forward_hook(hook(name)) for name in seen]
    try:
        yield seen
    finally:
        for each in hooks:
            each.remove()


def weights_of(features: Iterable[str] | Mapping[str, float]) -> dict[str, float]:
    """Module -> weight, 1 where none is given. Raises BadInput."""
    if isinstance(features, str):
        features = [features]
    given = dict(features) if isinstance(features, Mapping) else {name: 1.0 for name in features}
    for name, weight in given.items():
        if not 0 < weight < float("inf"):
            raise BadInput(f"The weight of the features of {name} is {weight}, but must be a positive number.")
    return given


def check_modules(features: Iterable[str], **models: nn.Module) -> None:
    """Raises BadInput, naming the first module that is not in all of them."""
    for who, model in models.items():
        there = dict(model.named_modules())
        for name in features:
            if name not in there:
                raise BadInput(f"The {who} has no module {name!r}. There are {', '.join(list(there)[1:9])}, ...")


def kept_of(
    teacher: nn.Module, plan: Plan | None, features: Iterable[str], inputs: object, shown: Seen, made: Seen
) -> dict[str, list[Indices]]:
    """Of every call of these modules, the indices of the teacher's output that the student's has.

    Where both are of one shape, all. Otherwise masked teacher[indices] == shrunk teacher, as the law shrunk == masked says, and the only
    indices that the plan keeps, of the module's own tensors or else of any, for which it holds on this batch. Raises BadInput where there
    are none, or several.
    """
    found: dict[str, list[Indices]] = {}
    runs: tuple[Seen, Seen] | None = None
    for name in features:
        if len(made[name]) != len(shown[name]) or not made[name]:
            times = len(made[name]), len(shown[name])
            raise BadInput(f"The module {name} runs {times[0]} times in the model, {times[1]} in the teacher. Choose another module.")
        found[name] = []
        for number, (student, dense) in enumerate(zip(made[name], shown[name])):
            if student.shape == dense.shape:
                found[name].append((None,) * dense.dim())
                continue
            if plan is None:
                raise BadInput(
                    f"Features of {name} are {tuple(student.shape)} in the model, {tuple(dense.shape)} in the teacher. "
                    "Give plan=, by which the model was made smaller."
                )
            if runs is None:
                with torch.no_grad(), torch.autocast(dense.device.type, enabled=False):
                    runs = run(mask(teacher, plan).eval(), features, inputs), run(shrink(teacher, plan).eval(), features, inputs)
            found[name].append(matching(name, plan, student.shape, *(seen[name][number] for seen in runs)))
    return found


def run(model: nn.Module, features: Iterable[str], inputs: object) -> Seen:
    with watched(model, features) as seen:
        call(model, inputs)
    return seen


def matching(name: str, plan: Plan, shape: torch.Size, masked: Tensor, small: Tensor) -> Indices:
    """The indices for which masked[indices] == small. Raises BadInput unless there is just one choice."""
    if small.shape != shape:
        raise BadInput(
            f"By the plan, features of {name} become {tuple(small.shape)}, but the model's are {tuple(shape)}. "
            "Give the plan that leads from the teacher to the model."
        )
    for own in (True, False):
        choices = [[None] if n == m else lines(plan, name, n, m, own) for n, m in zip(masked.shape, small.shape)]
        right = [indices for indices in itertools.product(*choices) if alike(part(masked, indices), small)]
        if len(right) == 1:
            return right[0]
        if right:
            raise BadInput(f"Several kept channels fit the features of {name} on this batch. Give larger batches, or another module.")
    raise BadInput(
        f"The smaller model's features of {name} are no part of the dense one's, by indices that the plan keeps of some tensor (a norm "
        "runs over the removed channels, or they are shuffled, say). Choose another module."
    )


def lines(plan: Plan, module: str, size: int, left: int, own: bool) -> list[Tensor]:
    """The different kept indices, so many of so many, of the plan's tensors: of those in the module, or of all."""
    found: dict[tuple[int, ...], Tensor] = {}
    for name, dims in plan.kept.items():
        if own and not name.startswith(f"{module}."):
            continue
        for dim, index in enumerate(dims):
            if index is not None and len(index) == left and plan.shapes[name][dim] == size:
                found.setdefault(tuple(index.tolist()), index)
    return list(found.values())


def part(value: Tensor, indices: Indices) -> Tensor:
    for dim, index in enumerate(indices):
        if index is not None:
            value = value.index_select(dim, index.to(value.device))
    return value


def alike(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding, all in all: |a - b| <= sqrt(eps) |b|."""
    return bool((a - b).float().norm() <= torch.finfo(b.dtype).eps ** 0.5 * b.float().norm())
