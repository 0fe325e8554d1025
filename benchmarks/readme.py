"""Run the demo and put what it printed, and a picture of its report, on the README's first screen.

python benchmarks/readme.py [--folder secateur-demo]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from results import DOCS, ROOT, commit, machine, write_text

START, END = "<!-- demo: written by benchmarks/readme.py -->", "<!-- demo: end -->"
WIDTH, HEIGHT = 1100, 1500  # of the picture, in pixels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keep the demo's results here; otherwise they are made anew and thrown away")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as fresh:
        place = folder or Path(fresh) / "secateur-demo"
        started = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-m", "secateur", "demo", "--out", str(place)],
            capture_output=True, text=True, env={**os.environ, "COLUMNS": "110", "TERM": "dumb"}, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        if run.returncode:
            print(run.stderr, file=sys.stderr)
            return run.returncode
        printed = run.stdout.replace(str(place), "secateur-demo").rstrip()
        note = f"Seed 0, commit {commit()}, {date.today()}, {machine()}; {seconds:.0f} s, training included."
        readme = ROOT / "README.md"
        before, _, rest = readme.read_text(encoding="utf-8").partition(START)
        _, _, after = rest.partition(END)
        write_text(readme, f"{before}{START}\n```\n{printed}\n```\n{note}\n{END}{after}")
        picture(place / "report.html", DOCS / "report.png")
    return 0


def picture(page: Path, image: Path) -> None:
    """What a reader of the report sees first. Left as it was where there is no Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("There is no chromium, so docs/report.png stays as it was.", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
                f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={image}", page.resolve().as_uri(),
            ],
            check=True, capture_output=True,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
