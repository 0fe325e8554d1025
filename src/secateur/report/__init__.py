"""The report: one page that shows what was kept, why, and what it cost."""

from .page import render, write_report
from .story import Layer, Reasons, Story, Unit, story_of

__all__ = ["Layer", "Reasons", "Story", "Unit", "render", "story_of", "write_report"]
