"""The columns of a CSV file: what each is taken for, its range, and what is doubted about it."""

from typing import Any

import numpy as np

from headrace.data import CSVDataset


def of_columns(dataset: Any) -> dict[str, Any]:
    """Return what can be said of each column over all rows; nothing of another dataset."""
    if not isinstance(dataset, CSVDataset):
        return {}
    columns = [
        _column(dataset, name, dataset.features[:, place], "feature")
        for place, name in enumerate(dataset.feature_names)
    ]
    if dataset.targets is not None:
        columns.append(_column(dataset, dataset.target_name or "", dataset.targets, "target"))
    texts = {name: list(texts) for name, texts in dataset.categories.items()}
    return {
        "columns": columns,
        "categories": {name: texts[name] for name in dataset.feature_names if name in texts},
        "missing": {c["name"]: c["missing"] for c in columns if c["missing"]},
        "doubts": [doubt._asdict() for doubt in dataset.doubts],
    }


def _column(dataset: CSVDataset, name: str, values: Any, role: str) -> dict[str, Any]:
    """Return a column's name, role, kind, range or categories, and how many are missing."""
    about: dict[str, Any] = {"name": name, "role": role, "kind": dataset.kinds[name]}
    if name in dataset.categories:
        about["missing"] = int((values == -1).sum())
        about["categories"] = len(dataset.categories[name])
        return about
    absent = np.isnan(values)
    about["missing"] = int(absent.sum())
    there = values[~absent] if about["missing"] else values
    if len(there):
        about["min"], about["max"] = there.min().item(), there.max().item()
    return about
