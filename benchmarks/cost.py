"""What measuring costs: time beside plain forward and backward, peak memory against the number of images, time to import.

python benchmarks/cost.py                  everything, into docs/cost.md
python benchmarks/cost.py --repeats 9 --images 1024
pip install backpack-for-pytorch           for the rows of BackPACK
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin halve the speed wherever another process runs

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import results
import secateur as sc
from cost_ways import OTHERS, WAYS, Net, plain, residual, transformer
from images import normalised, sheet
from nets import resnet
from secateur.memory import STEADY

FEW, MANY = 64, 4096
MEMORY, IMPORT = 1.05, 0.3  # of the peak for few images; seconds
BESIDE = 16  # samples that others are timed on
LONG = 10  # times plain forward and backward: what takes longer is timed once
CLOSE = 1e-3  # of the largest number: so near must others come to be timed at all
MEASURED = {  # contexts, structure, criterion -> batch size of the memory test: of 64 images in ten classes, each fills a batch of 4
    "batch weights taylor": 16, "batch channels fisher_sample": 16, "batch weights fisher_diagonal": 16, "class weights taylor": 4,
}  # fmt: skip
STRUCTURES = {"weights": lambda model: sc.weights(model), "channels": lambda model: sc.channels(model, torch.zeros(2, 3, 32, 32))}


def times(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of each way over the same batches, in turns, so that what else the machine does meets them all.

    Every way has a run of plain forward and backward of its own in front of it, under the name "before".
    """
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number in range(-1, repeats):
        for name, way in ways.items():
            before = timed(ways["plain"]) if name != "plain" else None
            row = timed(way)
            if number < 0:
                continue  # to warm up
            taken[name].append(row | ({"before": before["wall"], "before CPU": before["cpu"]} if before else {}))
            print(f"{number + 1}/{repeats} {name}: {row['wall']:.2f} s, {row['cpu']:.2f} s of CPU", flush=True)
    return taken


def timed(way: Callable[[], object]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    way()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def beside(net: Net) -> dict[str, dict[str, object]]:
    """What others take for the Fisher diagonal of the matrices and kernels, on the first samples, or why they do not."""
    data = [(inputs[:BESIDE], targets[:BESIDE]) for inputs, targets in net.data[:1]]
    names = [name for name, value in net.model.named_parameters() if value.dim() > 1 and ("weight" in name) and "words" not in name]
    expected = next(iter(sc.flows.sums(sc.Task(net.model, data, F.cross_entropy), set(names))))
    found: dict[str, dict[str, object]] = {}
    for what, other in OTHERS.items():
        before, result = timed(lambda: plain(net.model, data)), dict[str, Tensor]()
        try:
            row = timed(lambda other=other, result=result: result.update(other(net.model, data, names)))  # type: ignore[misc]
            gap = max(float((result[name] - expected[name]).abs().max() / expected[name].abs().max().clamp_min(1e-30)) for name in names)
        except (ImportError, NotImplementedError, RuntimeError) as error:
            found[what] = {"why": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            continue
        if gap > CLOSE:
            found[what] = {"why": f"it gives other numbers: {gap:.1e} of the largest apart"}
            continue
        rows = [row | {"before": before["wall"], "before CPU": before["cpu"]}]
        if row["wall"] < LONG * before["wall"]:
            ways = {"plain": lambda: plain(net.model, data), what: lambda other=other: other(net.model, data, names)}  # type: ignore[misc]
            rows = times(ways, 3)[what]
        found[what] = {"ratio": ratio(rows), "rows": rows}
    return found


def ratio(rows: list[dict[str, float]], kind: str = "wall") -> float:
    """The median of the ratios to the plain run before."""
    return statistics.median(row[kind] / row["before" if kind == "wall" else "before CPU"] for row in rows)


class FromDisk:
    """The first images of a sheet, each batch made when it is asked for, as a data set's loader does it."""

    def __init__(self, data: Path, count: int, size: int) -> None:
        self.images, self.count, self.size = sheet(data / "cifar10" / "train_0.webp"), count, size
        self.labels = torch.arange(len(self.images)) % 10

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.count, self.size):
            yield normalised(self.images[start : start + self.size]), self.labels[start : start + self.size]


def child(data: Path, what: str, count: int) -> None:
    """In a process of its own: measure, then print the peak of resident bytes."""
    model = resnet(56, data)
    contexts, structure, criterion = what.split()
    task = sc.Task(model, FromDisk(data, count, MEASURED[what]), F.cross_entropy)
    sc.measure(task, STRUCTURES[structure](model), criterion, contexts)
    status = Path("/proc/self/status").read_text()
    print(1024 * int(status.partition("VmHWM:")[2].split()[0]))


def fresh(*words: str, **environment: str) -> float:
    """The number that a fresh Python process prints last."""
    known = {**os.environ, **environment}
    answer = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, cwd=results.ROOT, env=known)
    return float(answer.stdout.split()[-1])


def peaks(data: Path) -> dict[str, dict[str, float]]:
    """What is measured -> number of images -> peak bytes of a fresh process."""
    words = (str(Path(__file__).resolve()), "--data", str(data.resolve()), "--child")
    return {what: {str(count): fresh(*words, what, str(count), **STEADY) for count in (FEW, MANY)} for what in MEASURED}


