"""The documentation's snippets run, and stay short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
