"""Errors are one family, and an extra that is missing says how to get it."""

from __future__ import annotations

import pytest

import secateur as sc
from secateur import errors


def test_every_error_is_ours_and_a_builtin():
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(kinds) == 8 and all(issubclass(kind, sc.SecateurError) for kind in kinds)
    assert issubclass(sc.BadInput, ValueError) and issubclass(sc.MissingExtra, ImportError)
    assert all(kind.__name__ in errors.__doc__ for kind in kinds)


def test_a_missing_extra_names_itself():
    assert errors.need("math", "all").pi > 3
    with pytest.raises(sc.MissingExtra, match=r"pip install 'secateur\[tune\]'"):
        errors.need("no_such_module", "tune")
