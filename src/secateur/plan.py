"""The immutable, readable record of what is kept, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from .errors import PlanMismatch
from .structure.cut import attribute_of
from .structure.structure import shapes_of
from .tree import Keep

Kept = dict[str, tuple[Tensor | None, ...]]  # parameter or buffer -> kept indices of every dimension; None: all of them


@dataclass(frozen=True)
class Plan:
    """What is kept of a model, in terms of units and in terms of tensors; enough to mask or shrink it without tracing it again.

    structure: "channels", "layers" or "weights", a shape of blocks ("1x4": outputs x inputs) or n of m ("2:4").
    keep: group -> one bool per unit (for "weights" and "2:4", parameter -> a mask of its shape; for "1x4" of its blocks).
    kept: parameter or buffer -> sorted kept indices of each dimension, None where all are kept ({} where tensors keep their size).
    sizes: "module.attribute" -> the value it gets in the smaller model.
    shapes: parameter or buffer -> its shape in the model the plan was made for.
    digest: of that model's names, shapes and values.
    cost: "units", "parameters", "macs", "bytes" -> (before, after), as far as known.
    made: how it was made: criterion, contexts, local, amount, of, scope, threshold, seed, ... (JSON values).
    approximate, frozen: group -> why.
    divided: (parameter, dimension) that a mask leaves alone, since the model divides it by its own norm.
    skipped: paths of the modules that leave whole (for "layers").
    blocks: parameter -> the size of a block along each dimension (for "1x4").
    """

    structure: str
    keep: Keep
    kept: Kept
    sizes: dict[str, int | tuple[int, ...]]
    shapes: dict[str, tuple[int, ...]]
    digest: str
    cost: dict[str, tuple[float, float]]
    made: dict[str, object] = field(default_factory=dict)
    approximate: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    divided: tuple[tuple[str, int], ...] = ()
    skipped: tuple[str, ...] = ()
    blocks: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """A line: tensors of kept units fill pages."""
        return f"Plan({self.structure}: {self.spared()})"

    def spared(self) -> str:
        return ", ".join(f"{what} {figure(before)} -> {figure(after)}" for what, (before, after) in self.cost.items())

    def gone(self, name: str) -> bool:
        """Whether this parameter or buffer leaves with its whole module."""
        return any(name.startswith(f"{path}.") for path in self.skipped)

    def removed(self) -> dict[str, tuple[int, int]]:
        """Group -> (units removed, units in all)."""
        return {name: (int((~mask).sum()), mask.numel()) for name, mask in self.keep.items()}

    def thin(self, share: float = 0.1) -> dict[str, tuple[int, int]]:
        """Groups of which less than this share is left: group -> (units kept, units in all). A network hardly survives such a layer."""
        kept = {name: (size - gone, size) for name, (gone, size) in self.removed().items() if gone}
        return {name: (left, size) for name, (left, size) in kept.items() if left < share * size}

    def told(self, least: str = "least=0.1") -> list[str]:
        """A sentence for each budget that few groups decide, which are nearly gone because of it (`pulled.py`). least: the way out."""
        found, counts = self.made.get("pulled"), self.removed()
        said = []
        for name, groups in found.items() if isinstance(found, Mapping) else ():
            parts = [
                f"{group} keeps {size - gone} of {size} (with all of them {100 * share:.0f} % of what is saved would be lost)"
                for group, share in groups.items()
                for gone, size in [counts[group]]
            ]
            said.append(
                f"Few groups decide the budget of {name}: {', '.join(parts)}. Ask for less of {name}, or let every group keep a tenth "
                f"({least})."
            )
        return said

    def explain(self) -> str:
        """The plan in words: a line per group."""
        lines = [f"{self.structure}: {self.spared()}"]
        for name, (gone, size) in self.removed().items():
            note = f"  (approximate: {self.approximate[name]})" if name in self.approximate else ""
            lines.append(f"  {name}: {size - gone} of {size} kept{note}")
        lines += [f"  {name}: whole, {why}" for name, why in self.frozen.items()] + self.told()
        return "\n".join(lines)

    def note(self, **made: object) -> Plan:
        """The same plan with more said of how it was made."""
        return replace(self, made={**self.made, **made})


def figure(value: float) -> str:
    """Whole numbers whole, others (milliseconds) with four digits."""
    return f"{value:,.0f}" if value == int(value) or value >= 10_000 else f"{value:,.4g}"


def check_fits(shapes: Mapping[str, tuple[int, ...]], model: nn.Module, parameters_only: bool = False) -> None:
    """Raises PlanMismatch, naming the first difference, unless `model` has exactly these parameters and buffers (or parameters)."""
    now = {name: tuple(value.shape) for name, value in model.named_parameters()} if parameters_only else shapes_of(model)
    for name, shape in shapes.items():
        if name not in now:
            raise PlanMismatch(
                f"The plan was made for a model with {name}, but this one has none. Build the same architecture, or make a new plan."
            )
        if now[name] != tuple(shape):
            raise PlanMismatch(
                f"The plan was made for a model whose {name} is {tuple(shape)}, but this one's is {now[name]}. "
                "Build the same architecture, or make a new plan."
            )
    for name in now:
        if name not in shapes:
            raise PlanMismatch(f"This model has {name}, which the plan does not know. Build the same architecture, or make a new plan.")


def check_sizes(plan: Plan, model: nn.Module) -> None:
    """Raises PlanMismatch unless every attribute that the plan sets is a size that the model has, and does not grow."""
    for where, new in plan.sizes.items():
        old = attribute_of(model, where)
        old = tuple(old) if isinstance(old, list) else old
        news, olds = ((value if isinstance(value, tuple) else (value,)) for value in (new, old))
        if (
            type(old) is not type(new)
            or len(news) != len(olds)
            or not all(type(b) is int and (a == b or (0 if isinstance(new, tuple) else 1) <= a < b) for a, b in zip(news, olds))
        ):
            raise PlanMismatch(
                f"The plan sets {where} to {new}, but in this model it is {old}. "
                + (
                    "Build the exported graph that it was made for: secateur.as_graph(model, example)."
                    if plan.made.get("as_graph")
                    else "Build the same architecture, or make a new plan."
                )
            )
