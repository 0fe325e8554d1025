"""`secateur evaluate`: a result measured anew. The folder may come from anywhere, so code that lies in it runs only when asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from .errors import BadInput, Unreadable
from .evaluate import compare
from .files import load, read_plan
from .folders import present
from .frontends.batches import Splits
from .frontends.data import data_of
from .frontends.models import ZOOS, build_of, sources_of
from .journey import example_in, loss_of, metrics_for, model_of, seed_in_range
from .progress import Bar
from .structure import as_graph
from .table import Table

CODELESS = {"model": (*ZOOS,), "data": ("digits", "folder", "npz")}  # kinds of names that are no code of a file or a module


def evaluate_folder(
    folder: Path, data: str | None, model: str | None, weights: Path | None, loss: str | None, batch: int, bar: Bar
) -> Table:  # fmt: skip
    """The pruned model on its test split, beside the dense one where its weights are given, or still are where the plan says."""
    made = read_plan(folder).made
    named = model or recorded(folder, made, "model")
    pile = data or recorded(folder, made, "data")
    for name, given, spec in (("model", model, named), ("data", data, pile)):
        if given is None and spec.partition(":")[0] not in CODELESS[name]:
            print(f"secateur: Running the code of {spec!r}, which the plan in {folder} names as its {name}.", file=sys.stderr)
    bar("evaluating")(0, None)
    seed = made.get("seed")
    splits = data_of(pile, seed_in_range(seed) if isinstance(seed, int) else 0, batch)
    check_split(folder, pile, splits)
    net = load(folder, graph_again(folder, build_of(named), made, splits) if made.get("as_graph") is True else build_of(named)).eval()
    dense, note = dense_of(named, weights, made)
    models = {"pruned": net} if dense is None else {"dense": dense, "pruned": net}
    table = compare(models, splits.test, metrics_for(net, splits.validation, loss_of(loss)), example_in(splits.train))
    return replace(table, notes=(*table.notes, note)) if note else table


def recorded(folder: Path, made: Mapping[str, object], name: str) -> str:
    """The model or data that the plan names. Raises BadInput where it names none, or code that came with the folder."""
    spec = made.get(name)
    if not isinstance(spec, str):
        raise BadInput(f"The plan in {folder} does not say of which model and data it is. Give --model and --data.")
    inside = present(folder)
    if spec.partition(":")[0] not in CODELESS[name] and any(place.is_relative_to(inside) for place in sources_of(spec)):
        raise BadInput(
            f"The plan in {folder} names {spec!r} as its {name}, code that lies in that very folder, and whoever wrote the folder "
            f"wrote that, too. Give it with --{name} if you trust it."
        )
    return spec


def graph_again(folder: Path, build: Callable[[], nn.Module], made: Mapping[str, object], splits: Splits) -> Callable[[], nn.Module]:
    """What builds the exported graph that a plan was made for: of the model, and of an example of the same sizes. Raises BadInput."""
    text = made.get("example")
    try:
        example = example_in(splits.train, text if isinstance(text, str) else None)
    except BadInput as error:
        raise BadInput(f"The plan in {folder} is of an exported graph, whose example cannot be made again: {error}") from error
    return lambda: as_graph(build(), example)


def check_split(folder: Path, spec: str, splits: Splits) -> None:
    """Raises BadInput where the samples no longer fall into the splits of split.json: what was trained on could be tested on."""
    file = present(folder) / "split.json"
    if not file.exists():
        return
    try:
        then = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable(f"{file} cannot be read: {error}. Take the folder from where it is whole.") from error
    if not isinstance(then, dict):
        raise Unreadable(f"{file} is not a record of splits. Take the folder from where it is whole.")
    if then.get("data") != spec:
        return  # other data, on purpose
    now = json.loads(json.dumps(splits.record))
    for name in ("train", "validation", "test"):
        if then.get(name) != now.get(name):
            raise BadInput(
                f"The {name} split of {spec} is not the one in {file}: samples came, went or have other labels, so some that were trained "
                f"on could be tested on. Give the data as it was, or other data with --data."
            )


def dense_of(named: str, weights: Path | None, made: Mapping[str, object]) -> tuple[nn.Module | None, str]:
    """The dense model, where there are weights for it, or why the file that the plan names does not give it."""
    if weights is not None:
        return model_of(named, weights), ""
    then = made.get("weights")
    if not isinstance(then, str) or not (file := Path(then)).is_file():
        return None, ""
    try:
        return model_of(named, file), ""
    except (BadInput, Unreadable) as error:
        return None, f"The dense model is not shown: {error}"
