"""Ways to share one budget of MACs among the layers: scopes, and the solver over measured curves. ResNet-20 on CIFAR-10, no training.

python benchmarks/allocate.py              into docs/allocate.md; the curves are kept beside its results, so a run that was stopped goes on
python benchmarks/allocate.py --images 256 --test 500
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin halve the speed wherever another process runs

import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import results
import secateur as sc
from images import cifar10, sample
from nets import resnet
from recipes import channels_of

AMOUNTS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
RATIOS = (1.3, 1.5, 2.0)  # MACs, dense to pruned
WAYS = ("global", "layer", "ranks", "lamp", "isomorphic", "per-mac", "solver")


def loss(outputs: object, targets: object) -> torch.Tensor:
    assert isinstance(outputs, torch.Tensor) and isinstance(targets, torch.Tensor)
    return F.cross_entropy(outputs, targets, reduction="none")


def accuracies(data: Path, images: int, test: int, seed: int, threads: int) -> results.Row:
    pixels, labels = cifar10(data, "train")
    measuring, held = ([*zip(pixels[i].split(128), labels[i].split(128))] for i in sample(labels, (images, images), seed))
    del pixels
    pixels, labels = cifar10(data, "test")
    judged = [*zip(pixels[:test].split(250), labels[:test].split(250))]
    del pixels
    model = resnet(20, data)
    structure = channels_of(model, judged[0][0][:2], inner=True)
    scores = sc.merge(sc.measure(sc.Task(model, measuring, F.cross_entropy, seed), structure, "taylor"))
    file = results.RESULTS / f"curves-{images}.json"
    start = time.perf_counter()
    found = sc.curves(model, structure, scores, held, {"top1": "top1", "loss": loss}, AMOUNTS, file=file, progress=told)
    seconds = time.perf_counter() - start
    rows = []
    for ratio, way in itertools.product(RATIOS, WAYS):
        amount = 1 - 1 / ratio
        if way == "solver":
            plan = sc.select_by_curves(scores, structure, found.losses("loss"), amount, "macs")
        else:
            plan = sc.select(scores, structure, amount, "macs", way, least=0.1)
        small = sc.shrink(model, plan)
        repaired = sc.reestimate(small, model, measuring, plan)
        straight, after = (sc.evaluate(net, judged, ["top1"])["top1"] for net in (small, repaired))
        before, left = plan.cost["macs"]
        rows.append({"ratio": ratio, "way": way, "straight": straight, "repaired": after, "macs": left / before})
        print(rows[-1], flush=True)
    dense = sc.evaluate(model, judged, ["top1"])["top1"]
    points = {name: [[amount, point["loss"]] for amount, point in points.items()] for name, points in found.points.items()}
    return {
        "rows": rows, "dense": dense, "curves": points, "loss": found.dense["loss"], "curves seconds": seconds, "images": images,
        "test": test, "seed": seed, "threads": threads, **results.origin(),
    }  # fmt: skip


def told(done: int, total: int | None) -> None:
    print(f"curves: {done} of {total}", end="\r", file=sys.stderr, flush=True)


def solver_seconds(layers: int, levels: int, seed: int) -> float:
    chance = np.random.default_rng(seed)
    losses = {str(layer): {float(level): float(chance.random()) for level in range(levels)} for layer in range(layers)}
    costs = {layer: {level: float(chance.random()) for level in each} for layer, each in losses.items()}
    start = time.perf_counter()
    sc.allocate(losses, costs, layers / 3)
    return time.perf_counter() - start


def page(found: results.Row) -> str:
    rows: list[results.Row] = found["rows"]  # type: ignore[assignment]
    lines = [
        [f"{row['ratio']:g}x", row["way"], results.percent(row["macs"]), results.percent(row["straight"]), results.percent(row["repaired"])]
        for row in rows
    ]
    curves: dict[str, list[list[float]]] = found["curves"]  # type: ignore[assignment]
    curve_lines = [[name, *(f"{value:.3f}" for _, value in points)] for name, points in curves.items()]
    parts = [
        "# Sharing a budget among the layers",
        "Written by `python benchmarks/allocate.py`; the raw figures are in `benchmarks/results/allocate.json`.\n\n"
        f"Commit of the library: {found['commit']}. Seed: {found['seed']}. Machine: {found['machine']}, {found['threads']} threads.",
        f"ResNet-20 on CIFAR-10, inner channels, scores by taylor on {found['images']} training images, no training afterwards. The "
        f"solver chooses among seven amounts a layer by the loss measured on {found['images']} other training images; the scopes keep a "
        f"tenth of every layer at least. Top-1 on the first {found['test']:,} test images, straight and with re-estimated batch norms; "
        f"the dense network has {results.percent(found['dense'])}. One seed and one sample of images: differences of a point are within "
        "chance.",
        results.table(("MACs", "way", "MACs left, %", "straight", "re-estimated"), lines),
        f"## The curves\n\nLoss on the held-out images when one layer alone loses so much (the dense network: {found['loss']:.3f}). "
        f"{len(curves)} layers x {len(AMOUNTS)} amounts.",
        results.table(("layer", *(f"{100 * amount:g} %" for amount in AMOUNTS)), curve_lines),
        f"## The solver\n\n50 layers of 10 levels take {found['solver seconds']:.2f} s, 10,000 buckets. Its answers are held against "
        "every combination of levels, and, on the timings that were published with SPDY for ResNet-18, against an integer program "
        "(`tests/test_allocate.py`).",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    given = results.options(__doc__, data=results.DATA, images=512, test=1000, threads=1, seed=0).parse_args()
    if why := results.missing(given.data):
        print(why, file=sys.stderr)
        return 2
    torch.set_num_threads(given.threads)
    found = accuracies(given.data, given.images, given.test, given.seed, given.threads)
    found["solver seconds"] = solver_seconds(50, 10, given.seed)
    results.write_text(results.RESULTS / "allocate.json", json.dumps(found, indent=1) + "\n")
    results.write_text(results.DOCS / "allocate.md", page(found))
    print(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
