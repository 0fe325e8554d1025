"""Does local sensitivity keep the promise that nobody's vital connection is cut? Ways to use it, beside global sensitivity alone.

python benchmarks/local.py                           all that is missing, into benchmarks/results/local.json; criteria.py writes the page
python benchmarks/local.py --nets dscnn --seeds 0    a part of it
python benchmarks/local.py --device cuda --limit 120

Every plan removes the same share of the MACs, and no weight is trained or repaired: batch norms are re-estimated by the difference form.
Told are top-1 and the accuracy of the worst class on images that nothing was chosen by.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import results
import secateur as sc
from images import cifar10, sample
from nets import dscnn, resnet
from recipes import channels_of
from secateur import tree
from secateur.flows import gate_inputs
from secateur.structure import all_kept

Batches = list[tuple[Tensor, Tensor]]
Scores = dict[str, Tensor]
STORE = results.RESULTS / "local.json"
AMOUNTS = {"resnet20": 1 / 3, "resnet56": 1 / 3, "dscnn": 0.15}  # of the MACs
SHEETS, SIZE = 2, 256  # of the training images two files; samples a batch
TESTED, CLIPS = 5000, (1500, 1000)  # test images; clips measured on, and held out, of 4,890
PUSH = 10.0  # how strongly a class that has lost accuracy weighs more: exp(PUSH x the share of it that was lost)


@dataclass(frozen=True)
class Way:
    """power: of the gradient of every sample's gate, |g|^power. form: how classes are merged. held: measured on images that the net was not
    trained on. steps: so many times measured anew on what is left."""

    power: int
    form: str = "global"
    held: bool = False
    steps: int = 1


STEPS = 4
WAYS: dict[str, Way] = {"random": Way(0)}
WAYS |= {f"g², {form}": Way(2, form) for form in ("global", "mean", "max", "rms")}
WAYS |= {f"|g|, {form}": Way(1, form) for form in ("global", "max", "rms")}
WAYS |= {f"|g|, {STEPS} steps, training, {form}": Way(1, form, False, STEPS) for form in ("global", "rms")}
WAYS |= {f"|g|, {STEPS} steps, held-out, {form}": Way(1, form, True, STEPS) for form in ("global", "rms", "max", "lost")}
BASE, SAME = "g², global", f"|g|, {STEPS} steps, {{}}, global"


@dataclass(frozen=True)
class Net:
    """A trained network on a device; measured: calibration by seed, a pair of batches (of training images, held out); test."""

    model: nn.Module
    structure: sc.Structure
    measured: Callable[[int], tuple[Batches, Batches]]
    test: Batches
    norms: bool


def batched(x: Tensor, y: Tensor, device: str, size: int = SIZE) -> Batches:
    return list(zip(x.to(device).split(size), y.to(device).split(size)))


def residual(depth: int, data: Path, device: str, images: int) -> Net:
    """Half of the test images are held out for choosing, the other half is tested on."""
    model = resnet(depth, data)
    (x, y), (tx, ty) = cifar10(data, "train", SHEETS), cifar10(data, "test")

    def measured(seed: int) -> tuple[Batches, Batches]:
        (one,), (other,) = sample(y, (images,), seed), sample(ty[TESTED:], (images,), seed)
        return batched(x[one], y[one], device), batched(tx[TESTED:][other], ty[TESTED:][other], device)

    structure = channels_of(model, torch.zeros(1, 3, 32, 32), inner=True)
    return Net(model.to(device), structure, measured, batched(tx[:TESTED], ty[:TESTED], device, 1000), True)


def keywords(data: Path, device: str, images: int) -> Net:
    """There are test clips only, so "training" clips are of those, too: the net has seen neither."""
    clips = np.load(data / "speech_commands" / "mfcc_49x10_mlperf.npz", allow_pickle=False)
    x, y = torch.from_numpy(clips["x"])[:, None], torch.from_numpy(clips["y"]).long()
    test, pool = sample(y, (len(y) - sum(CLIPS), sum(CLIPS)), 0)
    model = dscnn(data)
    structure = sc.channels(model, x[:1])

    def measured(seed: int) -> tuple[Batches, Batches]:
        one, other = (pool[part] for part in sample(pool, CLIPS, seed))
        return batched(x[one], y[one], device), batched(x[other], y[other], device)

    return Net(model.to(device), structure, measured, batched(x[test], y[test], device, 1000), False)


NETS: dict[str, Callable[[Path, str, int], Net]] = {
    "resnet20": lambda data, device, images: residual(20, data, device, images),
    "resnet56": lambda data, device, images: residual(56, data, device, images),
    "dscnn": keywords,
}


# choosing -------------------------------------------------------------------------------------------------------------------------------


def squared(task: sc.Task, structure: sc.Structure) -> Iterator[dict[str, Tensor]]:
    """The Fisher information of a unit's gate: score_u = mean over samples of <x_u, dL_s/dx_u>^2."""
    for samples in gate_inputs(task, structure):
        yield tree.apply(lambda value: value.square().mean(0), samples)


