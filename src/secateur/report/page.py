"""A story as one self-contained page: no network, no fonts but the reader's own, light or dark as the reader's system is."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from ..errors import need
from ..folders import write_text_atomic
from ..structure.kinds import n_of_m_in, word
from ..table import Table, factor, shown
from .depth_figures import HIGH, LEVELS, layer_curves, shades, strip
from .figures import HEIGHT, WIDTH, Chart, chart, cut_at, histogram
from .story import Reasons, Story, Unit

HERE = Path(__file__).parent
CURVES = {"top1": "top-1", "worst_class": "worst class", "top5": "top-5"}
EPOCHS = {"loss": "training loss", "validation_top1": "validation top-1"}  # figures of fine-tuning; others are called as they are
SPARED = {"macs": "fewer MACs", "bytes": "smaller file", "memory": "less memory"}  # what the headline tells first


def write_report(path: str | Path, story: Story) -> None:
    """Write the page, whole or not at all. Raises BadInput where it cannot be written."""
    write_text_atomic(path, render(story))


def render(story: Story) -> str:
    """The page's text."""
    jinja2 = need("jinja2", "report")
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    text: str = page.get_template("page.html.jinja").render(
        story=story,
        headline=headline(story),
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        charts=charts(story),
        depth=story.depth,
        shades=shades,
        strip=strip,
        levels=range(LEVELS),
        high=HIGH,
        alone=layer_curves(story.layer_curves),
        alone_chart=alone(story),
        on=on(story),
        tuning=tuning(story),
        histogram=histogram,
        cut_at=cut_at,
        verdict=verdict,
        against_cut=against_cut,
        largest=max((max(layer.global_share or 0, layer.local_share or 0) for layer in story.layers), default=0) or 1,
        protected=sum(layer.protected for layer in story.layers),
        one_cut=any(group.cut is not None for group in story.reasons),
        gone=sum(layer.size - layer.kept for layer in story.layers),
        units=sum(layer.size for layer in story.layers),
        opened=most_telling(story),
        word=word(story.structure or "channels"),
        decided=n_of_m_in(story.structure),
        shown=shown,
        size=(WIDTH, HEIGHT),
    )
    return text


def headline(story: Story) -> str:
    """What was won and what it cost, in numbers of the table's subject against its first row; the title where nothing was measured."""
    table, row = story.table, story.subject
    if row not in table.rows or row == next(iter(table.rows)):
        return story.title
    won = told(table, row, SPARED) or told(table, row, {"nonzeros": "fewer non-zero weights"})
    return ", ".join([*won, *cost(table, row)]) or story.title


def told(table: Table, row: str, what: dict[str, str]) -> list[str]:
    """The gains worth telling: 5 % and more."""
    ratios = {name: table.ratio(row, name) for name in what if name in table.columns}
    return [f"{factor(ratio)}× {what[name]}" for name, ratio in ratios.items() if ratio is not None and ratio >= 1.05]


def cost(table: Table, row: str) -> list[str]:
    """The change of the first quality in the table, in points."""
    for name, column in table.columns.items():
        difference = table.difference(row, name)
        if difference is not None:
            same = abs(difference) < 0.05
            return [
                f"same {column.title}"
                if same
                else f"{abs(difference):.1f} points of {column.title} {'gained' if difference > 0 else 'lost'}"
            ]
    return []


def on(story: Story) -> str:
    """Which data the curves show; nothing where the story does not tell."""
    return f", on the {story.curves_on}" if story.curves_on else ""


def charts(story: Story) -> list[Chart]:
    """A curve for every quality that the points have, with its own value before anything is removed as a level."""
    whole: dict[str, float] = next((point for points in story.curve.values() for point in points if point.get("amount") == 0), {})
    drawn = [
        chart(story.curve, "amount", metric, f"{title} against the amount removed{on(story)}", ("amount removed", title), whole.get(metric))
        for metric, title in CURVES.items()
    ]
    return [one for one in drawn if one is not None]


def alone(story: Story) -> Chart | None:
    """The quality when one layer alone loses units, of the layers that it depends on most."""
    found = layer_curves(story.layer_curves)
    if found is None:
        return None
    title = f"{found.title} when one layer alone loses units{on(story)}"
    names = ("amount removed from the layer", found.title)
    return chart(found.lines, "amount", found.metric, title, names, found.level, shares=(True, found.points))


def tuning(story: Story) -> list[Chart]:
    """Losses and qualities by epoch of fine-tuning, where there was more than one."""
    epochs = [{"epoch": float(number), **epoch} for number, epoch in enumerate(story.history, start=1)]
    names = [name for name in dict.fromkeys(key for epoch in epochs for key in epoch) if name not in ("epoch", "lr", "seconds")]
    drawn = []
    for what, of in (("loss", [name for name in names if "loss" in name]), ("quality", [name for name in names if "loss" not in name])):
        lines = {
            EPOCHS.get(name, name.replace("_", " ")): [{"x": at["epoch"], "y": at[name]} for at in epochs if name in at] for name in of
        }
        said = next(iter(lines)) if len(lines) == 1 else what
        drawn.append(chart(lines, "x", "y", f"{said} by epoch of fine-tuning", ("epoch", said), shares=(False, False)))
    return [one for one in drawn if one is not None and len(epochs) > 1]


def most_telling(story: Story) -> str:
    """The group that is open from the start: where local sensitivity saved most, and then where most went."""
    return max(story.layers, key=lambda layer: (layer.protected, layer.size - layer.kept)).name if story.layers else ""


def verdict(unit: Unit, reasons: Reasons) -> str:
    if unit.protected:
        return "kept: local protects it"
    if unit.yielded:
        return "removed in another's place"
    if unit.kept and reasons.cut is not None and unit.score < reasons.cut:
        return "kept below the cut"
    return "kept" if unit.kept else "removed"


def against_cut(unit: Unit, reasons: Reasons) -> str:
    """The score as a multiple of the cut, which is easier read than its powers of ten."""
    if reasons.cut is None or reasons.cut <= 0:
        return f"{unit.score:.2g}"
    ratio = unit.score / reasons.cut
    return f"{ratio:.2f}×" if ratio < 99.5 else f"{ratio:.0f}×"
