"""Architectures as users build them, by family, each with the dimensions that an expert would expect to be prunable."""

from __future__ import annotations

from families_other import OTHER
from families_sequence import SEQUENCE
from families_vision import VISION

FAMILIES = [*SEQUENCE, *VISION, *OTHER]
