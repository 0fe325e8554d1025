"""Criteria without labels: how far the outputs move when the unit goes, whatever they are meant to be.

The distance D between the outputs z(1) of the full and z(k) of the gated model is zero at k = 1, and so is its first derivative. What is
left is its second-order term, for which no label is needed either:

    D(k) = 1/2 sum over samples of (z(k) - z(1))' M (z(k) - z(1)) + ...,    score_u = sum over samples of (dz/dk_u)' M (dz/dk_u) / 2

With random v of covariance M it is the mean of (v' dz/dk_u)^2: one backward pass for all units (Gauss-Newton by random projection; drawn
independently for every sample, the products between samples vanish in the mean).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .. import tree
from ..contexts import leaves
from ..errors import BadInput
from ..structure import Structure
from ..structure.cut import twin
from ..structure.kinds import at_old_size
from ..structure.rules import flat
from ..task import Task, describe
from ..tree import Scores
from .curvature import sign
from .passes import Counted, Passes

Projection = Callable[[object, torch.Generator], Tensor]  # the outputs -> v'z, one number


def output_mse(task: Task, structure: Structure, draws: int = 1) -> Iterator[Scores]:
    """The squared distance of the outputs, M = I, v = random signs: mean over samples of |z(k) - z(1)|^2 / 2.

    More draws for each batch make it less noisy, and cost a pass each: `functools.partial(output_mse, draws=4)`.
    """
    yield from gauss_newton(task, structure, along_signs, draws)


def output_kl(task: Task, structure: Structure, draws: int = 1) -> Iterator[Scores]:
    """The divergence KL(p(1) | p(k)) of the class probabilities p = softmax(z): labels drawn from the model's own outputs.

    M = diag p - pp', v = the derivative of log p_y for y ~ p: the true Fisher information (Martens, 2020, sec. 5), where the empirical one
    asks for labels. The outputs are logits with the classes in their last dimension, or under "logits" in a dict.
    """
    yield from gauss_newton(task, structure, along_labels, draws)


def output_features(task: Task, structure: Structure, draws: int = 1) -> Iterator[Scores]:
    """The squared distance of the features: what goes into the module that runs last of those with a matrix (the classifier, as a rule).

    Of a model without such modules (an exported graph has none that are called), what goes into the last operator that is given a matrix of
    weights, or one that is computed from them. Raises BadInput for connections and blocks of them: those of that module move no
    features, and all would go first.
    """
    if at_old_size(structure.kind):
        raise BadInput(
            "output_features looks at what goes into the last layer, which that layer's own connections do not move: all of them would "
            "have the score 0 and leave first. Choose output_mse, output_kl or output_norm, or structure='channels'."
        )
    copy = twin(task.model, lambda _, value: value)
    layers = [module for name, module in copy.named_modules() if name and type(module).forward is not nn.Module.forward]
    layers = [module for module in layers if any(value.dim() > 1 for value in module.parameters(recurse=False))]
    last = Last() if layers else LastOperator()
    for module in layers:
        module.register_forward_pre_hook(last)
    if isinstance(last, LastOperator):
        last.watch(copy)
    yield from gauss_newton(replace(task, model=copy), structure, lambda _, chance: along_signs(last.features(), chance), draws)


def output_norm(task: Task, structure: Structure) -> Iterator[Scores]:
    """How strongly the outputs' squared norm changes with the unit's gate (after Aljundi et al., 2018, "Memory aware synapses", eq. 3).

    score_u = |d|z|^2 / dk_u| = |sum over i in u of w_i d|z|^2 / dw_i|,    |z|^2: mean over the batch

    The paper takes the derivative by the weight alone, and its magnitude for each sample.
    """
    weights = task.parameters()
    for gradients in replace(task, loss=squared_norm).gradients():
        yield tree.absolute(structure.reduce(tree.mul(gradients, weights)))


def gauss_newton(task: Task, structure: Structure, projection: Projection, draws: int) -> Iterator[Scores]:
    """Mean over samples of (v' dz/dk_u)^2 / 2, averaged over the draws of v."""
    if draws < 1:
        raise BadInput(f"The outputs have to be projected once or more, but draws is {draws!r}. Try draws=1.")
    weights, chance = task.parameters(), [torch.Generator()]  # that of the batch

    def repeated() -> Iterator[object]:
        for number, batch in enumerate(task.data):
            chance[0] = task.chance(number)
            yield from (batch for _ in range(draws))

    data = Counted(Passes(repeated))
    drawn = replace(task, data=data, loss=lambda outputs, _: projection(outputs, chance[0]))
    total: list[Scores] = []
    for gradients in drawn.gradients():
        total.append(tree.square(structure.reduce(tree.mul(gradients, weights))))
        if len(total) == draws:
            yield {name: torch.stack([scores[name] for scores in total]).mean(0) / (2 * data.samples) for name in total[0]}
            total.clear()


class Last:
    """A hook that remembers the inputs of the module that ran last."""

    seen: object = None

    def __call__(self, module: nn.Module, inputs: object) -> None:
        self.seen = inputs

    def features(self) -> object:
        if self.seen is None:
            raise BadInput(
                "output_features looks at what goes into the last layer, but nothing went into a layer with a matrix of weights. Choose "
                "output_mse, output_kl or output_norm."
            )
        return self.seen


class LastOperator(TorchFunctionMode, Last):
    """Remembers what came of the model's inputs and went into the last operator together with a matrix of weights, which did not."""

    def watch(self, model: nn.Module) -> None:
        run = model.forward

        def watched(*args: object, **kwargs: object) -> object:
            self.flowing = WeakTensorKeyDictionary()
            self.flows((args, kwargs))
            with self:
                return run(*args, **kwargs)

        model.forward = watched

    def flows(self, values: object) -> None:
        self.flowing.update((value, True) for value in flat(values) if isinstance(value, Tensor))

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        given = [value for value in flat((args, kwargs)) if isinstance(value, Tensor)]
        if flowing := [value for value in given if value in self.flowing]:
            if any(value.dim() > 1 and value.requires_grad and value not in self.flowing for value in given):
                self.seen = flowing
            self.flows(made)
        return made


def along_signs(outputs: object, chance: torch.Generator) -> Tensor:
    return torch.stack([(value * sign(value, chance)).sum() for value in differentiable(outputs)]).sum()


def along_labels(outputs: object, chance: torch.Generator) -> Tensor:
    logs = F.log_softmax(logits(outputs), -1)
    rows = logs.reshape(-1, logs.shape[-1])
    labels = torch.multinomial(rows.detach().exp().float().cpu(), 1, generator=chance)
    return rows.gather(1, labels.to(rows.device)).sum()


def squared_norm(outputs: object, _: object) -> Tensor:
    values = differentiable(outputs)
    return torch.stack([value.square().sum() for value in values]).sum() / len(values[0])


def differentiable(outputs: object) -> list[Tensor]:
    """The tensors of the outputs that depend on the weights."""
    found = [value for value in leaves(outputs) if isinstance(value, Tensor) and value.requires_grad]
    if not found:
        raise BadInput(f"The outputs, {describe(outputs)}, hold no tensor that depends on the weights. Let the model return one.")
    return found


def logits(outputs: object) -> Tensor:
    value = outputs["logits"] if isinstance(outputs, Mapping) and "logits" in outputs else getattr(outputs, "logits", outputs)
    if not isinstance(value, Tensor) or value.dim() < 2:
        raise BadInput(
            f"A divergence needs logits, (samples, classes) or with classes last, but the outputs are {describe(outputs)}. "
            'Return them, or under "logits", or choose the criterion output_mse.'
        )
    return value


def mse_loss(outputs: object, targets: object) -> Tensor:
    """Of every sample |z - t|^2 / 2, of all tensors in them."""
    pairs = zip(tensors(outputs), tensors(targets))
    return torch.stack([(z - t).square().flatten(1).sum(1) / 2 for z, t in pairs]).sum(0)


def kl_loss(outputs: object, targets: object) -> Tensor:
    """Of every sample KL(softmax t | softmax z), summed over positions."""
    z, t = F.log_softmax(logits(outputs), -1), F.log_softmax(logits(targets), -1)
    return (t.exp() * (t - z)).flatten(1).sum(1)


def to_itself(task: Task, loss: Callable[[object, object], Tensor]) -> Task:
    """The task of giving the outputs that the model gives now, under `mse_loss` or `kl_loss`: labels are not looked at.

    Its loss is the distance between the full and the gated model: zero now, so only criteria of second derivatives see anything in it.
    """

    def labelled() -> Iterator[object]:
        for number, (inputs, _) in enumerate(task.batches()):
            with torch.no_grad():
                outputs, _ = task.run_on(inputs, number)
            yield inputs, outputs

    return replace(task, data=Passes(labelled), loss=loss)


def tensors(value: object) -> list[Tensor]:
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
