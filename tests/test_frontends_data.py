"""Whatever the data is, it becomes batches for training, validation and test that share no sample."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy
import pytest
import torch

from secateur.errors import BadInput
from secateur.frontends.batches import Splits
from secateur.frontends.data import data_of

CODE = """
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

def arrays(start, stop):
    numbers = torch.arange(start, stop)
    return numbers.float().view(-1, 1), numbers % 2

def data(start, stop):
    return TensorDataset(*arrays(start, stop))

def batches(start, stop):
    return [arrays(n, min(n + 4, stop)) for n in range(start, stop, 4)]

class Endless(IterableDataset):
    def __iter__(self):
        return iter(data(0, 20))

class Named(Dataset):
    classes = ["even", "odd"]
    def __len__(self): return 20
    def __getitem__(self, n): return torch.tensor([float(n)]), n % 2

class Readable:
    def __iter__(self):
        return iter(batches(0, 20))

def apart(): return {"train": data(0, 12), "validation": data(12, 16), "test": data(16, 20)}
def short(): return {"train": data(0, 12), "val": data(12, 16), "test": data(16, 20)}
def loaders(): return {name: DataLoader(part, 4) for name, part in apart().items()}
def in_batches(): return {"train": batches(0, 12), "validation": batches(12, 16), "test": batches(16, 20)}
def two(): return {"train": data(0, 16), "test": data(16, 20)}
def two_loaders(): return {name: DataLoader(part, 4) for name, part in two().items()}
def pile(): return data(0, 20)
def named(): return Named()
def pair(): return arrays(0, 20)
def samples(): return list(data(0, 20))
def loader(): return DataLoader(data(0, 20), 4)
def train_only(): return {"train": data(0, 20)}

def no_test(): return {"train": data(0, 12), "validation": data(12, 16)}
def other_keys(): return {"training": data(0, 12)}
def empty(): return {"train": [], "test": data(0, 20)}
def iterator(): return iter(batches(0, 20))
def endless(): return Endless()
def readable(): return Readable()
def number(): return 3
def unequal(): return torch.zeros(3, 1), torch.zeros(4)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(CODE)
    return f"{tmp_path}/net.py"


def numbers(batches: Iterable[object]) -> list[int]:
    return [int(number) for inputs, _ in batches for number in inputs.flatten()]


def parts(splits: Splits) -> list[list[int]]:
    return [numbers(part) for part in (splits.train, splits.validation, splits.test)]


@pytest.mark.parametrize("name", ["apart", "short", "loaders", "in_batches"])
def test_splits_that_are_given_stay_as_they_are(file: str, name: str):
    splits = data_of(f"{file}:{name}", batch=4)
    train, validation, test = parts(splits)
    assert sorted(train) == list(range(12)) and validation == [12, 13, 14, 15] and test == [16, 17, 18, 19]
    assert parts(splits) == [train, validation, test]  # read again
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [3, 1, 1]
    assert splits.record == {
        "data": f"{file}:{name}",
        "seed": 0,
        "split": "as given",
        "train": None,
        "validation": None,
        "test": None,
        "classes": None,
    }


@pytest.mark.parametrize("name", ["two", "two_loaders"])
def test_validation_is_cut_from_training_where_it_is_missing(file: str, name: str):
    splits = data_of(f"{file}:{name}")
    train, validation, test = parts(splits)
    assert len(validation) == 2 and sorted(train + validation) == list(range(16)) and test == [16, 17, 18, 19]
    assert (splits.record["train"], splits.record["validation"], splits.record["test"]) == (train, validation, None)


@pytest.mark.parametrize("name", ["pile", "named", "pair", "samples", "loader", "train_only"])
def test_one_pile_is_split_by_a_seed_and_the_split_is_on_record(file: str, name: str):
    splits = data_of(f"{file}:{name}", seed=3)
    train, validation, test = parts(splits)
    assert sorted(train + validation + test) == list(range(20)) and (len(train), len(validation), len(test)) == (16, 2, 2)
    assert all({number % 2 for number in part} == {0, 1} for part in (train, validation, test))
    record = json.loads(json.dumps(splits.record))
    assert (record["train"], record["validation"], record["test"]) == (train, validation, test)
    assert record["seed"] == 3 and record["split"] == "stratified"
    assert parts(data_of(f"{file}:{name}", seed=3)) == [train, validation, test] != parts(data_of(f"{file}:{name}", seed=4))
    assert splits.classes == (("even", "odd") if name == "named" else None)


