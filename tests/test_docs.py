"""The documentation's snippets run, and stay short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.structure import all_kept
from secateur.structure.rules import OPAQUE, RULES

ROOT = Path(__file__).parents[1]


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_snippets_of_adding_run_and_do_what_the_page_says():
    names: dict[str, object] = {"__name__": "__main__"}
    torch.manual_seed(0)
    known, opaque = dict(RULES), dict(OPAQUE)
    try:
        for snippet in snippets(ROOT / "docs/adding.md"):
            exec(compile(snippet, "docs/adding.md", "exec"), names)
    finally:
        for table, before in ((RULES, known), (OPAQUE, opaque)):
            for name in set(table) - set(before):
                del table[name]
    assert "no rule for this operator: by mine::gate" in str(names["frozen"])
    assert names["units"] == 16
    assert names["without_rule"] == {} and names["with_rule"] == 16
    assert any(how.startswith("__main__::Scale at ") for how in names["through"])  # type: ignore[attr-defined]
    assert names["pruned"].model[0].weight.shape == (8, 4)  # type: ignore[attr-defined]
    assert names["quiet"].global_["0"].shape == (16,)  # type: ignore[attr-defined]


@pytest.mark.parametrize("function", ["terms", "strength", "gate", "scale"])
def test_a_criterion_and_a_rule_are_under_ten_lines(function: str):
    source = next(s for s in snippets(ROOT / "docs/adding.md") if f"def {function}(" in s)
    body = re.search(rf"(?:@.*\n)?def {function}\(.*\n(?:[ \t].*\n|\n)*?(?=\n\n|\Z)", source)
    assert body and len(body.group(0).strip().splitlines()) < 10


def test_the_snippets_of_architecture_print_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A block without a language is what the snippet before it prints."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    blocks = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "docs/architecture.md").read_text().split("## Labels")[1], re.DOTALL)
    printed = 0
    for language, block in blocks:
        if language == "python":
            exec(compile(block, "attention.py", "exec"), names)
        else:
            assert capsys.readouterr().out == block
            printed += 1
    assert printed == 2
    pruned, example = names["pruned"], names["example"]
    assert torch.equal(names["again"].eval()(example), pruned.model.eval()(example))  # type: ignore[attr-defined]


def test_the_heads_of_architecture_leave_with_the_rows_that_the_page_says():
    names: dict[str, object] = {}
    page = (ROOT / "docs/architecture.md").read_text()
    exec(compile(next(s for s in snippets(ROOT / "docs/architecture.md") if "class Attention" in s), "attention.py", "exec"), names)
    structure = sc.channels(names["model"], names["x"], units=["head", "head dimension"])  # type: ignore[arg-type]
    rows = re.findall(r"^\| `(\w)1`, [^|]*\| ([\d ]+) \| ([\w ]+) \|", page, re.MULTILINE)
    assert [label for label, *_ in rows] == ["g", "r", "d"] and [group.size for group in structure.groups.values()] == [2, 2, 2]
    for (_, queries, keys), name in zip(rows, structure.groups):
        kept = structure.kept(all_kept(structure) | {name: torch.tensor([True, False])})
        for tensor, dim, said in (("q.weight", 0, queries), ("o.weight", 1, queries), ("k.weight", 0, keys), ("v.weight", 0, keys)):
            left = set(range(structure.shapes[tensor][dim])) - {int(row) for row in said.split() if row != "none"}
            stays = kept[tensor][dim] if tensor in kept else None
            assert left == set(range(structure.shapes[tensor][dim]) if stays is None else stays.tolist()), (name, tensor)


def test_the_snippets_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torchmetrics")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for inputs, targets in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    batches = [(torch.randn(12, 1, 6, 6), torch.arange(12) % 3) for _ in range(3)]
    model = build()
    names = {
        "model": model, "build": build, "train": train, "batches": batches, "test": batches, "validation": batches,
        "example": batches[0][0],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), "torch": torch,
    }  # fmt: skip
    for snippet in snippets(ROOT / "README.md"):
        exec(compile(snippet, "README.md", "exec"), names)
    small, again = names["tuned"].model.eval(), names["again"].eval()  # type: ignore[attr-defined]
    assert torch.equal(small(batches[0][0]), again(batches[0][0]))
    assert names["step"].model[0].out_channels < 8  # type: ignore[attr-defined]
    masked, cut = model.eval()(batches[0][0]), names["small"].eval()(batches[0][0])  # type: ignore[attr-defined]
    torch.testing.assert_close(masked, cut)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
