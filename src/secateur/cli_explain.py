"""`secateur explain`: why a unit of a pruned model went or stayed, from the folder that `secateur prune` wrote. The model is not needed."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save
from torch import Tensor

from .errors import BadInput, Unreadable
from .explain import explain
from .explanation import Explanation
from .files import read_plan
from .folders import present
from .leaving import Leaving, leaving
from .plan import Plan
from .scope import Scope
from .select import EACH
from .sensitivity import Sensitivity
from .sensitivity_file import read_sensitivity, to_bytes
from .structure import Structure
from .tree import Scores

SENSITIVITY, SCORES, RANKING, UNITS = "sensitivity.safetensors", "scores.safetensors", "ranking.safetensors", "units.json"
AS_SCORED = ("global", EACH)  # scopes that rank scores as they are


def files_of(
    structure: Structure, sensitivity: Sensitivity, scores: Scores, plan: Plan, scope: Scope | None = None
) -> dict[str, bytes | str]:
    """What `explain_folder` reads beside the plan: by name, the content. A ranking where it is known and is not the scores.

    scope: the function, where it has no name of ours.
    """
    facts = leaving(structure, scores, plan, scope)
    files: dict[str, bytes | str] = {SENSITIVITY: to_bytes(sensitivity), SCORES: packed(scores), UNITS: facts.to_json()}
    return files | ({} if not facts.ranking or plan.made.get("scope") in AS_SCORED else {RANKING: packed(facts.ranking)})


def explain_folder(folder: Path, unit: str) -> Explanation:
    """Raises Unreadable for a folder that is none of ours or damaged, BadInput where it has no sensitivity or no such unit."""
    place, plan = present(folder), read_plan(folder)
    for name in (SENSITIVITY, SCORES):
        if not (place / name).is_file():
            raise BadInput(f"{folder} has no {name}, so nothing can be said of its units. Explain a folder of secateur prune --out.")
    scores = unpacked(place / SCORES)
    facts = None
    if (place / UNITS).is_file():
        known = scores if plan.made.get("scope", "global") in AS_SCORED else {}
        ranking = unpacked(place / RANKING) if (place / RANKING).is_file() else known
        facts = Leaving.from_json(text_of(place / UNITS), ranking)
        facts_fit(plan, facts, place)
    return explain(plan, read_sensitivity(place / SENSITIVITY), scores, unit, facts)


def facts_fit(plan: Plan, facts: Leaving, place: Path) -> None:
    for name, mask in plan.keep.items():
        units = mask.numel()
        group, values = facts.groups.get(name), facts.ranking.get(name) if facts.ranking else mask
        fits = group is not None and values is not None and values.numel() == units and len(group.paths) in (0, units)
        if group is None or not fits or not {len(saved) for saved in group.saved.values()} <= {1, units}:
            raise Unreadable(f"{place / UNITS} is not of the plan beside it (group {name}). Prune again to have a new one.")


def packed(scores: Scores) -> bytes:
    content: bytes = save({name: value.detach().cpu().contiguous().clone() for name, value in scores.items()})
    return content


def unpacked(file: Path) -> dict[str, Tensor]:
    try:
        return from_bytes(file.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise Unreadable(f"{file} is damaged ({str(error).splitlines()[0]}). Prune again to have a new one.") from error


def text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{file} cannot be read ({error}). Prune again to have a new one.") from error
