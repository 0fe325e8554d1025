"""Raw results, a row a case, kept as JSON; and what every table says about where it was measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"

Row = dict[str, object]


def read(path: Path) -> list[Row]:
    """The rows that are there; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def write(path: Path, rows: Sequence[Row]) -> None:
    """All rows, one a line so that a change is a line of a diff; whole or not at all."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    write_text(path, f'{{"rows": [\n{lines}\n]}}\n')


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def same(row: Mapping[str, object], case: Mapping[str, object]) -> bool:
    """Whether the row is a result of the case: of every setting the same value."""
    return all(row.get(name) == value for name, value in case.items())


def machine() -> str:
    """Processor, cores and torch: what a time or a last digit may depend on."""
    cpu = platform.processor() or platform.machine()
    try:
        named = (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        cpu = next(named, cpu)
    except OSError:
        pass
    return f"{cpu}, {os.cpu_count()} cores, torch {torch.__version__}"


def commit() -> str:
    """The last commit that touched the library; marked where files of it have changed since. "unknown" outside a repository."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src/secateur")
        return git("log", "-1", "--format=%h", "--", "src/secateur") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def origin() -> Row:
    """Of which version of the library figures are, and of which machine."""
    return {"commit": commit(), "machine": machine()}


def options(about: str | None, **defaults: int | Path) -> argparse.ArgumentParser:
    """Of a benchmark that is about this (its first line), the options that have a default, by their names; what else it has it adds."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{default}, if it is not given")
    return parser


def table(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table: the first column to the left, numbers to the right."""
    marks = ["---", *["---:"] * (len(heads) - 1)]
    rows = [heads, marks, *([str(cell) for cell in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def percent(value: object) -> str:
    return f"{100 * value:.2f}" if isinstance(value, (int, float)) else ""


def missing(data: Path) -> str | None:
    """Why the data cannot be used, in a sentence; None where it is there."""
    for folder in ("cifar10", "cifar10_resnet"):
        if not (data / folder).is_dir():
            return f"There is no folder {folder} in {data}. Give the folder that holds cifar10 and cifar10_resnet with --data."
    return None


def grouped(rows: Iterable[Row], key: Callable[[Row], object]) -> dict[object, list[Row]]:
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups
