"""The laws of the source: lower layers never import higher ones, nothing in a file is ever executed, the import is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import secateur

SOURCE = Path(secateur.__file__).parent
ROWS = (
    {"tree", "errors", "folders", "task", "counted", "smallest", "sharded", "version"},
    {"structure"},
    {
        "criteria", "sensitivity", "reductions", "contexts", "cost", "activations", "stream", "sure", "conflicts", "sensitivity_file",
        "resume", "distributed", "sharded_task", "measure", "flows",
    },
    {"scope", "schedule", "budget", "floors", "path", "connections", "runs", "pulled", "select", "plan", "allocate", "shards"},
    {"surgery", "repair", "finetune", "epochs", "optimizers", "checkpoints", "rates", "distill", "stepping", "gradual"},
    {
        "evaluate", "table", "footprint", "speed", "latency", "curves", "drop", "memory", "report", "files", "plan_json", "leaving",
        "explanation", "explain", "order",
    },
    {
        "frontends", "api", "rounds", "cli", "cli_asked", "cli_evaluate", "cli_prune", "cli_tables", "journey", "progress", "demo",
        "cli_measure", "cli_curves", "cli_explain", "cli_options", "cli_report",
    },
    {"__init__", "__main__"},
)
ROW = {name: number for number, names in enumerate(ROWS) for name in names}
FILES = {file.relative_to(SOURCE).with_suffix("").parts: file for file in sorted(SOURCE.rglob("*.py"))}
TREES = {parts: ast.parse(file.read_text(encoding="utf-8")) for parts, file in FILES.items()}


def imported(parts: tuple[str, ...], tree: ast.AST) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, module) of everything that a module imports, in functions, too; relative to the package for our own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, tuple(name.name.split("."))) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                module = ("secateur", *parts[: len(parts) - node.level], *module)
            yield from ((node.lineno, (*module, name.name)) for name in node.names)


@pytest.mark.parametrize("parts", TREES, ids="/".join)
def test_a_lower_layer_imports_no_higher_one(parts: tuple[str, ...]):
    assert parts[0] in ROW, f"{parts[0]} has no row: give it one above"
    for line, module in imported(parts, TREES[parts]):
        if module[0] == "secateur":
            other = module[1] if len(module) > 1 and module[1] in ROW else "__init__"
            assert ROW[other] <= ROW[parts[0]], f"{'/'.join(parts)}.py:{line} imports {other}, which is in a higher row"


@pytest.mark.parametrize("parts", TREES, ids="/".join)
def test_nothing_that_is_read_can_run(parts: tuple[str, ...]):
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for line, module in imported(parts, TREES[parts]):
        assert module[0] not in forbidden, f"{'/'.join(parts)}.py:{line} imports {module[0]}"
    for node in ast.walk(TREES[parts]):
        if isinstance(node, ast.Call):
            called, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            where = f"{'/'.join(parts)}.py:{node.lineno}"
            assert called not in ("eval", "exec", "compile", "builtins.eval", "builtins.exec"), f"{where} calls {called}"
            assert called not in ("torch.load", "load_state") or options.get("weights_only") == "True", f"{where} lets torch.load run code"
            assert called not in ("numpy.load", "np.load") or options.get("allow_pickle") == "False", f"{where} lets numpy.load run code"


def test_the_public_names_are_exactly_those_listed():
    listed = getattr(secateur, "__all__", [])
    assert len(set(listed)) == len(listed)
    assert all(hasattr(secateur, name) for name in listed)
    here = {name for name, value in vars(secateur).items() if not name.startswith("_") and not isinstance(value, ModuleType)}
    assert here - {"annotations"} <= set(listed)


def test_the_import_is_light():
    code = "import sys, secateur; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())
    heavy = {"typer", "rich", "sklearn", "accelerate", "jinja2", "torchmetrics", "PIL", "torchvision", "timm", "matplotlib", "scipy"}
    heavy |= {"transformers", "lightning", "pytorch_lightning"}
    assert not loaded & heavy