WRONG = {
    "no_test": "has train and validation data, but training and test data are needed",
    "other_keys": "returned a dict of training. Return train, validation and test",
    "empty": "The train data of .* is empty",
    "iterator": "is an iterator, which can be read only once",
    "endless": "not data",
    "readable": "gives batches, which cannot be split",
    "number": "is of type int, not data",
    "unequal": "not as many",
    "missing": "has no function missing",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_data_is_one_sentence(file: str, name: str):
    with pytest.raises(BadInput, match=WRONG[name]) as caught:
        data_of(f"{file}:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["", "digit", "folder:", "npz:", ":", "net.py", "x:"])
def test_what_names_no_data_is_refused(spec: str):
    with pytest.raises(BadInput):
        data_of(spec)


def test_digits_are_split_by_class():
    splits = data_of("digits", batch=100)
    inputs, targets = next(iter(splits.train))
    assert inputs.shape == (100, 1, 8, 8) and inputs.min() == 0 and inputs.max() == 1 and len(targets.unique()) == 10
    assert splits.classes == tuple("0123456789") and splits.record["split"] == "stratified"
    assert sum(len(targets) for part in (splits.train, splits.validation, splits.test) for _, targets in part) == 1797


def test_an_npz_file_is_split(tmp_path: Path):
    numpy.savez(tmp_path / "data.npz", x=numpy.arange(20.0).reshape(20, 1), y=numpy.array(["a", "b"] * 10))
    splits = data_of(f"npz:{tmp_path}/data.npz")
    assert sorted(itertools.chain(*parts(splits))) == list(range(20)) and splits.classes == ("a", "b") == tuple(splits.record["classes"])


def images(folder: Path, *names: str, size: tuple[int, int] = (4, 4)) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(10):
            image.new("RGB", size, (number, 0, 0)).save(folder / name / f"{number}.png")


def test_a_folder_is_split_and_names_what_it_passed_over(tmp_path: Path):
    images(tmp_path, "cat", "dog")
    (tmp_path / "cat" / "notes.txt").write_text("")
    splits = data_of(f"folder:{tmp_path}", batch=3, size=(2, 2))
    assert splits.classes == ("cat", "dog") and splits.record["skipped"] == ["cat/notes.txt"]
    inputs, targets = next(iter(splits.train))
    assert inputs.shape == (3, 3, 2, 2) and targets.shape == (3,)
    assert [sum(len(targets) for _, targets in part) for part in (splits.train, splits.validation, splits.test)] == [16, 2, 2]


def test_a_folder_that_is_split_stays_so(tmp_path: Path):
    images(tmp_path / "train", "cat", "dog")
    images(tmp_path / "val", "cat", "dog", size=(6, 6))
    images(tmp_path / "test", "cat", "dog")
    splits = data_of(f"folder:{tmp_path}")
    assert splits.record["split"] == "as given" and next(iter(splits.validation))[0].shape == (20, 3, 4, 4)
    assert len({int(target) for _, targets in data_of(f"folder:{tmp_path}", batch=8).train for target in targets[:8]}) == 2
    images(tmp_path / "test", "emu")
    with pytest.raises(BadInput, match="has the classes cat, dog, emu, but train has cat, dog"):
        data_of(f"folder:{tmp_path}")


def test_the_random_state_is_left_alone(file: str):
    before = torch.get_rng_state(), numpy.random.get_state()[1].tolist()
    data_of(f"{file}:pile")
    data_of(f"{file}:apart")
    data_of("digits")
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == numpy.random.get_state()[1].tolist()
    assert not [name for name in sys.modules if name == "net"]
