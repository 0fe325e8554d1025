"""Arrays in an npz file are found by their names, and bytes are images."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
import torch

from secateur.errors import BadInput, SecateurError, Unreadable
from secateur.frontends.npz import arrays_in

X, Y = numpy.arange(24, dtype=numpy.float64).reshape(12, 2), numpy.arange(12, dtype=numpy.uint8) % 3


def written(folder: Path, **arrays: object) -> Path:
    numpy.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


@pytest.mark.parametrize("x, y", [("x", "y"), ("X", "y"), ("images", "labels"), ("data", "target")])
def test_one_pile_is_found_by_its_names(tmp_path: Path, x: str, y: str):
    given, classes = arrays_in(written(tmp_path, **{x: X, y: Y, "other": X}))
    assert given.keys() == {""} and classes is None
    assert torch.equal(given[""].inputs, torch.from_numpy(X).float()) and given[""].targets.tolist() == Y.tolist()


@pytest.mark.parametrize("name", ["{0}_{1}", "{1}_{0}"])
def test_splits_are_found_by_their_names(tmp_path: Path, name: str):
    arrays = {
        name.format(kind, part): value[:size]
        for part, size in (("train", 6), ("val", 2), ("test", 4))
        for kind, value in (("x", X), ("y", Y))
    }
    given, _ = arrays_in(written(tmp_path, **arrays))
    assert {part: len(samples) for part, samples in given.items()} == {"train": 6, "validation": 2, "test": 4}


@pytest.mark.parametrize("shape, becomes", [((12, 5, 6), (12, 1, 5, 6)), ((12, 5, 6, 3), (12, 3, 5, 6)), ((12, 3, 5, 6), (12, 3, 5, 6))])
def test_bytes_are_images(tmp_path: Path, shape: tuple[int, ...], becomes: tuple[int, ...]):
    bytes_ = numpy.random.default_rng(0).integers(0, 256, shape, numpy.uint8)
    images = arrays_in(written(tmp_path, x=bytes_, y=Y))[0][""].inputs
    assert images.shape == becomes and images.dtype == torch.float32
    channels_first = bytes_.transpose(0, 3, 1, 2) if shape[-1] == 3 else bytes_.reshape(becomes)
    assert torch.equal(images, torch.from_numpy(channels_first / numpy.float32(255)))


def test_whole_numbers_stay_whole_and_names_become_classes(tmp_path: Path):
    names = numpy.array(["dog", "cat", "emu"])[Y]
    given, classes = arrays_in(written(tmp_path, x=X.astype(numpy.int32), y=names))
    assert given[""].inputs.dtype == torch.int64 and classes == ("cat", "dog", "emu")
    assert [classes[target] for target in given[""].targets] == names.tolist()
    with pytest.raises(BadInput, match="has the class emu outside the training data only"):
        arrays_in(written(tmp_path, x_train=X[:2], y_train=names[:2], x_test=X, y_test=names))


def test_what_is_wrong_is_said(tmp_path: Path):
    with pytest.raises(BadInput, match="has a, b, but x and y are needed"):
        arrays_in(written(tmp_path, a=X, b=Y))
    with pytest.raises(BadInput, match=r"has inputs of shape \(12, 2\) and targets of shape \(11,\)"):
        arrays_in(written(tmp_path, x=X, y=Y[1:]))
    with pytest.raises(Unreadable, match="is not a whole npz file of plain arrays: Object arrays cannot be loaded"):
        arrays_in(written(tmp_path, x=X, y=numpy.array([None] * 12)))
    with pytest.raises(BadInput, match=r"x in .* is of type complex128"):
        arrays_in(written(tmp_path, x=X * 1j, y=Y))
    numpy.save(tmp_path / "data.npy", X)
    with pytest.raises(Unreadable, match="is not a whole npz"):
        arrays_in(tmp_path / "data.npy")
    with pytest.raises(Unreadable, match="There is no file"):
        arrays_in(tmp_path / "nowhere.npz")


def test_damaged_files_give_a_sentence(tmp_path: Path):
    path = written(tmp_path, x=X, y=Y)
    whole = path.read_bytes()
    for seed in range(200):
        chance = random.Random(seed)
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + (bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :] if seed % 2 else b""))
        try:
            arrays_in(path)
        except SecateurError as error:
            assert "\n" not in str(error)
