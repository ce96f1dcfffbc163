"""The folders that a fit writes to, each held by one program at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from headrace.errors import InUseError, OptionError
from headrace.extras import import_extra
from headrace.locks import Lock, take
from headrace.train.checkpoint import Checkpoints
from headrace.train.ranks import Ranks

_LOG_LOCK = "log.lock"  # another name than the checkpoints': both may lie in one folder


@contextmanager
def held(ranks: Ranks, checkpoints: Checkpoints | None, logs: Path | None) -> Iterator[None]:
    """Be the one program that writes to these folders: rank 0 is, for all ranks.

    Raises:
        InUseError: another one does; on every rank.
        OSError: a folder cannot be made, or not be written to; a TrainingError on other ranks.
    """
    problem: Exception | None = None
    with ExitStack() as folders:
        if ranks.rank == 0:
            try:
                if checkpoints is not None:
                    folders.enter_context(checkpoints.held())
                if logs is not None:
                    folders.enter_context(_held_logs(logs))
            except (InUseError, OSError) as error:
                problem = error
        if checkpoints is not None or logs is not None:
            ranks.raise_together(problem)  # AGREE
        yield


def logger_of(logger: Any) -> tuple[Any, Path | None]:
    """Return a logger, and its folder where it is ours to hold.

    Raises:
        OptionError: it is neither a folder nor a logger.
    """
    if isinstance(logger, (str, os.PathLike)):
        loggers = import_extra("lightning_fabric.loggers", "train")
        folder = Path(os.path.abspath(logger))
        return loggers.TensorBoardLogger(root_dir=folder, name="", version=""), folder
    if logger is not None and not hasattr(logger, "log_metrics"):
        raise OptionError(
            f"logger={logger!r} is neither a folder nor one of Lightning Fabric's loggers. Write "
            f"Trainer(..., logger='runs/first') for TensorBoard."
        )
    return logger, None


@contextmanager
def logs_saved(logger: Any) -> Iterator[None]:
    """Have one of Lightning's loggers write, at the end, what it has kept: for CSV up to 100 rows.

    Within `held` only: saving opens files, where another program may be writing.
    """
    try:
        yield
    finally:
        if hasattr(logger, "save") and hasattr(logger, "finalize"):
            logger.save()


def _held_logs(folder: Path) -> Lock:
    folder.mkdir(parents=True, exist_ok=True)
    return take(
        folder / _LOG_LOCK,
        f"the TensorBoard folder {folder}",
        f"Wait for its end, or write Trainer(..., logger='{folder}-2').",
    )
