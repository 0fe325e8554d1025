"""The documentation's snippets run, and stay short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur.structure.rules import RULES

ROOT = Path(__file__).parents[1]


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_snippets_of_adding_run_and_do_what_the_page_says():
    names: dict[str, object] = {}
    torch.manual_seed(0)
    try:
        for snippet in snippets(ROOT / "docs/adding.md"):
            exec(compile(snippet, "docs/adding.md", "exec"), names)
    finally:
        RULES.pop("mine::gate", None)
    assert "no rule for this operator: by mine::gate" in str(names["frozen"])
    assert names["units"] == 16
    assert names["pruned"].model[0].weight.shape == (8, 4)  # type: ignore[attr-defined]


@pytest.mark.parametrize("function", ["snip", "gate"])
def test_a_criterion_and_a_rule_are_under_ten_lines(function: str):
    source = next(s for s in snippets(ROOT / "docs/adding.md") if f"def {function}(" in s)
    body = re.search(rf"(?:@.*\n)?def {function}\(.*\n(?:[ \t].*\n|\n)*?(?=\n\n|\Z)", source)
    assert body and len(body.group(0).strip().splitlines()) < 10


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
        "model": model, "build": build, "train": train, "batches": batches, "test": batches, "example": batches[0][0],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    }  # fmt: skip
    for snippet in snippets(ROOT / "README.md"):
        exec(compile(snippet, "README.md", "exec"), names)
    small, again = names["tuned"].model.eval(), names["again"].eval()  # type: ignore[attr-defined]
    assert torch.equal(small(batches[0][0]), again(batches[0][0]))
    assert names["step"].model[0].out_channels < 8  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
