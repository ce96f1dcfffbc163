"""One batch of a dataset, and what can be said of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from headrace import DataLoader
from headrace.cli.peek.columns import of_columns
from headrace.cli.problems import CannotGoOn
from headrace.errors import CollateError

_MOST_CLASSES = 1_000
_CHANNELS = (1, 3)
_LEAST_SIDE = 4  # pixels of an image


@dataclass
class View:
    """What was seen: ``facts`` as JSON can hold them, the rows in order, images with labels."""

    facts: dict[str, Any]
    images: list[tuple[object, str]] = field(default_factory=list)


def look(source: str, dataset: Any, batch_size: int, rows: int) -> View:
    """Make a batch as a loader would, and describe it and the first samples.

    Raises:
        CannotGoOn: the samples cannot be made.
    """
    stream = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")
    length = None if stream else len(dataset)
    facts: dict[str, Any] = {
        "source": source,
        "dataset": type(dataset).__name__,
        "samples": length,
    }
    if length == 0:
        raise CannotGoOn(f"{source} has no samples")
    try:
        samples: list[Any] = next(iter(_loader(dataset, batch_size, stream, collate_fn=list)), [])
        if not samples:
            raise CannotGoOn(f"{source} has no samples")
        facts["batch"] = _batch(_loader(dataset, batch_size, stream), len(samples))
        first = _first(dataset, rows, stream)
    except CannotGoOn:
        raise
    except Exception as error:
        notes = "; ".join(getattr(error, "__notes__", ()))
        text = f"{error} ({notes})" if notes else str(error)
        raise CannotGoOn(f"{type(error).__name__}: {text}") from error
    counts = _class_counts(dataset)
    if counts is not None:
        facts["classes"] = counts
    facts.update(of_columns(dataset))
    if units := getattr(dataset, "units", None):
        facts["units"] = dict(units)
    facts["rows"] = [_row(sample, dataset) for sample in first]
    names = getattr(dataset, "classes", None)
    images = [_image(sample, names) for sample in samples]
    return View(facts, [image for image in images if image is not None])


def _loader(dataset: Any, batch_size: int, stream: bool, **options: Any) -> Any:
    """Return a loader: one that shuffles, if it can, so that a batch is not all of one class."""
    order: dict[str, Any] = {} if stream else {"shuffle": True, "seed": 0}
    return DataLoader(dataset, batch_size=batch_size, **order, **options)


def _first(dataset: Any, rows: int, stream: bool) -> list[Any]:
    if stream:
        return list(islice(iter(dataset), rows))
    return [dataset[index] for index in range(min(rows, len(dataset)))]


def _batch(loader: Any, size: int) -> dict[str, Any]:
    about: dict[str, Any] = {"size": size}
    try:
        batch = next(iter(loader))
    except CollateError as error:
        about["problem"] = " ".join(str(error).split())
        return about
    about["leaves"] = [_leaf(path, value) for path, value in _leaves("batch", batch)]
    return about


def _leaves(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [leaf for k, v in value.items() for leaf in _leaves(f"{path}[{k!r}]", v)]
    if isinstance(value, (list, tuple)) and not all(isinstance(v, (str, bytes)) for v in value):
        return [leaf for i, v in enumerate(value) for leaf in _leaves(f"{path}[{i}]", v)]
    return [(path, value)]


def _leaf(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, torch.Tensor):
        kind = f"{type(value).__name__} of {type(value[0]).__name__}" if len(value) else "list"
        shortest, longest = min(map(len, value), default=0), max(map(len, value), default=0)
        return {"path": path, "shape": [len(value)], "dtype": kind, "lengths": [shortest, longest]}
    leaf: dict[str, Any] = {"path": path, "shape": list(value.shape)}
    leaf["dtype"] = str(value.dtype).removeprefix("torch.")
    if value.numel() and not value.is_complex():
        numbers = value.double() if value.is_floating_point() else value.long()
        usable = numbers[~numbers.isnan()] if value.is_floating_point() else numbers
        if usable.numel():
            leaf["min"], leaf["max"] = usable.min().item(), usable.max().item()
        if missing := numbers.numel() - usable.numel():
            leaf["nan"] = missing
    return leaf


def _class_counts(dataset: Any) -> dict[str, int] | None:
    """Count the classes of the whole dataset, where it has its targets at hand."""
    targets = getattr(dataset, "targets", None)
    if targets is None:
        return None
    labels = np.asarray(targets)
    if labels.ndim != 1 or labels.dtype.kind not in "iub" or not len(labels):
        return None
    counts = Counter(labels.tolist())
    if len(counts) > _MOST_CLASSES:
        return None
    names = getattr(dataset, "classes", None) or []
    return {_class_name(label, names): counts[label] for label in sorted(counts)}


def _class_name(label: int, names: Sequence[str]) -> str:
    return str(names[label]) if 0 <= label < len(names) else str(label)


def _row(sample: Any, dataset: Any) -> Any:
    """Return a sample as JSON can hold it, its features by their names."""
    names = getattr(dataset, "feature_names", None)
    features, *rest = sample if isinstance(sample, (tuple, list)) and len(sample) else (sample,)
    if names and isinstance(features, (torch.Tensor, np.ndarray)) and len(names) == len(features):
        row = dict(zip(names, _plain(features), strict=True))
        target = getattr(dataset, "target_name", None)
        return {**row, target: _plain(rest[0])} if target and rest else row
    return _plain(sample)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        if value.ndim > 1:
            kind = str(value.dtype).removeprefix("torch.")
            return f"{kind} {tuple(value.shape)}"
        return value.tolist()
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    return f"{len(value):,} bytes" if isinstance(value, bytes) else repr(value)


def _image(sample: Any, names: Sequence[str] | None) -> tuple[object, str] | None:
    """Return the image in a sample as an array (H, W) or (H, W, 3), and its label."""
    parts = sample.values() if isinstance(sample, Mapping) else sample
    parts = list(parts) if isinstance(sample, (Mapping, tuple, list)) else [sample]
    found = next((a for a in map(_pixels, parts) if a is not None), None)
    if found is None:
        return None
    numbers = [p for p in parts if isinstance(p, (int, np.integer)) or _is_whole_scalar(p)]
    return found, _class_name(int(numbers[0]), names or []) if numbers else ""


def _is_whole_scalar(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.ndim and not value.is_floating_point()


def _pixels(value: Any) -> Any:
    """Return what looks like an image, channels last or none; None for everything else."""
    if type(value).__module__.startswith("PIL."):
        value = np.asarray(value)
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "ubf" or value.size == 0:
        return None
    if value.ndim == 2:  # a table, more often than not, where it is not of bytes
        return value if value.dtype == np.uint8 and min(value.shape) >= _LEAST_SIDE else None
    if value.ndim != 3:
        return None
    if value.shape[0] in _CHANNELS and value.shape[2] not in _CHANNELS:
        value = value.transpose(1, 2, 0)
    if value.shape[2] not in _CHANNELS or min(value.shape[:2]) < _LEAST_SIDE:
        return None
    return value[:, :, 0] if value.shape[2] == 1 else value