GATES: dict[int, str | sc.criteria.Criterion] = {0: "random", 1: "gradient_activation", 2: squared}  # by the power of the gradient


def merged(way: Way, measured: sc.Sensitivity, lost: dict[str, float]) -> Scores:
    """global: all samples alike. The others of the classes' normalised scores: their mean, maximum, root mean square, or
    their mean weighted by what each has lost so far."""
    if way.form in ("global", "mean", "max"):
        return sc.merge(measured, 1.0 if way.form == "max" else 0.0)
    if way.form == "rms":
        return sc.merge(measured, "rms")
    weights = {key: float(np.exp(PUSH * lost.get(key, 0.0))) for key in measured.keys}
    return {
        name: sum((measured.keys[key][name] * weight for key, weight in weights.items()), torch.zeros(())) for name in measured.global_
    }


def plan_by(way: Way, net: Net, amount: float, seed: int) -> tuple[sc.Plan, nn.Module]:
    training, held = net.measured(seed)
    chosen, keep, now, plan = held if way.held else training, all_kept(net.structure), net.model, None
    lost: dict[str, float] = {}
    for number in range(1, way.steps + 1):
        task = sc.Task(now, chosen, F.cross_entropy, seed)
        measured = sc.measure(task, net.structure, GATES[way.power], "batch" if way.form == "global" else "class")
        scores = merged(way, measured, lost)
        plan = sc.select(scores, net.structure, amount * number / way.steps, "macs", "per-mac", within=plan)
        keep = plan.keep
        now = sc.mask(net.model, plan)
        if net.norms:
            now = sc.reestimate(now, net.model, training, plan)
        if way.form == "lost":
            before, after = by_class(net.model, held), by_class(now, held)
            lost = {key: value - after[key] for key, value in before.items()}
    assert plan is not None and keep
    return plan, now


def by_class(model: nn.Module, data: Batches) -> dict[str, float]:
    """The accuracy of every class."""
    return of_classes(*answers(model, data))


def answers(model: nn.Module, data: Batches) -> tuple[Tensor, Tensor]:
    """Whether each sample is told right, and its class."""
    with torch.inference_mode():
        right = torch.cat([model(x).argmax(1) == y for x, y in data]).cpu()
    return right, torch.cat([y for _, y in data]).cpu()


def of_classes(right: Tensor, labels: Tensor) -> dict[str, float]:
    return {str(int(label)): float(right[labels == label].double().mean()) for label in labels.unique()}


def told(model: nn.Module, data: Batches) -> dict[str, float]:
    right, labels = answers(model, data)
    return {"top1": float(right.double().mean()), "worst": min(of_classes(right, labels).values())}


# rows and page --------------------------------------------------------------------------------------------------------------------------


def fill(given: argparse.Namespace, rows: list[results.Row]) -> None:
    start = time.perf_counter()
    nets = {name: NETS[name](given.data, given.device, given.images) for name in given.nets}
    for name, net in nets.items():
        case: results.Row = {"net": name, "way": "dense", "seed": 0, "images": given.images}
        if not any(results.same(row, case) for row in rows):
            rows.append({**case, **told(net.model, net.test)})
    for seed in given.seeds:
        for word in given.ways or WAYS:
            way = WAYS[word]
            for name, net in nets.items():
                case = {"net": name, "way": word, "seed": seed, "images": given.images, "amount": AMOUNTS[name], **asdict(way)}
                if any(results.same(row, case) for row in rows):
                    continue
                if time.perf_counter() - start > given.limit:
                    return
                begun = time.perf_counter()
                plan, model = plan_by(way, net, AMOUNTS[name], seed)
                before, after = plan.cost["macs"]
                rows.append({
                    **case, **told(model, net.test), "macs": after / before, "seconds": round(time.perf_counter() - begun, 2),
                    "machine": torch.cuda.get_device_name() if given.device == "cuda" else results.machine(), "commit": results.commit(),
                })  # fmt: skip
                results.write(given.store, rows)
                print(f"{seed} {name} {word}: {rows[-1]['top1']:.4f}, worst {rows[-1]['worst']:.4f}, {rows[-1]['seconds']} s", flush=True)


Found = dict[tuple[str, str], dict[int, tuple[float, float]]]  # (net, way) -> seed -> top-1 and worst class in per cent
Gain = tuple[float, float, int]  # of top-1 and of the worst class, in points, mean over the seeds that both were measured on; how many


def by_seed(rows: list[results.Row]) -> Found:
    found: Found = {}
    for row in rows:
        figures = 100 * float(row["top1"]), 100 * float(row["worst"])  # type: ignore[arg-type]
        found.setdefault((str(row["net"]), str(row["way"])), {})[int(row["seed"])] = figures  # type: ignore[call-overload]
    return found


def gain(found: Found, net: str, way: str, base: str) -> Gain | None:
    one, other = found.get((net, way), {}), found.get((net, base), {})
    if not (both := one.keys() & other.keys()):
        return None
    top, worst = (statistics.fmean(one[seed][at] - other[seed][at] for seed in both) for at in (0, 1))
    return top, worst, len(both)


