"""How much a unit matters: a criterion is a function `(task, structure) -> scores`, one for each batch of the task's data.

A criterion that needs no data yields once. Larger scores mean that removing the unit hurts more; only their ranking counts, since
every context is normalised afterwards. A function of your own is a criterion as it is: pass it where a name is expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..errors import BadInput
from ..structure import Structure
from ..task import Task
from ..tree import Scores
from .activations import apoz, hrank, mean_activation, wanda
from .attention import confidence, entropy
from .curvature import exact_hessian, hessian, hutchpp
from .gradients import IN_ORDER, STEPS, fisher, gradient, gradient_activation, grasp, movement, snip, taylor
from .kronecker import kfac
from .layerwise import exact_obs
from .nodata import inputs_from_statistics, synflow
from .probability import Iterates, Posterior, laplace, needed, snr
from .redundancy import cosine, fpgm
from .samples import fisher_diagonal, fisher_sample, taylor_sample
from .scales import bn_scale
from .surgeon import obs
from .unlabelled import kl_loss, mse_loss, output_features, output_kl, output_mse, output_norm, to_itself
from .weights import l1, l2, lamp, lp, random

Criterion = Callable[[Task, Structure], Iterable[Scores]]

CRITERIA: dict[str, Criterion] = {
    "gradient": gradient,
    "taylor": taylor,
    "magnitude": l2,
    "l1": l1,
    "l2": l2,
    "lp": lp,
    "lamp": lamp,
    "bn_scale": bn_scale,
    "fpgm": fpgm,
    "cosine": cosine,
    "snip": snip,
    "gradient_activation": gradient_activation,
    "grasp": grasp,
    "movement": movement,
    "fisher": fisher,
    "wanda": wanda,
    "mean_activation": mean_activation,
    "apoz": apoz,
    "hrank": hrank,
    "hessian": hessian,
    "obd": hessian,
    "hutch++": hutchpp,
    "exact_hessian": exact_hessian,
    "obs": obs,
    "exact_obs": exact_obs,
    "kfac": kfac,
    "snr": snr,
    "needed": needed,
    "confidence": confidence,
    "entropy": entropy,
    "output_kl": output_kl,
    "output_mse": output_mse,
    "output_features": output_features,
    "output_norm": output_norm,
    "synflow": synflow,
    "random": random,
    "fisher_sample": fisher_sample,
    "taylor_sample": taylor_sample,
    "gate": taylor_sample,
    "fisher_diagonal": fisher_diagonal,
}


def criterion(which: str | Criterion) -> Criterion:
    """The criterion of that name; a function is one already. Raises BadInput for an unknown name."""
    if not isinstance(which, str):
        if not callable(which):
            raise BadInput(f"A criterion is a name or a function (task, structure) -> scores, but this one is {which!r}. {known()}")
        return which
    if which not in CRITERIA:
        raise BadInput(f"There is no criterion {which!r}. {known()}")
    return CRITERIA[which]


def name_of(which: str | Criterion) -> str:
    """What a plan calls the criterion: its name in the table or the function's own."""
    if isinstance(which, str):
        return which
    function = getattr(which, "func", which)  # functools.partial(hessian, probes=4)
    return str(getattr(function, "__name__", type(function).__name__))


def known() -> str:
    return f"Choose {', '.join(CRITERIA)}, or give a function (task, structure) -> scores."


__all__ = [
    "CRITERIA",
    "IN_ORDER",
    "STEPS",
    "Criterion",
    "Iterates",
    "Posterior",
    "criterion",
    "fisher",
    "fisher_diagonal",
    "fisher_sample",
    "gradient",
    "hessian",
    "inputs_from_statistics",
    "kl_loss",
    "l1",
    "l2",
    "laplace",
    "mse_loss",
    "name_of",
    "random",
    "taylor",
    "taylor_sample",
    "to_itself",
]  # fmt: skip
