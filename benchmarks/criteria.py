"""Every criterion on every structure of four networks, three budgets each, without training: docs/criteria.md.

python benchmarks/criteria.py --models resnet20 dscnn resnet56 --device cuda --limit 150     go on behind the last row, for so many seconds
python benchmarks/criteria.py --models minilm              on a processor: half an hour
python benchmarks/criteria.py --join a.json b.json         put the rows of runs elsewhere (--rows) among those that are there
python benchmarks/criteria.py --table                      rewrite docs/criteria.md from the rows that are there
python benchmarks/criteria.py --models resnet20 --images 64 --test 200 --only taylor magnitude --rows /tmp/rows.json
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin halve the speed wherever another process runs

import argparse
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import criteria_table
import results
import secateur as sc
from subjects import SUBJECTS, Batches, Setting, Subject, absent

ROWS = results.RESULTS / "criteria.json"
BUDGETS = {  # structure -> what is saved, and the shares of it that are removed
    "channels": ("macs", (0.2, 0.33, 0.5)),
    "connections": ("parameters", (0.5, 0.7, 0.8)),
    "heads": ("units", (0.25, 0.5, 0.75)),
    "feed-forward": ("units", (0.25, 0.5, 0.75)),
}
FRAGILE = {("dscnn", "channels"): (0.1, 0.2, 0.33), ("dscnn", "connections"): (0.2, 0.35, 0.5)}  # beyond these all is lost
SCOPES = {"channels": "per-mac", "connections": "global", "heads": "global", "feed-forward": "global"}
LAYERWISE = (  # scores that their papers compare within a layer only: measured by layer as well
    "random", "magnitude", "l1", "lp", "bn_scale", "fpgm", "cosine", "wanda", "mean_activation", "apoz", "hrank",
)  # fmt: skip
CHANCE = ("random", "hessian", "hutch++", "output_kl", "output_mse", "output_features")  # three seeds
SEEDS = 3
ALIKE = {"l1": "magnitude", "lp": "magnitude", "needed": "snr"}  # of a single connection they rank the same
FEWER = {  # criterion, of which structure ("" for all) -> the most samples, of those that cost many passes, or work as hard
    ("obs", ""): 128, ("hrank", ""): 128, ("hutch++", ""): 256, ("snr", ""): 256, ("needed", ""): 256,
}  # fmt: skip
FEWER_SENTENCES = {"hutch++": 32, "hessian": 32}  # of MiniLM, on a processor
LEFT_OUT = {("minilm", "obs"): "It holds 64 copies of all weights in float64, 12 GB of this network: not run."}


@dataclass(frozen=True)
class Work:
    """One measurement, and what is made of it: a row for each scope and budget."""

    model: str
    structure: str
    criterion: str
    seed: int

    @property
    def budgets(self) -> tuple[float, ...]:
        return FRAGILE.get((self.model, self.structure), BUDGETS[self.structure][1])

    @property
    def scopes(self) -> tuple[str, ...]:
        return (SCOPES[self.structure], *(("layer",) if self.criterion in LAYERWISE else ()))

    def samples(self, whole: int) -> int:
        few = FEWER.get((self.criterion, ""), FEWER.get((self.criterion, self.structure), whole))
        return min(whole, few, FEWER_SENTENCES.get(self.criterion, whole) if self.model == "minilm" else whole)

    def settings(self, subject: Subject, scope: str, budget: float | None) -> results.Row:
        """What a row is known by."""
        place: results.Row = {"model": self.model, "structure": self.structure, "criterion": self.criterion, "scope": scope}
        return {**place, "seed": self.seed, "budget": budget, "images": self.samples(subject.images), "test": subject.tested}


def names() -> list[str]:
    """The criteria, each function once, those first that the others are held against."""
    first: dict[int, str] = {}
    for name, function in sc.CRITERIA.items():
        first.setdefault(id(function), name)
    return sorted(first.values(), key=lambda name: name not in ("random", "magnitude"))


def works(subjects: list[Subject], only: list[str]) -> list[Work]:
    """The first seed of everything, the slow ones last, then what chance asks for beyond it: a run that is cut short then lacks that."""
    found = [
        Work(subject.name, structure, criterion, seed)
        for seed in range(SEEDS)
        for subject in subjects
        for structure in subject.structures
        for criterion in (only or names())
        if (seed == 0 or criterion in CHANCE) and not (structure == "connections" and criterion in ALIKE)
    ]
    slow = {criterion for criterion, _ in FEWER}
    return sorted(found, key=lambda work: (work.seed, work.criterion in slow, work.criterion not in ("random", "magnitude")))


# a measurement --------------------------------------------------------------------------------------------------------------------------


def clock(device: str) -> float:
    """Seconds: of the wall where another device works, of the processor where it does (other processes may run beside this one)."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def taken(device: str, way: Callable[[], object]) -> float:
    start = clock(device)
    way()
    return clock(device) - start


