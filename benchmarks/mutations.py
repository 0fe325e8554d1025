"""Whether the tests would notice a wrong rule: every rule is broken in every systematic way, one at a time, without touching a file.

python benchmarks/mutations.py                     all rules, into docs/mutations.md
python benchmarks/mutations.py --rule cat --rule view   some, printed

A mutation drops the n-th call that a rule makes (unite, freeze, approximates, size), splits with outer and inner exchanged, exchanges two
dimensions of what it returns, or reverses one. It is noticed if a structure lacks a unit or has one too many, if the comparison of numbers
had to freeze one, or if a law fails, on a case (tests/cases.py, tests/cases_rules.py) or a random net (tests/walk.py) that runs the rule.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests"))

import cases  # noqa: E402
import cases_rules  # noqa: E402
import laws  # noqa: E402
import results  # noqa: E402
import secateur.structure.trace  # noqa: E402
from oracles import random_keep  # noqa: E402
from secateur.structure import channels  # noqa: E402
from secateur.structure.channels import ALL_KINDS  # noqa: E402
from secateur.structure.rules import RULES, pointwise  # noqa: E402
from secateur.surgery import unequal  # noqa: E402
from walk import Walk, parts, several, walk  # noqa: E402

PAGE = HERE.parent / "docs/mutations.md"
CALLS = ("unite", "freeze", "approximates", "size")
SEEDS, NETS, PATIENCE = 2, 400, 30  # plans a trial, random nets to choose from, seconds a trial
ALIKE = "new labels, whose order is free"
REASONS = {  # mutations that change nothing, and why
    ("scatter", "unite 1"): "samples, which no parameter has",
    ("copy_", "unite 1"): "samples, which no parameter has",
    ("copy_", "unite 2"): "steps, which no parameter has",
    ("made", "reversed 0"): ALIKE,
    ("expand", "reversed 2"): ALIKE,
    ("arange", "reversed 0"): ALIKE,
    ("same", "reversed 0"): "experts that rows are sent to by number, which never leave",
    ("weight_norm", "approximates 2"): "the extent of a kernel, which never leaves",
    ("weight_norm", "approximates 3"): "the extent of a kernel, which never leaves",
    ("view", "size 1"): "only in nn.MultiheadAttention, which stays whole",
    ("pointwise", "unite 4"): "pixels, which no parameter has",
}

Rule = Callable[..., Any]


@dataclass
class Seen:
    """What can be mutated in a rule where it is run: calls that change something, and dimensions of its results that may yet be cut."""

    runs: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    dims: list[tuple[str, Any, list[np.ndarray]]] = field(default_factory=list)

    def settled(self) -> Counter[str]:
        """Once the run is over, and it is known what is frozen."""
        return self.calls + Counter(what for what, labels, dims in self.dims if any(alive(labels, dim) for dim in dims))


def alive(labels: Any, dim: np.ndarray) -> bool:
    atoms = labels.resolve(dim)
    return dim.shape[1] > 1 and bool((labels.frozen[atoms[atoms > 0]] == 0).any())


def state(trace: Any) -> object:
    labels = trace.labels
    n = labels.size
    marks = (labels.find(np.arange(n)), labels.left[:n], labels.frozen[:n] > 0, labels.approximate[:n] > 0)
    return n, [mark.tobytes() for mark in marks], len(trace.attributes)


class Mutated:
    """A trace as a rule sees it, in which one call does nothing, or splits the other way."""

    def __init__(self, trace: Any, mutation: str, seen: Seen | None) -> None:
        self._trace, self._mutation, self._seen, self._calls = trace, mutation, seen, Counter[str]()

    def __getitem__(self, x: torch.Tensor) -> Any:
        return self._trace[x]

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._trace, name)
        if name not in (*CALLS, "split"):
            return value

        def called(*args: Any, **kwargs: Any) -> Any:
            self._calls[name] += 1
            what = f"{name} {self._calls[name]}"
            if what == self._mutation:
                return value(args[0], args[2], args[1])[::-1] if name == "split" else None
            before = state(self._trace) if self._seen is not None else None
            result = value(*args, **kwargs)
            if self._seen is not None and state(self._trace) != before:
                self._seen.calls[what] += 1
            return result

        return called


def broken(rule: Rule, mutation: str, seen: Seen | None = None) -> Rule:
    """The rule with one mutation ("unite 2", "exchanged 0 1", "reversed 1"), or, with "", noting in `seen` what could be mutated."""

    def mutant(t: Any, out: Any, *args: Any, **kwargs: Any) -> Any:
        result = rule(Mutated(t, mutation, seen), out, *args, **kwargs)
        several = bool(result) and not isinstance(result[0], np.ndarray)
        dims = list(result[0] if several else result)
        if seen is not None:
            seen.runs += 1
            seen.dims += [(f"reversed {d}", t.labels, [dim]) for d, dim in enumerate(dims)]
            seen.dims += [(f"exchanged {d} {d + 1}", t.labels, [*pair]) for d, pair in enumerate(pairwise(dims))]
        what, *numbers = mutation.split() or [""]
        at = [int(number) for number in numbers]
        if what == "reversed" and at[0] < len(dims):
            dims[at[0]] = dims[at[0]][:, ::-1]
        if what == "exchanged" and at[1] < len(dims):
            dims[at[0]], dims[at[1]] = dims[at[1]], dims[at[0]]
        return (tuple(dims), *result[1:]) if several else tuple(dims)

    return mutant


@contextmanager
def replaced(mutants: dict[Rule, Rule]) -> Iterator[None]:
    changed = {name: mutants[rule] for name, rule in RULES.items() if rule in mutants}
    with (
        mock.patch.dict(RULES, changed),
        mock.patch.object(secateur.structure.trace, "pointwise", mutants.get(pointwise, pointwise)),
    ):
        yield


# what is tried -------------------------------------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """A model, its inputs, and what its structure must be."""

    name: str
    make: Callable[[], tuple[torch.nn.Module, object]]
    wrong: Callable[[Any], str]  # a structure -> what is wrong with it
    sized: bool = False
    seen: dict[Rule, Counter[str]] = field(default_factory=dict)
    runs: set[Rule] = field(default_factory=set)

    def killed(self) -> str:
        """How the rules as they are fail here, or "" if all is well."""
        model, inputs = self.make()
        for exact in (False, True):
            structure = channels(model, inputs, exact, ALL_KINDS)
            found = unequal(model, structure, inputs)
            if found and not self.sized:
                return "numbers differ"
            structure = structure.without(found)
            if not exact and (wrong := self.wrong(structure)):
                return wrong
            for seed in range(SEEDS):
                keep = random_keep(structure, 0.5, seed)
                if exact:
                    laws.shrunk_equals_masked(model, inputs, structure, keep)
                elif not self.sized and any(group.approximate for group in structure.groups.values()):
                    laws.approximate_equals_statistics_over_what_is_kept(model, inputs, structure, keep)
                laws.counts_are_those_of_the_smaller_model(model, structure, keep)
        laws.order_does_not_matter(model, inputs, structure)
        laws.never_emptied(model, inputs, structure)
        return ""


def of_case(case: cases.Case) -> Trial:
    """The units of a case are known; where it has some that only show when asked for, those that the rules as they are find."""

    def wrong(structure: Any) -> str:
        if {name: group.size for name, group in structure.groups.items()} != units:
            return "other units"
        if tuple(name for name, group in structure.groups.items() if group.approximate) != approximate:
            return "other approximate units"
        return "" if all(words in structure.frozen[name].frozen for name, words in case.frozen.items()) else "another reason"

    model, inputs = case.model(), case.inputs()
    every = channels(model, inputs, False, ALL_KINDS)
    every = every.without(unequal(model, every, inputs))
    units = {name: group.size for name, group in every.groups.items()}
    approximate = tuple(name for name, group in every.groups.items() if group.approximate)
    assert set(case.units.items()) <= set(units.items()), case.name
    return Trial(case.name, lambda: (case.model(), case.inputs()), wrong, sized=bool(unequal(model, channels(model, inputs), inputs)))


def of_net(description: Any) -> Trial:
    net: Walk = walk(description)
    return Trial(
        f"walk {description}", lambda: (net.model, net.inputs), lambda s: "other units" if net.missing(s, False) else "", net.sized
    )


def trials() -> list[Trial]:
    made = [*map(of_case, [*cases.CASES, *cases_rules.CASES]), *map(of_net, various(NETS))]
    for trial in made:  # which rules it runs, and which of their calls
        seen = {rule: Seen() for rule in distinct()}
        with replaced({rule: broken(rule, "", noted) for rule, noted in seen.items()}):
            model, inputs = trial.make()
            channels(model, inputs, False, ALL_KINDS)
        trial.seen = {rule: noted.settled() for rule, noted in seen.items()}
        trial.runs = {rule for rule, noted in seen.items() if noted.runs}
    return made


def various(number: int) -> list[Any]:
    """Random nets, of which each has a block, with a choice of its options, that those before it lack."""
    found, chosen = set[object](), []
    for description in several(number):
        new = {(part[0], *(value for value in part[1:] if isinstance(value, str))) for part in parts(description)} - found
        if new:
            chosen.append(description)
            found |= new
    return chosen


def distinct() -> list[Rule]:
    return list(dict.fromkeys([*RULES.values(), pointwise]))


def mutations(rule: Rule, tried: list[Trial]) -> list[str]:
    """All that can be mutated in this rule on these trials."""
    return sorted(set().union(*(trial.seen[rule] for trial in tried)))


def fate(rule: Rule, mutation: str, tried: list[Trial]) -> str:
    """How the mutation is found ("other units in grouped"), or "" if it survives."""
    for trial in [trial for trial in tried if trial.seen[rule][mutation]]:
        with replaced({rule: broken(rule, mutation)}), patience():
            try:
                how = trial.killed()
            except Exception as error:  # an assertion of a law, or whatever a wrong structure leads to
                how = "a law fails" if isinstance(error, AssertionError) else type(error).__name__
        if how:
            return f"{how} in {trial.name}"
    return ""


@contextmanager
def patience() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# telling -------------------------------------------------------------------------------------------------------------------------------


def row(rule: Rule, fates: dict[str, str], run: bool) -> list[str]:
    survived = [mutation for mutation, how in fates.items() if not how]
    untold = "" if fates else "nothing to break: all is frozen or has no labels" if run else "no test runs it"
    told = [f"{mutation}: {REASONS.get((rule.__name__, mutation), 'no reason known')}" for mutation in survived]
    ways = Counter(how.split(" in ")[0] for how in fates.values() if how)
    return [
        rule.__name__, str(len(fates)), str(len(fates) - len(survived)),
        ", ".join(f"{how} {number}" for how, number in ways.most_common()), "; ".join(told) or untold,
    ]  # fmt: skip


def page(rows: list[list[str]], number: int) -> str:
    total, killed = (sum(int(cells[i]) for cells in rows) for i in (1, 2))
    return "\n".join(
        [
            "# Would a wrong rule be noticed?",
            "",
            "`python benchmarks/mutations.py` broke every operator rule in every systematic way, one at a time: a call dropped (`unite 2`",
            "is the second that the rule makes), a split with outer and inner exchanged, two dimensions exchanged, one reversed.",
            f"Of {total} mutations {killed} were noticed, by the cases of the tests or by {number} random nets.",
            "",
            results.table(["rule", "mutations", "noticed", "how", "not noticed"], rows),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rule", action="append", help="only this rule, printed and not written")
    parser.add_argument("--verbose", action="store_true", help="how each mutation was found")
    asked = parser.parse_args()
    tried, rows = trials(), []
    for rule in distinct():
        if asked.rule and rule.__name__ not in asked.rule:
            continue
        fates = {mutation: fate(rule, mutation, tried) for mutation in mutations(rule, tried)}
        rows.append(row(rule, fates, any(rule in trial.runs for trial in tried)))
        print("  ".join(rows[-1]), flush=True)
        if asked.verbose:
            print(*(f"    {mutation}: {how or 'SURVIVED'}" for mutation, how in fates.items()), sep="\n", flush=True)
    if not asked.rule:
        results.write_text(PAGE, page(rows, sum(trial.name.startswith("walk") for trial in tried)))


if __name__ == "__main__":
    main()
