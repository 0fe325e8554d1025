"""Accuracy after pruning ResNet-20 and ResNet-56 on CIFAR-10, with no training: every criterion, budget and way of choosing in one table.

python benchmarks/cifar.py                 the whole table into docs/cifar.md; a finished row is kept, so start it again after a stop
python benchmarks/cifar.py --quick         ResNet-20, the first 2,000 test images, printed
python benchmarks/cifar.py --only net=56 structure=channels criterion=fisher
python benchmarks/cifar.py --choose        compare ways of choosing channels on training images that nothing was measured on
python benchmarks/cifar.py --table         rewrite docs/cifar.md from the rows that are there
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin halve the speed wherever another process runs

import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import results
import secateur as sc
from cifar_table import page, summary
from images import cifar10, sample
from nets import resnet
from recipes import Batches, Recipe, channels_of, measure, plan_by

SAMPLE, HELD_OUT = 2048, 2000  # training images to measure on, and others to choose by
CRITERIA = ("gradient", "taylor", "magnitude", "l1", "fisher", "hessian", "random")
CONNECTIONS = (0.5, 0.8, 0.9, 0.95)  # the share removed
RATIOS = (1.3, 1.5, 2.0)  # MACs before / MACs after
LOCALS = (0.0, 0.3, 0.6)
REPAIRS = ("none", "statistics")
BATCH = 100  # of the evaluation


def loss(outputs: object, targets: object) -> object:
    assert isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    return F.cross_entropy(outputs, targets)


METRICS = ("top1", "top5", "worst_class", loss)  # on images that the network was trained on, top-1 is near 100 % and the loss tells more


@dataclass(frozen=True)
class Case:
    """Everything that a row's figures depend on, except the code. Two rows of one case are the same row.

    amount: the share of the connections removed; for channels 1 - 1/ratio of the MACs. repairs are told apart within a case's two rows.
    """

    net: int
    structure: str = "dense"
    amount: float = 0.0
    recipe: Recipe = field(default_factory=lambda: Recipe("none"))
    images: int = 10_000
    split: str = "test"
    seed: int = 0

    def settings(self, repair: str) -> results.Row:
        told = asdict(self)
        return {**{name: value for name, value in told.items() if name != "recipe"}, **told["recipe"], "repair": repair}


def ratio(value: float) -> float:
    return round(1 - 1 / value, 6)


def main_cases(net: int) -> Iterator[Case]:
    """Dense, and every criterion at every budget, those that most is asked of first."""
    yield Case(net)
    for value in RATIOS:
        yield from (Case(net, "channels", ratio(value), Recipe(criterion)) for criterion in CRITERIA)
    for amount in CONNECTIONS:
        yield from (Case(net, "connections", amount, Recipe(criterion)) for criterion in CRITERIA)
        yield Case(net, "connections", amount, Recipe("magnitude", scope="layer"))


def local_cases(net: int) -> Iterator[Case]:
    """Does local sensitivity protect the worst class?"""
    budgets = [("channels", ratio(value)) for value in RATIOS] + [("connections", amount) for amount in CONNECTIONS]
    for structure, amount in budgets:
        for criterion in ("taylor", "fisher"):
            yield from (Case(net, structure, amount, Recipe(criterion, "class", local)) for local in LOCALS)


def sample_cases(net: int) -> Iterator[Case]:
    """Taylor with every image as a context of its own: gradients of different images do not cancel (an empirical Fisher of the gates)."""
    yield Case(net, "connections", 0.5, Recipe("taylor", "sample"))
    yield from (Case(net, "channels", ratio(value), Recipe("taylor", "sample")) for value in RATIOS)


CHOSEN = (
    Recipe("fisher", per_mac=True, inner=True),
    Recipe("fisher", per_mac=True, inner=True, steps=4),
    Recipe("fisher_weighted", per_mac=True, inner=True),
    Recipe("fisher_weighted", per_mac=True, inner=True, steps=4),
)


def chosen_cases(net: int) -> Iterator[Case]:
    """Ways of choosing channels made of the library's parts; docs/cifar.md shows what --choose said of them and of others."""
    for value in RATIOS:
        yield from (Case(net, "channels", ratio(value), recipe) for recipe in CHOSEN)


