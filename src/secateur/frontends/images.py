"""A folder of images a class, read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ..errors import BadInput, Unreadable, need
from .batches import Items

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


@dataclass(frozen=True)
class Images(Sequence[tuple[Tensor, int]]):
    """(image, class) by number; an image is (3, height, width), in 0..1."""

    files: list[Path]
    targets: list[int]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:  # type: ignore[override]
        return read_image(self.files[index], self.size), self.targets[index]


def read_image(file: Path, size: tuple[int, int] | None = None) -> Tensor:
    """RGB in 0..1, (3, height, width), resized to `size`. Raises Unreadable."""
    pillow = need("PIL.Image", "data")
    try:
        with pillow.open(file) as image:
            rgb = image.convert("RGB")
            if size is not None and (rgb.height, rgb.width) != size:
                rgb = rgb.resize((size[1], size[0]), pillow.Resampling.BILINEAR)
            return torch.from_numpy(numpy.array(rgb, dtype=numpy.float32)).permute(2, 0, 1).contiguous() / 255
    except (OSError, ValueError, SyntaxError, EOFError, pillow.DecompressionBombError) as error:
        raise Unreadable(f"{file} is not a whole image: {error}. Replace or remove it.") from error


def image_folder(folder: Path, size: tuple[int, int] | None) -> tuple[Items, tuple[str, ...], list[str]]:
    """The images in a folder of folders, one a class; the classes, by name; and the files that were passed over.

    Raises BadInput where there are not two classes, or a class has no image.
    """
    if not folder.is_dir():
        raise BadInput(f"There is no folder {folder}. Give a folder that has one folder of images for each class.")
    classes = tuple(sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")))
    if len(classes) < 2:
        raise BadInput(
            f"{folder} has {len(classes)} folders, and one is needed for each of two classes or more. Sort the images into folders."
        )
    files, targets, skipped = [], [], []
    for target, name in enumerate(classes):
        found = sorted(Path(root) / file for root, _, names in os.walk(folder / name) for file in names)
        images = [file for file in found if file.suffix.lower() in SUFFIXES]
        if not images:
            raise BadInput(f"The class {name} in {folder} has no image ({', '.join(SUFFIXES[:4])}, ...). Add some, or remove its folder.")
        skipped += [str(file.relative_to(folder)) for file in found if file.suffix.lower() not in SUFFIXES]
        files += images
        targets += [target] * len(images)
    height, width = size or read_image(files[0]).shape[1:]
    return Items(Images(files, targets, (height, width))), classes, skipped
