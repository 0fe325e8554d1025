"""`secateur report`: the page again, from the story of a result; with layer curves, which the story has from then on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .cli_curves import curves_of
from .errors import BadInput, SecateurError, Unreadable
from .files import read_plan, write_text_atomic
from .journey import VALIDATION
from .report import Story, render


def report_again(folder: Path, curves: Path | None = None) -> Path:
    """Writes report.html, and says where. Raises BadInput and Unreadable with nothing written."""
    plan = read_plan(folder)
    file, page = folder / "report.json", folder / "report.html"
    try:
        told = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} cannot be read: {error}. Prune again to have a new one.") from error
    story = Story.from_json(told)
    if curves is not None:
        story = replace(story, layer_curves=curves_of(curves, plan, folder), curves_on=VALIDATION)
    drawn = page_of(story, file)
    if curves is not None:
        write_text_atomic(file, story.to_json())
    write_text_atomic(page, drawn)
    return page


def page_of(story: Story, file: Path) -> str:
    """Raises Unreadable for a story with values that cannot have been measured, whatever they break."""
    try:
        return render(story)
    except SecateurError:
        raise
    except Exception as error:
        raise Unreadable(f"{file} is damaged ({type(error).__name__}: {error}). Prune again to have a new one.") from error
