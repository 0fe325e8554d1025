"""What can go wrong, each with one sentence: the place, the fact, the way out.

SecateurError                 the command line prints it and leaves with code 2
├── BadInput                  an argument, a data set, an example or a loss that cannot be used
│   ├── BadLoss               a loss that is NaN, infinite or not differentiable
│   └── NothingToPrune        a model without a unit that may be removed
├── BudgetUnreachable         the budget asks for more than can be removed
├── PlanMismatch              a plan or a file made for another model
├── Unreadable                a file that is missing, damaged or of another version
└── MissingExtra              an optional dependency that is not installed
"""

from __future__ import annotations

import importlib
from types import ModuleType


class SecateurError(Exception):
    """Base of every error raised on purpose."""


class BadInput(SecateurError, ValueError):
    """An argument, a data set, an example or a model that cannot be used."""


class BadLoss(BadInput):
    """A loss that is NaN, infinite or not differentiable."""


class NothingToPrune(BadInput):
    """A model in which no unit may be removed."""


class BudgetUnreachable(SecateurError, ValueError):
    """A budget beyond what can be removed."""


class PlanMismatch(SecateurError, ValueError):
    """A plan, or a file, that was made for another model."""


class Unreadable(SecateurError, ValueError):
    """A file that is missing, damaged or of another version."""


class MissingExtra(SecateurError, ImportError):
    """An optional dependency that is not installed."""


def need(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise MissingExtra(f"This needs {module.split('.')[0]}, which is not installed. Run: pip install 'secateur[{extra}]'") from error
