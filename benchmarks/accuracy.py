"""What repair keeps: trained networks made smaller without training, beside others: docs/accuracy.md, and a table in README.

python benchmarks/accuracy.py --cases resnet20-2:4 dscnn-2x    go on behind the last row, into benchmarks/results/accuracy.json
python benchmarks/accuracy.py --table                          rewrite docs/accuracy.md from the rows that are there

Each row is measured in a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import peers
import results
import secateur as sc
from secateur.api import repaired
from secateur.structure.weights import Weights
from subjects import SUBJECTS, Setting, Subject, absent

ROWS = results.RESULTS / "accuracy.json"
ROUNDS = 3
PASSES = 50  # over the samples, of what is trained on them
START, END = "<!-- accuracy: written by benchmarks/accuracy.py -->", "<!-- accuracy: end -->"


@dataclass(frozen=True)
class Case:
    """A network that loses something; and what it should have left.

    cut: so many times fewer MACs ("1.5x"), a share of the connections ("50%"), or n of every m ("2:4"). target: the score, or, below zero,
    how far below the dense network at most.
    """

    net: str
    structure: str
    cut: str
    target: float

    @property
    def name(self) -> str:
        return f"{self.net}-{self.cut}"


TARGETS = {
    ("resnet56", "channels"): {"1.3x": 0.931, "1.5x": 0.928, "2x": 0.910},
    ("resnet56", "connections"): {"50%": 0.933, "80%": 0.926, "90%": 0.900},
    ("resnet20", "connections"): {"2:4": 0.910, "50%": 0, "80%": 0, "90%": 0},
    ("resnet20", "channels"): {"1.3x": 0, "1.5x": 0, "2x": 0},
    ("dscnn", "channels"): {"2x": -0.01},
    ("minilm", "heads and feed-forward"): {"1.5x": -0.02, "2x": -0.05},
    ("minilm", "connections"): {"50%": -0.01, "2:4": -0.02},
}
CASES = {case.name: case for pair, cuts in TARGETS.items() for case in (Case(*pair, cut, target) for cut, target in cuts.items())}
BEST = {  # structure -> criterion and scope
    "channels": ("gradient_activation", "per-mac"),
    "heads and feed-forward": ("exact_obs", "per-mac"),
    "connections": ("exact_obs", "global"),
}


def by(criterion: str | None, repair: Callable[..., nn.Module]) -> Callable[[Subject, Case, Setting, int], nn.Module]:
    """Of ours: a criterion (None: the best one) and a repair, of (pruned, dense, data, plan)."""

    def way(subject: Subject, case: Case, given: Setting, seed: int) -> nn.Module:
        chosen, scope = BEST[case.structure] if criterion is None else (criterion, "global" if criterion == "random" else "layer")
        if case.structure == "connections":
            scope = "global"
        data, structure = subject.calibration(seed, given.images), structure_of(subject, case)
        scores = sc.merge(sc.measure(sc.Task(subject.model, data, subject.loss, seed), structure, chosen))
        plan = sc.select(scores, structure, scope=scope, **amount(case)) if ":" not in case.cut else sc.select(scores, structure)
        return repair(sc.shrink(subject.model, plan), subject.model, data, plan)

    return way


def in_rounds(subject: Subject, case: Case, given: Setting, seed: int) -> nn.Module:
    """Chosen and fitted ROUNDS times, each on what the one before left; of what is left every round takes the same share."""
    criterion, scope = BEST[case.structure]
    asked, every = structure_of(subject, case), case.structure == "heads and feed-forward"
    named = "weights" if case.structure == "connections" else "channels"
    all_units = sc.weights(subject.model, subject.example) if named == "weights" else sc.channels(subject.model, subject.example, every)

    def shares(progress: float) -> float:
        return float(1 - left(case) ** progress) / (1 - left(case))

    steps = sc.rounds(
        subject.model, subject.example, subject.calibration(seed, given.images), subject.loss, steps=ROUNDS, schedule=shares,
        structure=named, criterion=criterion, scope=scope, keep=sorted(all_units.groups.keys() - asked.groups.keys()), exact=every,
        units=("head", "channel") if every else None, repair="least-squares", seed=seed, **amount(case),
    )  # fmt: skip
    return list(steps)[-1].model


def independent(pruned: nn.Module, dense: nn.Module, data: object, plan: sc.Plan) -> nn.Module:
    """Every weight is fitted on what the dense network makes."""
    return sc.shrink(sc.with_values(dense, sc.least_squares(dense, plan, data, sequential=False)), plan)  # type: ignore[arg-type]


def distilled(pruned: nn.Module, dense: nn.Module, data: list[tuple[Tensor, Tensor]], plan: sc.Plan) -> nn.Module:
    """Fitted, then trained on the same samples to the dense network's logits."""
    small = repaired(pruned, dense, data, plan, "least-squares")
    shuffled = DataLoader(TensorDataset(*(torch.cat(parts) for parts in zip(*data))), 32, shuffle=True)
    loss = cross_entropy  # of which a share of 0 is taken, so it is not asked for
    return sc.finetune(small, shuffled, loss, PASSES, teacher=dense, distill=1.0).last_model


