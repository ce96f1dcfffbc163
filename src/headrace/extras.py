"""Libraries that only some users need: imported when used, with an error that names the extra."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from headrace.errors import MissingExtraError


def import_extra(module: str, extra: str) -> Any:
    """Import ``module`` ("pyarrow.parquet"), which ``pip install "headrace[extra]"`` brings.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module if module.startswith("backports.") else module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # installed, and something that it needs is not: its own message says more
        raise MissingExtraError(
            f'{package} is not installed. Write: pip install "headrace[{extra}]"', name=package
        ) from None


def data_frame(columns: dict[str, list[Any]]) -> Any:
    """Return columns as a data frame: pandas' where that is installed, else polars'.

    Raises:
        MissingExtraError: neither is installed.
    """
    try:
        return import_extra("pandas", "tables").DataFrame(columns)
    except MissingExtraError:
        pass
    try:
        return import_extra("polars", "tables").DataFrame(columns)
    except MissingExtraError:
        raise MissingExtraError(
            "to_frame() makes a pandas or polars data frame, and neither is installed. Write: "
            'pip install pandas, or pip install "headrace[tables]" for polars.',
            name="pandas",
        ) from None
