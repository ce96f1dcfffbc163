"""Samples without NumPy, to compare them with what pyarrow says."""

from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """A sample's value without NumPy."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else value