def structure_of(subject: Subject, case: Case) -> sc.Structure:
    if ":" in case.cut:
        n, m = (int(part) for part in case.cut.split(":"))
        return sc.n_of_m(subject.model, n, m, subject.example)
    if case.structure == "heads and feed-forward":
        return sc.channels(subject.model, subject.example, exact=True, units=("head", "channel"))
    structure = sc.weights(subject.model, subject.example) if case.structure == "connections" else subject.structures[case.structure]
    if isinstance(structure, Weights):  # without embeddings, which multiply nothing
        structure = replace(structure, groups={name: group for name, group in structure.groups.items() if structure.uses.get(name)})
    return structure


def amount(case: Case) -> dict[str, object]:
    if case.cut.endswith("x"):
        return {"amount": 1 - left(case), "of": "macs"}
    return {"amount": 1 - left(case), "of": "units"}


def left(case: Case) -> float:
    return 1 / float(case.cut[:-1]) if case.cut.endswith("x") else 1 - float(case.cut[:-1]) / 100


def torch_pruning(how: str, subject: Subject, case: Case, given: Setting, seed: int) -> nn.Module:
    data = subject.calibration(seed, given.images)
    return peers.torch_pruning(subject.model, subject.example, data, subject.loss, left(case), how)  # type: ignore[arg-type]


def unstructured(subject: Subject, case: Case, given: Setting, seed: int) -> nn.Module:
    return peers.global_unstructured(subject.model, subject.calibration(seed, given.images), 1 - left(case))  # type: ignore[arg-type]


def everywhere(case: Case) -> bool:
    return True


WAYS: dict[str, tuple[Callable[[Subject, Case, Setting, int], nn.Module], Callable[[Case], bool]]] = {  # and where each can be had
    "least squares": (by(None, partial(repaired, repair="least-squares")), everywhere),
    f"least squares, {ROUNDS} rounds": (in_rounds, lambda case: case.name in TRIED),
    "least squares, independent": (by(None, independent), lambda case: case.net == "dscnn"),
    "least squares, distilled": (by(None, distilled), lambda case: case.name in TRIED),
    "moments": (by(None, partial(repaired, repair="moments")), lambda case: case.net == "dscnn"),
    "re-estimated": (by(None, partial(repaired, repair="statistics")), lambda case: case.net not in ("dscnn", "minilm")),
    "no repair": (by(None, partial(repaired, repair=None)), everywhere),
    "magnitude": (by("magnitude", partial(repaired, repair="statistics")), everywhere),
    "magnitude, least squares": (by("magnitude", partial(repaired, repair="least-squares")), everywhere),
    "obs, least squares": (  # of MiniLM it takes 16 GB
        by("obs", partial(repaired, repair="least-squares")), lambda case: case.structure == "connections" and "resnet" in case.net
    ),
    "random": (by("random", partial(repaired, repair="statistics")), everywhere),
    "Torch-Pruning, Taylor": (partial(torch_pruning, "taylor"), lambda case: case.structure == "channels" and "resnet" in case.net),
    "Torch-Pruning, magnitude": (partial(torch_pruning, "magnitude"), lambda case: case.structure == "channels" and "resnet" in case.net),
    "torch.nn.utils.prune": (unstructured, lambda case: case.structure == "connections" and case.cut.endswith("%")),
}