def all_cases() -> list[Case]:
    """The most asked for first: a table that is cut short then lacks what matters least."""
    large, small = list(main_cases(56)), list(main_cases(20))
    channels = [case for case in large if case.structure != "connections"]
    half = [case for case in large if case.amount == 0.5]
    local = [case for case in local_cases(56) if case.structure == "channels"]
    first = [Case(56), Case(20), *small, *sample_cases(20), *channels, *local_cases(20), *half, *sample_cases(56)]
    first += [*local, *chosen_cases(20), *chosen_cases(56)]
    return list(dict.fromkeys([*first, *large, *local_cases(56)]))


def candidates() -> list[Case]:
    """What --choose compares, at 1.5x on ResNet-56, those first that seem most likely to be good."""
    ways = [Recipe(c, per_mac=True, inner=True) for c in ("l1", "magnitude", "taylor", "fisher", "gradient", "fisher_weighted")]
    ways += [Recipe(c, per_mac=True, inner=True, steps=4) for c in ("fisher", "taylor", "gradient", "fisher_weighted")]
    ways += [Recipe(c) for c in ("l1", "magnitude", "taylor", "fisher", "gradient")]
    ways += [Recipe(c, per_mac=True) for c in ("l1", "magnitude", "taylor", "fisher")]
    ways += [Recipe(c, inner=True) for c in ("l1", "magnitude", "taylor")]
    ways += [Recipe(c, scope="layer", inner=True) for c in ("taylor", "fisher", "magnitude")]
    return [Case(56, "channels", ratio(1.5), way, HELD_OUT, "held-out training images") for way in ways]


# each made once a run -------------------------------------------------------------------------------------------------------------------


@cache
def images(data: Path, split: str) -> tuple[Tensor, Tensor]:
    return cifar10(data, split)


@cache
def calibration(data: Path, seed: int, size: int) -> Batches:
    """The training images to measure on: a random sample, never one that a choice is made by."""
    return part(data, seed, 0, size)


@cache
def part(data: Path, seed: int, which: int, size: int) -> Batches:
    pixels, labels = images(data, "train")
    index = sample(labels, (SAMPLE, HELD_OUT), seed)[which]
    return list(zip(pixels[index].split(size), labels[index].split(size)))


@cache
def evaluated_on(data: Path, split: str, count: int, seed: int) -> Batches:
    if split != "test":
        return part(data, seed, 1, BATCH)
    pixels, labels = images(data, "test")
    return list(zip(pixels[:count].split(BATCH), labels[:count].split(BATCH)))


@cache
def net(data: Path, depth: int) -> nn.Module:
    return resnet(depth, data)


@cache
def structure_of(data: Path, depth: int, kind: str, inner: bool) -> sc.Structure:
    example = torch.zeros(1, 3, 32, 32)
    return sc.weights(net(data, depth), example) if kind == "connections" else channels_of(net(data, depth), example, inner)


@cache
def measured_once(data: Path, depth: int, kind: str, inner: bool, criterion: str, contexts: str, batch: int, seed: int) -> sc.Sensitivity:
    """Of the dense network: one measurement serves every budget and every weight of the local sensitivity."""
    say(f"    measuring {criterion} by {contexts} on {kind} of ResNet-{depth}")
    structure = structure_of(data, depth, kind, inner)
    return measure(Recipe(criterion, contexts), net(data, depth), structure, calibration(data, seed, batch), F.cross_entropy, seed)


# a case ---------------------------------------------------------------------------------------------------------------------------------


def run(case: Case, data: Path, wanted: list[str]) -> Iterator[tuple[str, results.Row]]:
    """(repair, figures) for each wanted repair of the case."""
    dense, test = net(data, case.net), evaluated_on(data, case.split, case.images, case.seed)
    if case.structure == "dense":
        yield "none", {**sc.evaluate(quick(dense), test, METRICS), "macs": 1.0, "kept": 1.0}
        return
    plan, again = planned(case, data), calibration(data, case.seed, 128)
    pruned = sc.shrink(dense, plan)
    size = {"macs": share(plan, "macs"), "kept": share(plan, "units"), "parameters": share(plan, "parameters")}
    for repair in wanted:
        model = pruned if repair == "none" else sc.reestimate(pruned, dense, again, plan)
        yield repair, {**sc.evaluate(quick(model), test, METRICS), **size}


def quick(model: nn.Module) -> nn.Module:
    """The same function, faster: batch norms folded into their convolutions, channels last in memory."""
    folded = copy.deepcopy(model)
    for block in folded.modules():
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
            if hasattr(block, conv):
                setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
                setattr(block, norm, nn.Identity())
    return folded.to(memory_format=torch.channels_last)


