from __future__ import annotations

import pytest

from secateur.errors import BadInput
from secateur.floors import floors
from secateur.structure import Group

GROUPS = {
    name: Group(name, (size,), least=least)
    for name, size, least in (("conv1", 16, 1), ("layer1.0", 10, 1), ("layer1.1", 10, 4), ("fc", 3, 1))
}


@pytest.mark.parametrize(
    ("given", "stay"),
    [
        ({}, [1, 1, 4, 1]),
        ({"least": 2}, [2, 2, 4, 2]),
        ({"least": 12}, [12, 10, 10, 3]),
        ({"least": 0.1}, [2, 1, 4, 1]),
        ({"least": 1.0}, [16, 10, 10, 3]),
        ({"least": 0}, [1, 1, 4, 1]),
        ({"most": 0.5}, [8, 5, 5, 2]),
        ({"most": 2}, [14, 8, 8, 1]),
        ({"most": 0.0}, [16, 10, 10, 3]),
        ({"least": 0.3, "most": 0.9}, [5, 3, 4, 1]),
        ({"least": {"layer1.0": 0.9, "layer1.*": 0.5}}, [1, 9, 5, 1]),
        ({"most": {"layer*": 0.2}}, [1, 8, 8, 1]),
        ({"keep": ("conv1", "layer1.*")}, [16, 10, 10, 1]),
        ({"keep": "fc"}, [1, 1, 4, 3]),
        ({"keep": ["*"]}, [16, 10, 10, 3]),
    ],
)
def test_so_many_stay_of_every_group(given: dict[str, object], stay: list[int]) -> None:
    assert list(floors(GROUPS, **given).values()) == stay  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keep": ["conv2"]}, "No group is called 'conv2'. There are conv1, layer1.0"),
        ({"least": {"layer2.*": 0.5}}, "No group is called 'layer2"),
        ({"most": {"CONV1": 0.5}}, "No group is called 'CONV1'"),
        ({"least": 1.5}, "least= is a whole number of units or a share"),
        ({"least": -1}, "but it is -1"),
        ({"most": True}, "most= .* but it is True"),
        ({"least": {"conv1": "half"}}, "'half'"),
    ],
)
def test_what_is_no_limit_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        floors(GROUPS, **given)  # type: ignore[arg-type]


def test_names_with_brackets_are_names_first() -> None:
    groups = {"a[0]": Group("a[0]", (4,)), "a0": Group("a0", (4,))}
    assert floors(groups, keep=("a[0]",)) == {"a[0]": 4, "a0": 4}, "as a name, and as a pattern"
