"""`secateur measure`: what it is asked for beside names, what it shows while it runs, what it says of the result, and its file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from .contexts import CONTEXTS, Keys
from .epochs import samples_of
from .errors import BadInput
from .frontends.models import function_of
from .progress import Tell
from .sensitivity import Sensitivity
from .structure import Structure
from .task import split_batch

NAMED = 2  # groups at either end of the early ranking
STRONGEST = 3  # conflicts that are named


def contexts_of(spec: str) -> str | Keys:
    """Contexts by their name, or the function batch -> keys that file.py:function names. Raises BadInput where there is none."""
    if ":" in spec:
        return cast(Keys, function_of(spec, "contexts")[0])
    if spec not in CONTEXTS:
        raise BadInput(f"There is no context {spec!r}. Choose {', '.join(CONTEXTS)}, or give file.py:function.")
    return spec


def refuse(file: Path) -> None:
    """Raises BadInput, before anything is computed, where a file cannot be written."""
    fact = "it is a folder" if file.is_dir() else "" if file.resolve().parent.is_dir() else "its folder does not exist"
    if fact:
        raise BadInput(f"{file} cannot be written: {fact}. Name another file.")


def of_model(sensitivity: Sensitivity, structure: Structure, file: Path) -> Sensitivity:
    """Raises BadInput where the file is of another model, or of other units of it."""
    if sensitivity.digest and sensitivity.digest != structure.digest:
        raise BadInput(f"{file} was measured on other weights than those of this model. Measure again with secateur measure.")
    for name in [*structure.groups, *sensitivity.global_]:
        now = structure.groups[name].shape if name in structure.groups else None
        then = tuple(sensitivity.global_[name].shape) if name in sensitivity.global_ else None
        if now != then:
            raise BadInput(
                f"{file} has {then or 'no units'} in the group {name}, but this model's structure has {now or 'none'}. "
                f"Give the same --structure, --units and --exact, or measure again with secateur measure."
            )
    return sensitivity


class Stopped(Exception):
    """Ctrl-C; the text says what is kept."""


@contextmanager
def going_on(checkpoint: Path | None, tell: Callable[[str], None]) -> Iterator[None]:
    """Tells that a measurement goes on from its checkpoint, where there is one. Raises Stopped on Ctrl-C where it could go on again."""
    if checkpoint is not None and checkpoint.exists():
        tell(f"goes on from {checkpoint}")
    try:
        yield
    except KeyboardInterrupt as error:
        if checkpoint is None or not checkpoint.exists():
            raise
        raise Stopped(f"what was measured so far is in {checkpoint}, and the same command goes on from there") from error


@dataclass
class Counted:
    """Data that remembers how many of its samples were read in the last pass, and whether it was read to its end."""

    data: Iterable[object]
    read: int = field(default=0, init=False)
    over: bool = field(default=False, init=False)

    def __iter__(self) -> Iterator[object]:
        self.read, self.over = 0, False
        for batch in self.data:
            self.read += samples_of(split_batch(batch)[0])
            yield batch
        self.over = True

    def __len__(self) -> int:
        return len(cast(Sized, self.data))  # a TypeError where the data has no length

    def whole(self, sensitivity: Sensitivity) -> bool:
        """Whether all of it was measured."""
        return self.over and sensitivity.samples == self.read


@dataclass
class Early:
    """A bar that shows the first ranking below how far it is."""

    tell: Tell
    quiet: bool
    words: str = field(default="", init=False)

    @property
    def watch(self) -> Callable[[Sensitivity], None] | None:
        """None where nobody watches: looking takes time."""
        return None if self.quiet or not sys.stderr.isatty() else self.look

    def look(self, now: Sensitivity) -> None:
        found = ends(now)
        self.words = found and f"so far: {found}"

    def progress(self, done: int, total: int | None) -> None:
        self.tell(done, total, self.words)


def ends(sensitivity: Sensitivity) -> str:
    """The groups whose units matter most and least, on average."""
    each = {name: float(values.abs().mean()) for name, values in sensitivity.global_.items()}
    ranked = sorted(each, key=lambda name: -each[name])
    if len(ranked) < 2:
        return ""
    some = min(NAMED, len(ranked) // 2)
    return f"dearest {', '.join(ranked[:some])}; cheapest {', '.join(reversed(ranked[-some:]))}"


def taken(sensitivity: Sensitivity, data: Counted, enough: float | None) -> list[str]:
    """What it took, and whether it stopped before the data did, where that was asked for."""
    if enough is None:
        return []
    took = f"{sensitivity.samples:,} samples and {sensitivity.count:,} contexts"
    if data.whole(sensitivity):
        return [f"Not stopped early: it took all {took}."]
    return [f"Stopped early, after {took}: at least {enough:.0%} was asked for (--enough {enough:g})."]


def sure(sensitivity: Sensitivity) -> list[str]:
    """How far the ranking can be relied on, and for whom it is wrong: a sentence each."""
    said = []
    if stability := sensitivity.stability:
        said.append(
            f"Halves of the data agree on {stability.agreement:.0%} of what would leave at {stability.amount:g} "
            f"(rank correlation {stability.correlation:.2f})."
        )
    if sensitivity.keys and (found := sensitivity.conflicts(limit=STRONGEST)):
        named = "; ".join(f"{one.group}:{one.unit} by {one.key} ({one.local_share:.1%} of its sensitivity)" for one in found)
        said.append(f"Cheap for most, but needed: {named}.")
    return said
