"""What pruning does to the worst class, to calibration, and under noise, blur, contrast changes and attacks: docs/robust.md.

python benchmarks/robust.py --nets resnet20          go on behind the last row, into benchmarks/results/robust.json
python benchmarks/robust.py --table                  rewrite docs/robust.md from the rows that are there

Attacks are torchattacks' (pip install --no-deps torchattacks: of what it names it needs scipy and tqdm here, not torchvision), the
calibration error is torchmetrics'. No weight is trained. Ways to choose what goes differ; all are repaired on the same clean images.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

import results
import robust_table
import secateur as sc
from cifar import quick
from corruptions import CORRUPTIONS, LEVELS, noise
from images import MEAN, STD
from secateur.api import repaired
from subjects import SUBJECTS, Batches, Setting, Subject, absent, batched, images, last, top1

ROWS = results.RESULTS / "robust.json"
BINS, SIZE = 15, 250  # of the calibration error; images a batch
RADII = (0.5, 2, 8)  # of attacks, in 255ths of a pixel's range
SHEET, OTHERS = 5000, 1000  # test images from there on, so many, choose which way is repaired once more; nothing else is told of them
SEEN = LEVELS["noise"][2], RADII[1] / 255  # the noise and the radius of FGSM that a robust loss sees


@dataclass(frozen=True)
class Case:
    """What is removed: so much of what, ranked in which scope, by which criterion."""

    structure: str
    criterion: str
    amount: float
    of: str
    scope: str


CASES = {
    "channels": Case("channels", "gradient_activation", 1 / 3, "macs", "per-mac"),
    "connections": Case("connections", "taylor", 0.5, "units", "global"),
}
NETS = {"resnet20": ("channels", "connections"), "resnet56": ("channels",)}

Seen = Callable[[nn.Module, Tensor, Tensor], Tensor]  # the dense network, pixels, classes -> the pixels that sensitivity is measured on


@dataclass(frozen=True)
class Way:
    """criterion: instead of the case's. seen: None for clean images. contexts, local: as in `secateur.measure` and `merge`."""

    criterion: str | None = None
    seen: Seen | None = None
    contexts: str = "batch"
    local: float = 0.0
    structures: tuple[str, ...] = ("channels", "connections")


