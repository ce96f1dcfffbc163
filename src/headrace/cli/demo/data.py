"""1,797 handwritten digits, split into images to train on and images to check with."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

CLASSES = 10
_CHECK_SHARE = 0.2


@dataclass(frozen=True)
class Digits:
    """The two parts, each a dataset of (image of shape (1, 8, 8) in 0..1, label)."""

    train: TensorDataset
    validation: TensorDataset


def load(seed: int) -> Digits:
    """Load scikit-learn's digits and split them.

    A fifth of each class, drawn with ``seed``, is kept for validation, so that both parts hold
    every digit in the same proportion.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.as_tensor(raw.images, dtype=torch.float32).div(16).unsqueeze(1)
    labels = torch.as_tensor(raw.target, dtype=torch.int64)
    train, validation = _stratified_split(labels, seed)
    return Digits(
        TensorDataset(images[train], labels[train]),
        TensorDataset(images[validation], labels[validation]),
    )


def _stratified_split(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    train, validation = [], []
    for digit in range(CLASSES):
        of_class = (labels == digit).nonzero().flatten()
        mixed = of_class[torch.randperm(len(of_class), generator=generator)]
        held_out = round(len(mixed) * _CHECK_SHARE)
        validation.append(mixed[:held_out])
        train.append(mixed[held_out:])
    return torch.cat(train), torch.cat(validation)
