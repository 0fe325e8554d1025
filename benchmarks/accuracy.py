"""What repair keeps: networks that lost channels, straight, with batch norms re-estimated, and with least squares: docs/accuracy.md.

python benchmarks/accuracy.py --nets resnet20 dscnn --images 256      go on behind the last row, into benchmarks/results/accuracy.json
python benchmarks/accuracy.py --table                                 rewrite docs/accuracy.md from the rows that are there

No weight is trained. Channels are chosen by gradient_activation per MAC; what is removed is a share of the MACs.
"""

from __future__ import annotations

import sys
import time

import torch

import results
import secateur as sc
from secateur.api import repaired
from subjects import SUBJECTS, Setting, absent

ROWS = results.RESULTS / "accuracy.json"
RATIOS = {"resnet20": (1.3, 1.5, 2.0), "resnet56": (1.3, 1.5, 2.0), "dscnn": (1.25, 1.5, 2.0)}  # so many times fewer MACs
REPAIRS = ("none", "statistics", "least-squares")


def measured(name: str, given: Setting, seed: int, kept: list[results.Row], made: results.Row) -> None:
    subject = SUBJECTS[name](given)
    number = min(given.images, subject.images)
    known: results.Row = {"net": name, "seed": seed, "images": number, "test": subject.tested}

    def missing(row: results.Row) -> bool:
        return not any(results.same(old, row) for old in kept)

    def keep(row: results.Row) -> None:
        kept.append({**made, **row})
        results.write(ROWS, kept)
        print(row, flush=True)

    if missing(dense := {"net": name, "repair": "dense", "test": subject.tested}):
        keep({**dense, "top1": round(subject.test(subject.model), 6)})
    wanted = [(ratio, repair) for ratio in RATIOS[name] for repair in REPAIRS if subject.norms or repair != "statistics"]
    wanted = [pair for pair in wanted if missing({**known, "ratio": pair[0], "repair": pair[1]})]
    if not wanted:
        return
    data, structure = subject.calibration(seed, number), subject.structures["channels"]
    scores = sc.merge(sc.measure(sc.Task(subject.model, data, subject.loss, seed), structure, "gradient_activation"))
    for ratio, repair in wanted:
        plan = sc.select(scores, structure, 1 - 1 / ratio, "macs", "per-mac")
        small, start = sc.shrink(subject.model, plan), time.perf_counter()
        small = repaired(small, subject.model, data, plan, None if repair == "none" else repair)
        seconds = time.perf_counter() - start
        keep({**known, "ratio": ratio, "repair": repair, "top1": round(subject.test(small), 6), "seconds": round(seconds, 2)})


def page(rows: list[results.Row]) -> str:
    parts = [
        "# What repair keeps",
        "Written by `python benchmarks/accuracy.py`; rows in `benchmarks/results/accuracy.json`. Channels of trained networks (of the "
        "residual ones those inside blocks) are removed by `gradient_activation` per MAC; no weight is trained, and no label is used but "
        "for that choice. Top-1 in %, on data that nothing was chosen by (CIFAR-10: test images; keyword spotting: clips), and the "
        "seconds that the repair took. *statistics*: batch norms re-estimated by the difference to the dense network; *least-squares*: "
        "weights that read what was removed, fitted to what they made. One sample of data each.",
    ]
    for name in RATIOS:
        mine = [row for row in rows if row["net"] == name]
        if not mine:
            continue
        top = {(row.get("ratio"), row["repair"]): f"{results.percent(row['top1'])}" for row in mine}
        timed = [row for row in mine if row["repair"] != "none" and "seconds" in row]
        took = {(row.get("ratio"), row["repair"]): f" ({row['seconds']:.0f} s)" for row in timed}
        about = next(row for row in mine if "images" in row)
        parts.append(
            f"## {name}\n\nDense: {top[None, 'dense']}. Calibrated on {about['images']:,} samples, tested on {about['test']:,}. "
            f"Commit: {about['commit']}. Seed: {about['seed']}. Machine: {about['machine']}."
        )
        cells = {pair: figure + took.get(pair, "") for pair, figure in top.items()}
        lines = [[f"{ratio:g}x fewer MACs", *(cells.get((ratio, how), "") for how in REPAIRS)] for ratio in RATIOS[name]]
        parts.append(results.table(("", *REPAIRS), lines))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = results.options(__doc__, data=results.DATA, images=1024, test=5000, seed=0, threads=2)
    parser.add_argument("--nets", nargs="+", choices=RATIOS, default=["resnet20", "dscnn"])
    parser.add_argument("--table", action="store_true", help="only rewrite docs/accuracy.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = results.read(ROWS)
    for name in () if given.table else given.nets:
        if why := absent(name, given.data):
            print(f"{name} is left out: {why}", file=sys.stderr)
            continue
        setting = Setting(given.data, images=given.images, test=given.test)
        measured(name, setting, given.seed, rows, {"commit": results.commit(), "machine": results.machine()})
    results.write_text(results.DOCS / "accuracy.md", page(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
