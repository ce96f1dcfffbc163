"""Functions that spawned workers import: a module of its own, as a test's imports take seconds."""

from typing import Any


def first_feature(sample: Any) -> Any:
    return sample[0][0]


def text_and_number(row: Any) -> Any:
    return row["s"], row["i"]
