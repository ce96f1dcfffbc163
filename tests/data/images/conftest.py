"""Photographs to write image files from, and a folder of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

Crop = Callable[..., Image.Image]


@pytest.fixture(scope="session")
def crop() -> Crop:
    """A crop of one of scikit-learn's two photographs: crop(number, height, width)."""
    photographs = load_sample_images().images

    def cut(number: int = 0, height: int = 64, width: int = 64) -> Image.Image:
        photograph = photographs[number % 2]
        random = np.random.default_rng(number)
        top = random.integers(photograph.shape[0] - height + 1)
        left = random.integers(photograph.shape[1] - width + 1)
        return Image.fromarray(photograph[top : top + height, left : left + width])

    return cut


@pytest.fixture
def folder(tmp_path: Path, crop: Crop) -> Path:
    """Twelve JPEGs of 48 x 64 in three classes, in torchvision's layout."""
    return write_folder(tmp_path / "photographs", lambda n: crop(n, 48, 64))


def write_folder(root: Path, picture: Callable[[int], Any], count: int = 12) -> Path:
    classes = ("cat", "dog", "Zebra")  # sorted as torchvision does: capitals first
    for number in range(count):
        place = root / classes[number % 3] / ("more" if number % 4 == 0 else "")
        place.mkdir(parents=True, exist_ok=True)
        picture(number).save(place / f"{number}.jpg")
    return root
