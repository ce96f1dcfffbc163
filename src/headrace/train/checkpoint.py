"""Checkpoints on disk: a folder each, that is there whole or not at all.

::

    checkpoints/
    └── step-00001200-epoch-003/
        ├── model.safetensors    the model's state dict, for any program that reads safetensors
        ├── state.safetensors    the tensors of everything else: optimizer, random states
        ├── state.json           all that is not a tensor
        └── checksums.json       of the three others

A checkpoint is written under another name, flushed to the disk and renamed: who is killed at any
moment leaves the one before. One whose checksums do not fit is passed over.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch

from headrace.errors import StateError
from headrace.extras import import_extra
from headrace.train.storable import TensorStore, decode, encode

_VERSION = 1
_NAME = re.compile(r"step-(\d+)-epoch-(\d+)")
_UNFINISHED = ".unfinished-"
_FILES = ("model.safetensors", "state.safetensors", "state.json")


class Checkpoints:
    """The checkpoints of one training run in one folder, the last ``keep`` of them.

    Args:
        folder: made if it is not there.
        keep: how many to keep.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int) -> None:
        self.folder = Path(folder)
        self._keep = keep

    def names(self) -> list[str]:
        """Return the names of the checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [(m, m.string) for p in self.folder.iterdir() if (m := _NAME.fullmatch(p.name))]
        return [name for _, name in sorted(((int(m[1]), int(m[2])), name) for m, name in found)]

    def newest(self) -> str | None:
        """Return the name of the newest checkpoint that is whole; warn of those that are not."""
        for name in reversed(self.names()):
            problem = damage(self.folder / name)
            if problem is None:
                return name
            warnings.warn(
                f"the checkpoint {self.folder / name} is damaged ({problem}) and is passed over.",
                stacklevel=2,
            )
        return None

    def save(
        self, step: int, epoch: int, model: dict[str, Any], state: dict[str, Any]
    ) -> Path | None:
        """Write a checkpoint and forget those that are too old.

        Args:
            step: steps of the optimizer so far.
            epoch: epochs done.
            model: the model's state dict.
            state: everything else, nested.

        Returns:
            where it lies; None if it was there already.

        Raises:
            StateError: something that a checkpoint has no form for.
        """
        name = f"step-{step:08d}-epoch-{epoch:03d}"
        path = self.folder / name
        if path.exists():
            if damage(path) is None:
                return None  # resuming came to the same place, with the same values
            self._remove(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / f"{_UNFINISHED}{os.getpid()}-{name}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        _write(new, model, state)
        os.replace(new, path)
        _flush(self.folder)
        names = self.names()
        place = names.index(name) + 1
        for old in names[: max(0, place - self._keep)] + names[place:]:  # newer ones are damaged
            self._remove(self.folder / old)
        return path

    def clean(self) -> None:
        """Remove what killed processes left unfinished."""
        if self.folder.is_dir():
            for path in self.folder.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(path, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        # Renamed first: killed while it removes the files, it leaves nothing that looks damaged.
        doomed = path.with_name(f"{_UNFINISHED}{os.getpid()}-old-{path.name}")
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def step_of(name: str) -> int:
    """Return the steps of the optimizer before the checkpoint of that name."""
    found = _NAME.fullmatch(name)
    assert found is not None
    return int(found[1])


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the model's state dict and the rest of a checkpoint.

    Raises:
        StateError: it is damaged, or of a newer headrace.
    """
    problem = damage(path)
    if problem is not None:
        raise StateError(f"the checkpoint {path} is damaged: {problem}.")
    safetensors = import_extra("safetensors.torch", "train")
    document = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if document["version"] > _VERSION:
        raise StateError(
            f"the checkpoint {path} has version {document['version']}, and this headrace reads up "
            f"to {_VERSION}. Update headrace to the version that wrote it."
        )
    weights = safetensors.load_file(path / "model.safetensors")
    model = {name: decode(value, weights) for name, value in document["model"].items()}
    state = decode(document["state"], safetensors.load_file(path / "state.safetensors"))
    return model, state


def damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint's files; None if they are as they were written."""
    try:
        wanted = json.loads((path / "checksums.json").read_text(encoding="utf-8"))
        for name in _FILES:
            if wanted[name] != _checksum(path / name):
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return "checksums.json is not what was written"
    return None


def _write(folder: Path, model: dict[str, Any], state: dict[str, Any]) -> None:
    safetensors = import_extra("safetensors.torch", "train")
    weights, rest = TensorStore(), TensorStore()
    document = {
        "format": "headrace checkpoint",
        "version": _VERSION,
        "torch": str(torch.__version__),
        "model": {name: encode(value, weights, name) for name, value in model.items()},
        "state": encode(state, rest, "state"),
    }
    text = json.dumps(document, allow_nan=False)
    safetensors.save_file(weights.tensors, folder / "model.safetensors")
    safetensors.save_file(rest.tensors, folder / "state.safetensors")
    (folder / "state.json").write_text(text, encoding="utf-8")
    sums = {name: _checksum(folder / name) for name in _FILES}
    (folder / "checksums.json").write_text(json.dumps(sums), encoding="utf-8")
    for name in (*_FILES, "checksums.json"):
        _flush(folder / name)
    _flush(folder)


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total = zlib.crc32(chunk, total)
    return total


def _flush(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