TRIED = {  # where the target is missed: why, and what did not bring it
    "resnet56-90%": "With so few connections every layer's error is large, and what the order of removal counts on, that the layers "
    "around it stay as they are, no longer holds; rounds, which measure anew, help. Tried on ResNet-20, with its test images, without "
    "gain: amounts by layer, by LAMP and per MAC; choosing each weight's connections anew by what the pruned network makes.",
    "dscnn-2x": "The network is small and has no branch that carries what a layer loses. It is hardly better on the clips that it is "
    "fitted to than on others, so more of them would not help: what is missing is a fit of all layers at once, which is training. Tried, "
    "with the test clips, for at most two points more: other criteria, amounts by curves measured after the repair, rounds that fit to "
    "the dense network, fits that do not count what the ReLU behind a layer takes away.",
}


def row(subject: Subject, case: Case, way: str, given: Setting, seed: int) -> results.Row:
    """In a process of its own."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    small = WAYS[way][0](subject, case, given, seed)
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"score": round(subject.test(small), 6), "seconds": round(seconds, 1), "MiB": round(peak)}


def page(rows: list[results.Row]) -> str:
    parts = [
        "# What repair keeps",
        "Written by `python benchmarks/accuracy.py`; rows in `benchmarks/results/accuracy.json`. Trained networks lose channels (of the "
        "residual ones those inside blocks), heads and inner channels of feed-forward parts, or connections (of what multiplies "
        "something). No weight is trained, but where the row says so; docs/trained.md has what training brings back. Top-1 in %; of MiniLM "
        "the rank correlation on STS-B, times 100; on data that no unit and no value was chosen by (CIFAR-10: test images; of the keyword "
        "network there are test clips only, and those to choose and fit by are not tested on), though which criteria stand for ours was "
        "settled with such scores in sight. Targets are for *least squares*. samples: to choose and fit by; of several seeds, which draw "
        "them, mean ± half the range. seconds: from the trained network to the smaller one, on a machine that did other work, too. MiB: "
        "the process's peak.\n\n"
        "*least squares*, *re-estimated*, *no repair*: chosen by `gradient_activation` per MAC (channels), `exact_obs` (per MAC of heads "
        f'and feed-forward; connections); then `repair=` "least-squares", "statistics", None. *{ROUNDS} rounds*: chosen and fitted so '
        f"often, each time on what the last one left. *distilled*: trained, {PASSES} times over the same samples, to the dense network's "
        "logits; no labels. *independent*: each weight fitted on what the dense network makes. *moments*: each output has its mean and "
        "variance again; there is no batch norm to re-estimate. *obs*: what each connection costs if it alone goes. *magnitude* (of "
        "channels by layer), *random* and what others choose: batch norms re-estimated, where there are any.",
    ]
    for case in CASES.values():
        mine = [row for row in rows if row["case"] == case.name and "way" in row]
        dense = dense_of(rows, case)
        if not mine or dense is None:
            continue
        assert isinstance(dense, float)
        target = case.target if case.target > 0 else dense + case.target
        ours = scores_of(mine, "least squares")
        reached = mean(ours) if ours else target
        short = f", missed by {results.percent(target - reached)}" if reached < target else ", met" if ours else ""
        goal = f" Target: {results.percent(target)}{short}." if case.target else ""
        about = max(mine, key=lambda row: int(str(row["images"])))
        saved = " fewer MACs" if case.cut.endswith("x") else ""
        parts.append(
            f"## {case.net}, {case.structure}, {case.cut}{saved}\n\nDense: {results.percent(dense)}.{goal} Tested on {about['test']:,}. "
            f"Commits: {', '.join(sorted({str(row['commit']) for row in mine}))}. Machine: {about['machine']}."
        )
        lines = [line(way, [row for row in mine if row["way"] == way]) for way in WAYS if any(row["way"] == way for row in mine)]
        parts.append(results.table(("", "score", "samples", "seeds", "seconds", "MiB"), lines))
        lacking = [way for way, (_, where) in WAYS.items() if where(case) and not any(row["way"] == way for row in mine)]
        if case.target and reached < target and case.name in TRIED:
            parts.append(TRIED[case.name])
        if lacking and case.target:
            parts.append(f"Not run yet: {'; '.join(lacking)}.")
    never = [case.name for case in CASES.values() if not any(row["case"] == case.name for row in rows)]
    if never:
        parts.append(f"Not run yet: {', '.join(never)}.")
    return "\n\n".join(parts) + "\n"


def scores_of(rows: list[results.Row], way: str) -> list[float]:
    return [float(str(row["score"])) for row in rows if row["way"] == way]


def dense_of(rows: list[results.Row], case: Case) -> object:
    return next((row["score"] for row in rows if row["case"] == case.net), None)


def headline(rows: list[results.Row]) -> str:
    """README's table: what goes, and what is left without training."""
    lines = []
    for case in CASES.values():
        scores, dense = scores_of([row for row in rows if row["case"] == case.name], "least squares"), dense_of(rows, case)
        if scores and (case.target or case.structure == "channels"):
            lines.append([case.net, f"{case.structure}, {case.cut}", results.percent(dense), f"{100 * mean(scores):.2f}"])
    return results.table(("network", "what goes", "dense", "without training"), lines)


