"""Two processes of one thread each against one process of one thread: what `secateur.measure` wins, and that the numbers are the same.

python benchmarks/scale.py                 ResNet-20, into docs/processes.md
python benchmarks/scale.py --net 56 --images 2048 --repeats 9
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F

import results
import secateur as sc
from nets import resnet

BATCH = 32
CASES = (("channels", "batch"), ("channels", "class"), ("weights", "batch"))
MOST = 1.8  # times as fast, at least


def child(net: int, images: int, seed: int, store: str, rank: int, size: int) -> None:
    """One of so many processes: every case, timed from when all are ready to when all have the result."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    torch.manual_seed(seed)
    model, chance = resnet(net), torch.Generator().manual_seed(seed)
    pixels, labels = torch.randn(images, 3, 32, 32, generator=chance), torch.randint(0, 10, (images,), generator=chance)
    data = list(zip(pixels.split(BATCH), labels.split(BATCH)))
    structures = {"channels": sc.channels(model, pixels[:2]), "weights": sc.weights(model)}
    rows = []
    for structure, contexts in CASES:
        sc.measure(sc.Task(model, data[:2], F.cross_entropy), structures[structure], contexts=contexts)
        dist.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        found = sc.measure(sc.Task(model, data, F.cross_entropy), structures[structure], contexts=contexts)
        own = time.process_time() - cpu
        dist.barrier()
        bits = b"".join(value.numpy().tobytes() for value in found.global_.values())
        rows.append({
            "structure": structure, "contexts": contexts, "wall": time.perf_counter() - wall, "cpu": own,
            "digest": hashlib.sha256(bits).hexdigest(), "largest": max(float(value.max()) for value in found.global_.values()),
        })  # fmt: skip
    print(json.dumps(rows))
    dist.destroy_process_group()


def together(size: int, net: int, images: int, seed: int) -> list[list[dict[str, object]]]:
    """The rows of so many processes that run at once."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--net", str(net), "--images", str(images), "--seed", str(seed), "--child", f"{folder}/store"]
        running = [subprocess.Popen([*words, str(rank), str(size)], stdout=subprocess.PIPE, text=True) for rank in range(size)]
        said = [process.communicate()[0] for process in running]
        if any(process.returncode for process in running):
            raise SystemExit("a process failed")
    return [json.loads(text) for text in said]


def rows(net: int, images: int, repeats: int, seed: int) -> list[results.Row]:
    """In turns, so that what else the machine does meets both."""
    taken: list[results.Row] = []
    for number in range(repeats):
        for size in (1, 2):
            for place, of_all in enumerate(zip(*together(size, net, images, seed))):
                structure, contexts = CASES[place]
                row: results.Row = {"structure": structure, "contexts": contexts, "processes": size, "repeat": number}
                row |= {"wall": max(row["wall"] for row in of_all), "cpu": max(row["cpu"] for row in of_all)}
                row |= {"same bits": len({row["digest"] for row in of_all}) == 1, "largest": of_all[0]["largest"]}
                taken.append(row)
                print(row, flush=True)
    return taken


def middle(pairs: list[tuple[results.Row, results.Row]], what: str) -> tuple[tuple[float, float], float]:
    """The medians of one and of two processes, and of the ratios of neighbours."""
    values = [(float(str(one[what])), float(str(two[what]))) for one, two in pairs]
    return tuple(statistics.median(column) for column in zip(*values)), statistics.median(a / b for a, b in values)  # type: ignore[return-value]


def page(found: results.Row) -> str:
    """docs/processes.md from the raw results."""
    every: list[results.Row] = found["rows"]  # type: ignore[assignment]
    lines = []
    for structure, contexts in CASES:
        case = {"structure": structure, "contexts": contexts}
        alone = [row for row in every if results.same(row, {**case, "processes": 1})]
        pairs = [*zip(alone, (row for row in every if results.same(row, {**case, "processes": 2})))]
        (one, two), ratio = middle(pairs, "wall")
        busy = middle(pairs, "cpu")[1]
        apart = max(abs(float(str(b["largest"])) / float(str(a["largest"])) - 1) for a, b in pairs)
        lines.append([
            f"{structure}, contexts by {contexts}", f"{one:.2f}", f"{two:.2f}", f"{ratio:.2f}", f"{busy:.2f}", f"≥ {MOST:g}",
            f"{apart:.0e}",
        ])  # fmt: skip
    same = all(row["same bits"] for row in every)
    parts = [
        "# Several processes",
        "Written by `python benchmarks/scale.py`; the raw times are in `benchmarks/results/scale.json`.\n\n"
        f"Commit of the library: {found['commit']}. Seed: {found['seed']}. Machine: {found['machine']}. Other processes that wanted to run "
        f"at the start: {found['load']}.",
        f"`secateur.measure` (taylor) of a ResNet-{found['net']} on {found['images']:,} random images in batches of {BATCH}, by one "
        "process and by two (gloo), one thread each, from when all are ready to when all have the result: medians of "
        f"{found['repeats']} in turns. The ratio of CPU is that of the seconds that the busier process computed: what is won where "
        "both have a core of their own.",
        results.table(("what", "1 process, s", "2 processes, s", "ratio", "ratio of CPU", "target", "largest score apart by"), lines),
        f"Both processes ended with the same scores {'in all runs, bit for bit' if same else 'NOT in all runs'}. In float32, one "
        "process and two round differently; in float64 the tests hold all criteria and contexts to 1e-12.",
        HOW,
    ]
    return "\n\n".join(parts) + "\n"


HOW = """## How

`torchrun --nproc-per-node=2 -m secateur measure ...`, or `secateur.measure` within a process group that is initialised. Every process
reads all the data and cuts it into the same pieces (batches, samples, batches of one class), and computes every second one: so a piece is
what it would have been in one process, and reading is not shared. Where reading is what takes long, give each process data of its own
(a loader with a `DistributedSampler`, or `split=False`); contexts with keys are then regrouped in each process, which is another cut of
the data.

The processes meet at every 8th piece of each, to say whether one has failed or a checkpoint is due, and where one process would look
whether it is `enough`, so that they stop where it would (with data of their own: at every 8th piece only, so perhaps later); and in the
end, when the states (means, sums of squares, maxima, sums by key) are broadcast and merged in the order of the ranks. What is drawn at
random goes by the number of the batch or piece, whoever computes it. A criterion that yields once for all the data cannot be shared, and
is refused.

A model in shards (FSDP2) is measured where its shards are (`gradient`, `taylor`, `fisher`, `l1`, `l2`; structure `weights`, which is made
before the model is sharded): all processes compute every piece together, each has the scores of its shards, and
`secateur.shards.kept_shards` finds the threshold by adding up histograms."""


def main() -> int:
    parser = results.options(__doc__, images=1024, repeats=5, seed=0)
    parser.add_argument("--net", type=int, default=20, choices=(20, 56))
    parser.add_argument("--child", nargs=3, metavar=("STORE", "RANK", "SIZE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.net, given.images, given.seed, given.child[0], int(given.child[1]), int(given.child[2]))
        return 0
    found: results.Row = {
        "net": given.net, "images": given.images, "repeats": given.repeats, "seed": given.seed, **results.origin(),
        "load": f"{os.getloadavg()[0]:.1f}", "rows": rows(given.net, given.images, given.repeats, given.seed),
    }  # fmt: skip
    results.write_text(results.RESULTS / "scale.json", json.dumps(found, indent=1) + "\n")
    results.write_text(results.DOCS / "processes.md", page(found))
    print(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
