"""A folder of images a class: every image once, in order, read when it is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy
import pytest
import torch

from secateur.errors import BadInput, Unreadable
from secateur.frontends.images import image_folder, read_image

Image = pytest.importorskip("PIL.Image", reason="needs pillow")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("dog", "cat"):
        (tmp_path / name / "more").mkdir(parents=True)
        for number, place in enumerate(("1.png", "0.png", "more/2.PNG")):
            pixels = numpy.random.default_rng(number + 3 * (name == "dog")).integers(0, 256, (6, 4, 3), numpy.uint8)
            Image.fromarray(pixels).save(tmp_path / name / place)
    (tmp_path / "cat" / "notes.txt").write_text("")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_images_come_by_class_and_name_in_the_size_of_the_first(folder: Path):
    items, classes, skipped = image_folder(folder, None)
    assert classes == ("cat", "dog") and skipped == ["cat/notes.txt"] and items.labels() == [0, 0, 0, 1, 1, 1]
    images, targets = items.take([0, 5])
    assert images.shape == (2, 3, 6, 4) and images.dtype == torch.float32 and targets.tolist() == [0, 1]
    for image, place in zip(images, ("cat/0.png", "dog/more/2.PNG")):
        assert torch.equal(image, torch.from_numpy(numpy.array(Image.open(folder / place))).permute(2, 0, 1) / 255)


def test_images_are_resized_and_made_rgb(folder: Path):
    Image.new("L", (9, 9), 255).save(folder / "cat" / "0.png")
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(folder / "cat" / "1.png")
    images, _ = image_folder(folder, (3, 5))[0].take(range(6))
    assert images.shape == (6, 3, 3, 5) and images[0].eq(1).all()


def test_an_image_is_read_when_it_is_needed_and_a_damaged_one_is_named(folder: Path):
    whole = (folder / "dog" / "1.png").read_bytes()
    for damaged in (b"", b"no image", whole[:40], whole[: len(whole) // 2]):
        (folder / "dog" / "1.png").write_bytes(damaged)
        items, _, _ = image_folder(folder, None)
        items.take([0])
        with pytest.raises(Unreadable, match=r"dog/1\.png is not a whole image"):
            items.take([4])
    with pytest.raises(Unreadable, match="is not a whole image"):
        read_image(folder / "nowhere.png")


def test_what_is_no_folder_of_images_is_said(folder: Path):
    with pytest.raises(BadInput, match="There is no folder"):
        image_folder(folder / "nowhere", None)
    with pytest.raises(BadInput, match="has 1 folders, and one is needed for each of two classes"):
        image_folder(folder / "cat", None)
    for image in (folder / "dog").rglob("*.*"):
        image.unlink()
    with pytest.raises(BadInput, match=r"The class dog in .* has no image"):
        image_folder(folder, None)
    shutil.rmtree(folder / "dog")
    shutil.rmtree(folder / "cat")
    with pytest.raises(BadInput, match="has 0 folders"):
        image_folder(folder, None)