def planned(case: Case, data: Path) -> sc.Plan:
    recipe, dense = case.recipe, net(data, case.net)
    structure = structure_of(data, case.net, case.structure, recipe.inner)
    batches = calibration(data, case.seed, recipe.batch)

    def measured(model: nn.Module) -> sc.Sensitivity:
        if model is not dense:
            return measure(recipe, model, structure, batches, F.cross_entropy, case.seed)
        return measured_once(data, case.net, case.structure, recipe.inner, recipe.criterion, recipe.contexts, recipe.batch, case.seed)

    if case.structure == "channels":
        return plan_by(recipe, dense, structure, batches, case.amount, measured)
    return sc.select(sc.merge(measured(dense), recipe.local), structure, case.amount, "units", recipe.scope)


def share(plan: sc.Plan, of: str) -> float:
    before, after = plan.cost[of]
    return round(after / before, 6)


# the table ------------------------------------------------------------------------------------------------------------------------------


def repairs_of(case: Case) -> tuple[str, ...]:
    if case.structure == "dense":
        return ("none",)
    return REPAIRS if case.recipe.contexts == "batch" and case.split == "test" else ("statistics",)


def fill(cases: list[Case], path: Path, data: Path, fresh: bool = False, after_row: bool = False) -> list[results.Row]:
    """Run what is missing and append it, a row at a time. fresh: rows of another commit of the library are missing, too."""
    commit, machine = results.commit(), results.machine()
    for number, case in enumerate(cases, 1):
        rows = results.read(path)
        there = [row for row in rows if not fresh or row.get("commit") == commit]
        wanted = [repair for repair in repairs_of(case) if not any(results.same(row, case.settings(repair)) for row in there)]
        start = time.perf_counter()
        for repair, figures in run(case, data, wanted) if wanted else ():
            settings, seconds = case.settings(repair), round(time.perf_counter() - start, 1)
            row: results.Row = {**settings, **figures, "seconds": seconds, "commit": commit, "machine": machine}
            results.write(path, [*(old for old in results.read(path) if not results.same(old, settings)), row])
            say(f"{number}/{len(cases)} {describe(case)} {repair}: top-1 {100 * float(str(row['top1'])):.2f} ({seconds} s)")
            start = time.perf_counter()
            if after_row:
                write_page()
    return results.read(path)


def write_page() -> None:
    rows, compared = (results.read(results.RESULTS / name) for name in ("cifar.json", "cifar-choose.json"))
    results.write_text(results.DOCS / "cifar.md", page(rows, compared))


def describe(case: Case) -> str:
    recipe, plain = asdict(case.recipe), asdict(Recipe(case.recipe.criterion))
    told = " ".join(f"{name}={value}" for name, value in recipe.items() if value != plain[name])
    return f"ResNet-{case.net} {case.structure} {case.amount:g} {case.recipe.criterion} {told}".strip()


def chosen_by(cases: list[Case], words: list[str]) -> list[Case]:
    """The cases with these settings, each word `name=value`."""
    for word in words:
        name, _, value = word.partition("=")
        cases = [case for case in cases if str(case.settings("").get(name)) == value]
    return cases


def say(words: str) -> None:
    print(words, flush=True)


def main() -> int:
    parser = results.options(__doc__, data=results.DATA, threads=2)
    parser.add_argument("--quick", action="store_true", help="ResNet-20, the first 2,000 test images")
    parser.add_argument("--choose", action="store_true", help="compare ways of choosing channels on held-out training images")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME=VALUE", help="only cases with these settings")
    parser.add_argument("--fresh", action="store_true", help="measure rows of an earlier commit again")
    parser.add_argument("--table", action="store_true", help="only rewrite docs/cifar.md")
    given = parser.parse_args()
    path = results.RESULTS / ("cifar-quick.json" if given.quick else "cifar-choose.json" if given.choose else "cifar.json")
    cases = all_cases()
    if given.quick:
        cases = [Case(20, case.structure, case.amount, case.recipe, 2_000) for case in main_cases(20)]
    elif given.choose:
        cases = candidates()
    if given.table:
        write_page()
        return 0
    if why := results.missing(given.data):
        print(why, file=sys.stderr)
        return 2
    torch.set_num_threads(given.threads)
    try:
        rows = fill(chosen_by(cases, given.only), path, given.data, given.fresh, after_row=not given.quick and not given.choose)
    except KeyboardInterrupt:
        say(f"Stopped. Finished rows are in {path.name}; the same command goes on from there.")
        return 130
    if given.quick or given.choose:
        say(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