def forward_backward(subject: Subject, data: Batches) -> None:
    """Forward and backward as anyone writes it, in evaluation mode."""
    for inputs, targets in data:
        subject.model.zero_grad()
        subject.loss(subject.model(*inputs) if isinstance(inputs, tuple) else subject.model(inputs), targets).backward()
    subject.model.zero_grad()


class Plain:
    """Seconds of plain forward and backward over the samples, the median of three, once for every number of them."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[tuple[str, int], float] = {}

    def of(self, subject: Subject, number: int) -> float:
        key = subject.name, number
        if key not in self.seconds:
            data = subject.calibration(0, number)
            forward_backward(subject, data[:1])
            self.seconds[key] = statistics.median(taken(self.device, lambda: forward_backward(subject, data)) for _ in range(3))
        return self.seconds[key]


def run(work: Work, subject: Subject, wanted: list[tuple[str, float]], given: Setting, plain: Plain) -> Iterator[results.Row]:
    """The rows of one measurement. A criterion that refuses the structure gives a single one, with the reason."""
    structure, number = subject.structures[work.structure], work.samples(subject.images)
    task = sc.Task(subject.model, subject.calibration(work.seed, number), subject.loss, work.seed)
    try:
        if reason := LEFT_OUT.get((work.model, work.criterion)):
            raise sc.BadInput(reason)
        if given.device != "cpu":  # kernels are loaded when they are first used
            sc.measure(sc.Task(subject.model, subject.calibration(work.seed, 8), subject.loss), structure, work.criterion)
        start = clock(given.device)
        measured = sc.measure(task, structure, work.criterion)
        seconds = clock(given.device) - start
    except sc.SecateurError as error:
        yield {**work.settings(subject, "", None), "refused": str(error)}
        return
    scores, again = sc.merge(measured), at_once(subject.calibration(work.seed, subject.images))
    spent: results.Row = {"seconds": round(seconds, 4), "plain": round(plain.of(subject, number), 4)}
    for scope, budget in wanted:
        settings = work.settings(subject, scope, budget)
        try:
            plan = sc.select(scores, structure, budget, BUDGETS[work.structure][0], scope)
        except sc.SecateurError as error:
            yield {**settings, "refused": str(error)}
            continue
        pruned = sc.mask(subject.model, plan)
        row = {**settings, "straight": round(subject.test(pruned), 6), **spent}
        if subject.norms:
            row["reestimated"] = round(subject.test(sc.reestimate(pruned, subject.model, again)), 6)
        yield row


def at_once(data: Batches) -> Batches:
    """Batches of images put together: the moments are the same, and a device is better used."""
    if not all(isinstance(inputs, torch.Tensor) for inputs, _ in data):
        return data
    return [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]  # type: ignore[misc]


# all of them ----------------------------------------------------------------------------------------------------------------------------


class Kept:
    """The rows, in memory and on disk. made: what is told of each; fresh: those of another commit count as missing."""

    def __init__(self, path: Path, made: results.Row, fresh: bool = False) -> None:
        self.path, self.made = path, made
        self.asked = {"commit": made["commit"]} if fresh else {}
        self.rows = results.read(path)

    def has(self, settings: results.Row) -> bool:
        return any(results.same(row, {**settings, **self.asked}) for row in self.rows)

    def add(self, rows: list[results.Row]) -> None:
        """Written at once; a row takes the place of an earlier one on other numbers of samples."""
        for row in rows:
            place = {name: row.get(name) for name in ("model", "structure", "criterion", "scope", "seed", "budget")}
            self.rows = [*(old for old in self.rows if not results.same(old, place)), {**self.made, **row}]
        results.write(self.path, self.rows)


def missing(work: Work, subject: Subject, kept: Kept) -> list[tuple[str, float]]:
    if kept.has(work.settings(subject, "", None)):
        return []
    pairs = [(scope, budget) for scope in work.scopes for budget in work.budgets]
    return [(scope, budget) for scope, budget in pairs if not kept.has(work.settings(subject, scope, budget))]


def fill(subjects: list[Subject], given: Setting, kept: Kept, only: list[str], until: float) -> tuple[int, int]:
    """Run what is missing until the time is up. Returns how many measurements are left, and how many failed."""
    by_name, plain, left, failed = {subject.name: subject for subject in subjects}, Plain(given.device), 0, 0
    for subject in subjects:
        dense: results.Row = {"model": subject.name, "structure": "dense", "test": subject.tested}
        if not kept.has(dense):
            kept.add([{**dense, "straight": round(subject.test(subject.model), 6)}])
    all_works = works(subjects, only)
    for number, work in enumerate(all_works, 1):
        subject = by_name[work.model]
        if not (wanted := missing(work, subject, kept)):
            continue
        if time.monotonic() > until:
            left += 1
            continue
        start = time.perf_counter()
        try:
            rows = list(run(work, subject, wanted, given, plain))
        except Exception:  # shown, and tried again next time; the others go on: time on a lent device is short
            traceback.print_exc()
            failed += 1
            continue
        kept.add(rows)
        told = "refused" if "refused" in rows[0] else " ".join(percent(row) for row in rows)
        what = f"{work.model} {work.structure} {work.criterion} {work.seed}"
        say(f"{number}/{len(all_works)} {what}: {told} ({time.perf_counter() - start:.1f} s)")
    return left, failed


def percent(row: results.Row) -> str:
    return "/".join(results.percent(row[name]) for name in ("straight", "reestimated") if name in row) or "-"


def say(words: str) -> None:
    print(words, flush=True)


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--data", type=Path, default=results.DATA, help="the folder of cifar10, cifar10_resnet, mlperf_tiny and so on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=1024, help="samples to measure on (MiniLM: at most 256 pairs)")
    parser.add_argument("--test", type=int, default=5000, help="samples to test on (MiniLM: at most the 1,379 pairs that there are)")
    parser.add_argument("--only", nargs="+", default=[], choices=names(), metavar="CRITERION")
    parser.add_argument("--fresh", action="store_true", help="measure rows of another commit again")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which nothing new is begun")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where rows are kept; the page is written from the usual place only")
    parser.add_argument("--commit", help="what a row says of the library's version, where there is no repository")
    parser.add_argument("--join", nargs="+", type=Path, default=[], metavar="FILE", help="take over the rows of these files, run nothing")
    parser.add_argument("--table", action="store_true", help="only rewrite docs/criteria.md")
    parser.add_argument("--threads", type=int, default=2)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    torch.backends.cudnn.allow_tf32 = False  # the same numbers as on a processor, but for rounding
    subjects: list[Subject] = []
    given = Setting(words.data, words.device, words.images, words.test)
    only_page = words.table or bool(words.join)
    for name in () if only_page else words.models:
        if why := absent(name, words.data):
            print(f"{name} is left out: {why}", file=sys.stderr)
        else:
            subjects.append(SUBJECTS[name](given))
            say(f"{name}: {time.monotonic() - started:.1f} s")
    if not subjects and not only_page:
        return 2
    machine = results.machine() if words.device == "cpu" else f"{torch.cuda.get_device_name()}, {results.machine()}"
    kept = Kept(words.rows, {"commit": words.commit or results.commit(), "machine": machine}, words.fresh)
    for path in words.join:
        kept.add(results.read(path))
    left, failed = fill(subjects, given, kept, words.only, started + words.limit)
    if words.rows == ROWS:
        results.write_text(results.DOCS / "criteria.md", criteria_table.page(kept.rows))
    if left or failed:
        say(f"{left} measurements are left for the same command again, {failed} failed.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