def noisy(net: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """The loss under noise: E over n of L(x + n)."""
    return noise(pixels, SEEN[0], seed=1)


def adversarial(net: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """The robust loss, max over |d| <= eps of L(x + d), by one step: d = eps sign(dL/dx) (Goodfellow et al., 2015; Madry et al., 2018)."""
    return attack("FGSM", SEEN[1])(net, pixels, labels)


WAYS = {
    "plain": Way(),
    "noise": Way(seen=noisy),
    "fgsm": Way(seen=adversarial),
    "local": Way(contexts="class", local=0.5),
    "lamp": Way("lamp", structures=("connections",)),
    "random": Way("random"),
}


class Pixels(nn.Module):
    """The network on pixels in 0..1: attacks move and clip those, not normalised values."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(normalised(pixels))


def normalised(pixels: Tensor) -> Tensor:
    return (pixels - MEAN) / STD


def pixels_of(inputs: object) -> Tensor:
    assert isinstance(inputs, Tensor)
    return (inputs * STD + MEAN).clamp(0, 1)


def attack(name: str, radius: float, seed: int = 0) -> Seen:
    """FGSM or PGD (from a random start that goes by the seed) within that radius, on a network that takes pixels."""
    import torchattacks

    further = {"PGD": {"alpha": radius / 4, "steps": robust_table.STEPS}}

    def moved(net: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return getattr(torchattacks, name)(net, eps=radius, **further.get(name, {}))(pixels, labels)

    return moved


# one plan, and all that is told of it ---------------------------------------------------------------------------------------------------


def pruned_by(way: Way, case: Case, repair: str, subject: Subject, data: Batches, seed: int) -> tuple[nn.Module, float]:
    """The smaller (or sparser) network, and the share of what is saved that is left."""
    dense, structure = Pixels(quick(subject.model)).requires_grad_(False), subject.structures[case.structure]
    seen = [(normalised(way.seen(dense, pixels_of(x), y)), y) for x, y in data] if way.seen else data
    task = sc.Task(subject.model, seen, subject.loss, seed)
    scores = sc.merge(sc.measure(task, structure, way.criterion or case.criterion, way.contexts), way.local)
    plan = sc.select(scores, structure, case.amount, case.of, case.scope)
    before, after = plan.cost["macs" if case.of == "macs" else "parameters"]
    return repaired(sc.shrink(subject.model, plan), subject.model, data, plan, repair), after / before


@dataclass(frozen=True)
class Tests:
    """Batches of test images: clean ones by how many there are of them, every level of corruption, and those that are attacked."""

    clean: Batches
    other: Batches
    corrupted: dict[str, list[Batches]]
    attacked: Batches


def tests_of(given: Setting, corrupted: int, attacked: int) -> Tests:
    x, y = images(given.data, "test", 2)
    made = partial(batched, size=SIZE, device="cpu")
    pixels = pixels_of(x[:corrupted])
    levels = {
        name: [last(made(normalised(change(pixels, level, 0)), y[:corrupted])) for level in LEVELS[name]]
        for name, change in CORRUPTIONS.items()
    }
    others = slice(SHEET, SHEET + OTHERS)
    return Tests(
        last(made(x[: given.test], y[: given.test])), last(made(x[others], y[others])), levels, made(pixels_of(x[:attacked]), y[:attacked])
    )


def told(model: nn.Module, tests: Tests) -> results.Row:
    from torchmetrics.classification import MulticlassCalibrationError

    net = quick(model)
    whole = Pixels(net).requires_grad_(False)
    error = MulticlassCalibrationError(num_classes=10, n_bins=BINS, norm="l1")
    found = sc.evaluate(net, tests.clean, {"top1": "top1", "worst": "worst_class", "ece": error})
    row: results.Row = {name: round(found[name], 6) for name in ("top1", "worst", "ece")}
    row |= {"other": top1(tests.other)(net)}
    row |= {name: [round(top1(level)(net), 6) for level in levels] for name, levels in tests.corrupted.items()}
    for name in ("FGSM", "PGD"):
        for radius in RADII:
            moved: Batches = [(attack(name, radius / 255)(whole, x, y), y) for x, y in tests.attacked]
            row[f"{name.lower()}{radius:g}"] = round(top1(moved)(whole), 6)
    return row


# rows -----------------------------------------------------------------------------------------------------------------------------------


def fill(name: str, given: Setting, seeds: int, corrupted: int, attacked: int, until: float, kept: list[results.Row]) -> None:
    subject, tests = SUBJECTS[name](given), tests_of(given, corrupted, attacked)
    made = results.origin()
    tested: results.Row = {"net": name, "images": given.images, "test": given.test, "corrupted": corrupted, "attacked": attacked}

    def row(structure: str, way: str, repair: str, seed: int) -> results.Row | None:
        """The row that is there, or measured now; None where there is no more time."""
        case: results.Row = {**tested, "structure": structure, "way": way, "repair": repair, "seed": seed}
        if found := next((old for old in kept if results.same(old, case)), None):
            return found
        if time.perf_counter() > until:
            return None
        start, model, left = time.perf_counter(), subject.model, 1.0
        if way != "dense":
            model, left = pruned_by(WAYS[way], CASES[structure], repair, subject, subject.calibration(seed, given.images), seed)
        chosen = time.perf_counter()
        figures = told(model, tests)
        seconds = {"seconds": round(chosen - start, 1), "testing": round(time.perf_counter() - chosen, 1)}
        kept.append({**case, **figures, "left": round(left, 6), **seconds, **made})
        results.write(ROWS, kept)
        print(kept[-1], flush=True)
        return kept[-1]

    row("dense", "dense", "none", 0)
    for seed in range(seeds):
        for structure in NETS[name]:
            ways = [way for way in WAYS if structure in WAYS[way].structures]
            there = [found for way in ways if (found := row(structure, way, "statistics", seed))]
            if seed == 0 and len(there) == len(ways):
                row(structure, str(max(there, key=lambda found: float(str(found["other"])))["way"]), "least-squares", seed)


def main() -> int:
    parser = results.options(
        __doc__, data=results.DATA, images=512, test=4000, corrupted=500, attacked=150, seeds=2, threads=1, limit=10**6
    )
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--table", action="store_true", help="only rewrite docs/robust.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows, until = results.read(ROWS), time.perf_counter() + given.limit
    names = [] if given.table else given.nets
    lacking = {name: why for name in names if (why := absent(name, given.data))}
    for name, why in lacking.items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    if names and len(lacking) == len(names):
        return 2
    if names and find_spec("torchattacks") is None:
        print(
            "torchattacks is not installed. Install it: pip install --no-deps torchattacks (--table needs the rows only).", file=sys.stderr
        )
        return 2
    for name in names:
        if name not in lacking:
            setting = Setting(given.data, images=given.images, test=given.test)
            fill(name, setting, given.seeds, given.corrupted, given.attacked, until, rows)
    if rows:
        results.write_text(results.DOCS / "robust.md", robust_table.page(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