def points(gained: Gain) -> str:
    return f"{gained[0]:+.2f} ({gained[1]:+.1f}) n={gained[2]}"


def section(rows: list[results.Row] | None = None) -> str:
    """What docs/criteria.md says about it; empty where nothing was measured."""
    rows = results.read(STORE) if rows is None else rows
    if not rows:
        return ""
    found, nets = by_seed(rows), [name for name in NETS if any(row["net"] == name for row in rows)]
    words = ["dense", *(word for word in WAYS if any(row["way"] == word for row in rows))]
    shares = ", ".join(f"{name} {AMOUNTS[name]:.0%}" for name in nets)
    where = sorted({f"{row['machine']} (commit {row['commit']})" for row in rows if "machine" in row})
    return "\n\n".join([
        "## Local sensitivity: who is protected?",
        "Measured by `python benchmarks/local.py`; raw rows in `benchmarks/results/local.json`. Removed are these shares of the MACs: "
        f"{shares} (inner channels of the residual nets, all channels of the keyword net), ranked by scores per MAC; batch norms are "
        f"re-estimated, no weight is trained or repaired. Calibration samples of {rows[0]['images']} images (keyword net: {CLIPS[0]:,} "
        f"clips, or {CLIPS[1]:,} held out), tested on the first 5,000 test images (keyword net: 2,390 clips); held-out images are of "
        f"the other 5,000. Machine: {'; '.join(where)}.",
        "Each cell: top-1 (worst class), the mean over calibration samples, then the difference to global sensitivity alone (the gate "
        "Fisher E[g²] over all images, one shot), the mean over the n samples that both were measured on: three, where the runs are "
        "through. "
        "*g* is the gradient of a sample's gate, <x, dL/dx> (|g|: `gradient_activation`); *global*: the mean over all samples; the "
        "others merge the classes' normalised scores: mean, maximum, root mean square (`local=\"rms\"`), and *lost*, the mean weighted by "
        "exp(10 x accuracy a class has lost so far on held-out images). *Steps*: the MACs leave in equal parts, each measured anew on the "
        "pruned, re-estimated net.",
        results.table(("way", *nets), [[word.replace("|", "\\|"), *(cell(found, name, word) for name in nets)] for word in words]),
        verdict(found, nets),
    ])  # fmt: skip


def cell(found: Found, net: str, way: str) -> str:
    if (net, way) not in found:
        return ""
    figures = found[net, way].values()
    told = f"{statistics.fmean(top for top, _ in figures):.2f} ({statistics.fmean(worst for _, worst in figures):.1f})"
    gained = gain(found, net, way, BASE) if way not in ("dense", BASE) else None
    return told + (f", {points(gained)}" if gained else "")


def verdict(found: Found, nets: list[str]) -> str:
    """The target, held against the table: worst class at least 2 points above, top-1 at most 0.2 below, on every net."""
    said = "Target: the worst class at least 2 points above global sensitivity alone, top-1 at most 0.2 below, on every net. "
    said += f"Against {BASE} in one shot: {against(found, nets, BASE, [word for word in WAYS if word not in ('random', BASE)])}. "
    base = SAME.format("held-out")
    alike = [word for word in WAYS if word.startswith(base.removesuffix("global")) and word != base]
    said += f"Against {base}, where only the merging of classes differs: {against(found, nets, base, alike)}. "
    return said + f"Against |g|, global, in one shot: {against(found, nets, '|g|, global', ['|g|, max', '|g|, rms'])}."


def against(found: Found, nets: list[str], base: str, words: list[str]) -> str:
    """Which ways meet the target, and what they gain."""
    gains = {word: {name: gained for name in nets if (gained := gain(found, name, word, base))} for word in words}
    full = {word: each for word, each in gains.items() if len(each) == len(nets)}
    met = [word for word, each in full.items() if all(top >= -0.2 and worst >= 2 for top, worst, _ in each.values())]
    said = "met by " + "; ".join(met) if met else "met by none"
    told = "; ".join(f"{word}: {', '.join(f'{name} {points(each[name])}' for name in nets)}" for word, each in full.items())
    return said + (f" of those that ran on every net ({told})" if told else " (none ran on every net)")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=results.DATA)
    parser.add_argument("--nets", type=lambda text: text.split(","), default=list(NETS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, metavar="WAY", help="some of them, by name: 'g², global' ...")
    parser.add_argument("--join", nargs="+", type=Path, default=[], metavar="FILE", help="take over the rows of these files, run nothing")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2], help="0,1,2")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--store", type=Path, default=STORE, help="the file of rows")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no more is begun")
    given = parser.parse_args()
    if why := results.missing(given.data):
        print(why, file=sys.stderr)
        return 2
    rows = results.read(given.store)
    if given.join:
        rows += [row for file in given.join for row in results.read(file)]
    else:
        fill(given, rows)
    results.write(given.store, rows)
    print(section(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