def imports(repeats: int) -> dict[str, list[float]]:
    """Seconds, each in a fresh process: `import torch`, and `import secateur` where torch is there already (of the clock, and of CPU)."""
    timed = "import time; {before}; start = time.{clock}(); import {what}; print(time.{clock}() - start)"
    wanted = {
        "torch": timed.format(before="pass", what="torch", clock="perf_counter"),
        "secateur": timed.format(before="import torch", what="secateur", clock="perf_counter"),
        "secateur, CPU": timed.format(before="import torch", what="secateur", clock="process_time"),
    }
    taken: dict[str, list[float]] = {name: [] for name in wanted}
    for _ in range(repeats):
        for name, code in wanted.items():
            taken[name].append(round(fresh("-c", code), 4))
    return taken


def page(found: results.Row) -> str:
    """docs/cost.md from the raw results."""
    nets: dict[str, dict[str, object]] = found["nets"]  # type: ignore[assignment]
    memory: dict[str, dict[str, float]] = found["peaks"]  # type: ignore[assignment]
    loaded: dict[str, list[float]] = found["imports"]  # type: ignore[assignment]
    parts = [
        "# What measuring costs",
        "Written by `python benchmarks/cost.py`; the raw times are in `benchmarks/results/cost.json`.\n\n"
        f"Commit of the library: {found['commit']}. Seed: {found['seed']}. Machine: {found['machine']}, {found['threads']} threads.",
        "## Time\n\n`secateur.measure` over a whole pass of the data, as a multiple of plain forward and backward (evaluation mode) over "
        f"the same batches. Each run has a plain run in front of it; the ratio is the median of {found['repeats']} such pairs. Finding the "
        "structure is not in it.",
    ]
    for name, net in nets.items():
        others: dict[str, dict[str, object]] = net["beside"]  # type: ignore[assignment]
        parts += [
            f"### {name}\n\n{net['about'][:1].upper()}{net['about'][1:]}.",  # type: ignore[index]
            results.table(("what", "seconds", "ratio", "ratio of CPU", "target"), time_lines(net)),
            f"Beside it, what others take for the Fisher diagonal of all matrices and kernels, on {BESIDE} samples or one batch. Where a "
            "time stands, the numbers are the same.",
            results.table(("what", "ratio"), [[what, row.get("why") or f"{row['ratio']:.1f}"] for what, row in others.items()]),
        ]
    memory_lines = [
        [what, *(f"{size / 2**20:,.0f} MiB" for size in peak.values()), f"{peak[str(MANY)] / peak[str(FEW)]:.3f}", f"≤ {MEMORY:g}"]
        for what, peak in memory.items()
    ]
    import_lines = [
        ["torch", f"{statistics.median(loaded['torch']):.2f}", ""],
        ["secateur, beyond torch", f"{statistics.median(loaded['secateur']):.2f}", f"≤ {IMPORT:g}"],
        ["secateur, beyond torch, seconds of CPU", f"{statistics.median(loaded['secateur, CPU']):.2f}", ""],
    ]
    parts += [
        f"## Memory\n\nPeak resident memory of a fresh process that measures ResNet-56 on {FEW} and on {MANY:,} images, each batch made "
        "when it is asked for. Batches of 16; by class, where samples wait until their class fills a batch, of 4, so that the few images "
        "fill them. The C library is told to give back at once what is freed (as `secateur.compare` does it).",
        results.table(("contexts, structure, criterion", f"{FEW} images", f"{MANY:,} images", "ratio", "target"), memory_lines),
        f"## Import\n\nSeconds, the median of {len(loaded['torch'])} fresh processes.",
        results.table(("import", "seconds", "target"), import_lines),
    ]
    return "\n\n".join(parts) + "\n"


def time_lines(net: dict[str, object]) -> list[list[str]]:
    taken: dict[str, list[dict[str, float]]] = net["times"]  # type: ignore[assignment]
    lines = [["plain forward + backward", f"{statistics.median(row['wall'] for row in taken['plain']):.2f}", "1", "1", ""]]
    for way in WAYS:
        rows = taken[way.what]
        seconds = statistics.median(row["wall"] for row in rows)
        lines.append([way.what, f"{seconds:.2f}", f"{ratio(rows):.2f}", f"{ratio(rows, 'cpu'):.2f}", f"≤ {way.most:g}"])
    return lines


def main() -> int:
    parser = results.options(__doc__, data=results.DATA, images=512, sequences=256, repeats=3, threads=2, seed=0)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "IMAGES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if why := results.missing(given.data):
        print(why, file=sys.stderr)
        return 2
    torch.set_num_threads(given.threads)
    if given.child:
        child(given.data, given.child[0], int(given.child[1]))
        return 0
    kept = results.RESULTS / "cost.json"
    asked = {name: value for name, value in vars(given).items() if name not in ("data", "child")} | results.origin()
    found: results.Row = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if not results.same(found, asked) or "peaks" in found:  # another version, or all is there: anew. Else it goes on from where it was.
        found = {**asked, "nets": {}}
    for net in (residual(given.data, given.images, 128, given.seed), transformer(given.sequences, 64, 64, given.seed)):
        taken: dict[str, object] = found["nets"].setdefault(net.name, {"about": net.about})  # type: ignore[attr-defined]
        for part, measured in (("times", lambda net=net: times(net.ways(), given.repeats)), ("beside", lambda net=net: beside(net))):
            if part not in taken:
                taken[part] = measured()
                results.write_text(kept, json.dumps(found, indent=1) + "\n")
    found |= {"imports": imports(given.repeats), "peaks": peaks(given.data)}
    results.write_text(kept, json.dumps(found, indent=1) + "\n")
    results.write_text(results.DOCS / "cost.md", page(found))
    print(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