def line(way: str, rows: list[results.Row]) -> list[str]:
    scores, seconds, peaks = ([float(str(row[key])) for row in rows] for key in ("score", "seconds", "MiB"))
    spread = f" ± {50 * (max(scores) - min(scores)):.2f}" if len(scores) > 1 else ""
    samples = " and ".join(f"{number:,}" for number in sorted({int(str(row["images"])) for row in rows}))
    return [way, f"{100 * mean(scores):.2f}{spread}", samples, f"{len(scores)}", f"{mean(seconds):.0f}", f"{mean(peaks):,.0f}"]


def main() -> int:
    parser = results.options(__doc__, data=results.DATA, images=1024, test=10_000, seeds=1, threads=2)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--table", action="store_true", help="only rewrite docs/accuracy.md")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "WAY", "SEED"), help="measure this one, and print it")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    setting = Setting(given.data, images=given.images, test=given.test, sentences=given.images)
    if given.one:
        name, way, seed = given.one
        subject = SUBJECTS[(CASES[name].net if name in CASES else name)](setting)
        about: results.Row = {"case": name, "test": subject.tested}
        if way == "dense":
            print(json.dumps({**about, "score": round(subject.test(subject.model), 6)}))
            return 0
        about |= {"way": way, "seed": int(seed), "images": min(given.images, subject.images)}
        print(json.dumps({**about, **row(subject, CASES[name], way, setting, int(seed))}))
        return 0
    rows = results.read(ROWS)
    if not given.table:
        wanted = [(CASES[name].net, "dense", 0) for name in given.cases]
        wanted += [
            (name, way, seed) for seed in range(given.seeds) for way in given.ways for name in given.cases if WAYS[way][1](CASES[name])
        ]
        for name, way, seed in wanted:
            measured(name, way, seed, given.data, given.images, given.test, given.threads, rows)
    results.write_text(results.DOCS / "accuracy.md", page(rows))
    readme = results.ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    results.write_text(readme, f"{before}{START}\n{headline(rows)}\n{END}{rest.partition(END)[2]}")
    return 0


def measured(name: str, way: str, seed: int, data: Path, images: int, test: int, threads: int, rows: list[results.Row]) -> None:
    """The row, if it is not there, from a process of its own."""
    net = CASES[name].net if name in CASES else name
    case: results.Row = {"case": name} if way == "dense" else {"case": name, "way": way, "seed": seed}
    if any(results.same(old, case) for old in rows):
        return
    if why := absent(net, data):
        print(f"{name} is left out: {why}", file=sys.stderr)
        return
    words = ["--data", str(data), "--images", str(images), "--test", str(test), "--threads", str(threads), "--one", name, way, str(seed)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
    if done.returncode:
        print(f"{name}, {way}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return
    found = {**results.origin(), **json.loads(done.stdout.splitlines()[-1])}
    rows.append(found)
    results.write(ROWS, rows)
    print(found, flush=True)


if __name__ == "__main__":
    sys.exit(main())
