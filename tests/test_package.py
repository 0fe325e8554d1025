"""The wheel: it builds, has what it needs, and works where only it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]


def done(command: Sequence[str | Path], folder: Path) -> str:
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run([str(word) for word in command], cwd=folder, env=alone, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = done(["git", "ls-files", "src", "pyproject.toml", "LICENSE", "README.md"], HERE) if (HERE / ".git").exists() else ""
    for name in listed.split("\n"):
        if name and (HERE / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((HERE / name).read_bytes())
    if not listed:
        pytest.skip("this is not a clone: which files belong to the package is not known")
    done(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder / "dist", "."],
        folder,
    )
    (built,) = (folder / "dist").glob("secateur-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_has_code_templates_schema_and_types(wheel: Path):
    inside = set(zipfile.ZipFile(wheel).namelist())
    tracked = done(["git", "ls-files", "src/secateur"], HERE).split()
    assert {name.removeprefix("src/") for name in tracked} <= inside
    assert {"secateur/py.typed", "secateur/plan.schema.json", "secateur/report/page.html.jinja", "secateur/report/page.css"} <= inside
    assert not [name for name in inside if name.startswith(("tests", "benchmarks", "docs"))]


@pytest.mark.slow
def test_the_wheel_works_where_only_it_is_installed(wheel: Path, tmp_path: Path):
    place = tmp_path / "venv"
    venv.create(place, with_pip=False)
    site = next((place / "lib").glob("python*/site-packages"))
    done([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel], tmp_path)
    # its dependencies come from here, behind everything of its own
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    code = "import secateur, sys; print(secateur.__file__); from secateur.__main__ import main; sys.exit(main())"
    said = done([place / "bin" / "python", "-c", code, "--help"], tmp_path)
    assert said.startswith(str(site)) and "inspect" in said
    said = done([place / "bin" / "python", "-m", "secateur", "inspect", "secateur.demo:build", "--example", "1,1,8,8"], tmp_path)
    assert "77,754 parameters" in said
    done([place / "bin" / "python", "-m", "secateur", "demo", "--quiet", "--out", tmp_path / "demo"], tmp_path)
    assert "</html>" in (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_says_what_it_installs_before_it_does(tmp_path: Path):
    shutil.copy(HERE / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    within = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # of the make that may run this test
    alone = {name: value for name, value in os.environ.items() if name not in within}
    said = subprocess.run(["make", "demo", "PYTHON=false"], cwd=tmp_path, env=alone, capture_output=True, text=True).stdout.splitlines()
    assert "PyTorch" in said[0] and ".venv" in said[0] and "a minute or several" in said[0]
    assert said[1].startswith("false -m venv")  # which fails: nothing is installed here
