"""Checkpoints on disk: a folder each, that is there whole or not at all.

::

    checkpoints/
    ├── best -> step-00000800-epoch-002    where the best are kept
    └── step-00001200-epoch-003/
        ├── model.safetensors    the model's state dict, for any program that reads safetensors
        ├── state.safetensors    the tensors of everything else: optimizer, random states
        ├── state.json           all that is not a tensor
        └── checksums.json       of the three others, which run wrote them, values of the epoch

A checkpoint is written under another name, flushed to the disk and renamed: who is killed at any
moment leaves the one before. One whose checksums do not fit is passed over.

One program at a time writes to a folder (``writer.lock``, see `headrace.locks`). A run has an
identity, which goes on where it is resumed. It removes its own checkpoints only, and none but
damaged ones may lie before it: so one that is behind, whatever became of its lock, does no harm.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from headrace.errors import InUseError, StateError
from headrace.extras import import_extra
from headrace.locks import Lock, take
from headrace.train.best import Best
from headrace.train.storable import TensorStore, decode, encode
from headrace.written import told

_VERSION = 1
_NAME = re.compile(r"step-(\d+)-epoch-(\d+)")
_UNFINISHED = ".unfinished-"
_FILES = ("model.safetensors", "state.safetensors", "state.json")
BEST = "best"  # a link to the best checkpoint
LOCK = "writer.lock"  # in every folder that a training writes to


class Checkpoints:
    """The checkpoints in one folder, of which one run writes some.

    Args:
        folder: made if it is not there.
        keep: how many of the run to keep.
        best: how many more, by a metric.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int, best: Best | None = None) -> None:
        self.folder = Path(os.path.abspath(folder))  # the same one if the program changes directory
        self.run = os.urandom(8).hex()
        self._keep = keep
        self._best = best
        self._lock: Lock | None = None

    def names(self) -> list[str]:
        """Return the names of the checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [p.name for p in self.folder.iterdir() if _NAME.fullmatch(p.name)]
        return sorted(found, key=_place_of)

    def newest(self) -> str | None:
        """Return the name of the newest checkpoint that is whole; warn of those that are not."""
        for name in reversed(self.names()):
            problem = damage(self.folder / name)
            if problem is None:
                return name
            if not (self.folder / name).exists():
                return self.newest()  # another program has just written one and removed this
            warnings.warn(
                f"the checkpoint {self.folder / name} is damaged ({problem}) and is passed over.",
                stacklevel=2,
            )
        return None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the one program that writes to the folder, for as long as the block lasts.

        Raises:
            InUseError: another one does.
            OSError: the folder cannot be made, or not be written to.
        """
        if self._lock is not None:
            if not self._lock.is_held():
                self._take_again(self._lock)
            yield
            return
        self._lock = self._take()
        try:
            yield
        finally:
            lock, self._lock = self._lock, None
            lock.release()

    def _take(self) -> Lock:
        with told(self.folder, lambda: f"checkpoints are to be written here; {self._whole()}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            return take(
                self.folder / LOCK,
                f"the checkpoint folder {self.folder}",
                f"Wait for its end, or write fit(..., checkpoint_dir='{self.folder}-2').",
            )

    def _take_again(self, lost: Lock) -> None:
        """Hold a folder again that was removed or taken meanwhile, if nobody else holds it."""
        other = lost.lost_to()
        if other is not None:
            raise InUseError(
                f"the checkpoint folder {self.folder} was taken over by {other} while this program "
                f"was stopped or cut off. It goes on there; end this one."
            )
        lost.release()
        self._lock = self._take()

    def begin(self) -> str | None:
        """Clean up, and return the newest whole checkpoint: who goes on from it is its run."""
        self.clean()
        name = self.newest()
        if name is not None:
            self.run = run_of(self.folder / name) or self.run
        return name

    def save(
        self,
        step: int,
        epoch: int,
        model: dict[str, Any],
        state: dict[str, Any],
        values: Mapping[str, float] | None = None,
    ) -> Path:
        """Write a checkpoint and forget those of this run that are too old.

        Args:
            step: steps of the optimizer so far.
            epoch: epochs done.
            model: the model's state dict.
            state: everything else, nested.
            values: of the epoch that has just ended.

        Returns:
            where it lies.

        Raises:
            StateError: something that a checkpoint has no form for; or the folder holds this step
                already, or a later one.
            InUseError: another program writes to the folder.
            OSError: the disk is full, or the folder cannot be written to.
        """
        name = f"step-{step:08d}-epoch-{epoch:03d}"
        with self.held():
            damaged = self._not_before(name)
            path, new = self.folder / name, self._unfinished(name)
            try:
                with told(path, lambda: f"the checkpoint was not written; {self._whole()}"):
                    new.mkdir()
                    _write(new, model, state, {"run": self.run, "values": _finite(values or {})})
                    for other in damaged:  # put aside: nobody knows whose they are
                        aside = f"damaged-{os.urandom(4).hex()}-{other.name}"
                        os.replace(other, self.folder / aside)
                    os.replace(new, path)
                    _flush(self.folder)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
            with told(path, lambda: f"older ones could not be removed; {self._whole()}"):
                self.forget_before(name)
        return path

    def forget_before(self, name: str) -> None:
        """Remove the run's checkpoints that are too old, counted back from one that is whole."""
        own = [other for other in self._own() if _place_of(other) <= _place_of(name)]
        best = self._best.of(self._values(own)) if self._best is not None else []
        if best:
            self._point_to(best[0])
        for old in own[: -self._keep]:
            if old not in best:
                self._remove(self.folder / old)

    def is_best(self, values: Mapping[str, float]) -> bool:
        """Say whether an epoch of these values belongs to the best of the run."""
        if self._best is None:
            return False
        return "now" in self._best.of({**self._values(self._own()), "now": _finite(values)})

    def _values(self, names: Iterable[str]) -> dict[str, dict[str, float]]:
        return {name: values_of(self.folder / name) for name in names}

    def _point_to(self, name: str) -> None:
        """Have the link ``best`` lead to a checkpoint; leave alone what is no such link."""
        link = self.folder / BEST
        if os.path.lexists(link) and not _is_ours(link):
            return
        new = self.folder / f"{_UNFINISHED}{os.urandom(4).hex()}-{BEST}"
        with suppress(OSError):  # a file system without links has the checkpoints themselves
            new.symlink_to(name, target_is_directory=True)
            os.replace(new, link)

    def _not_before(self, name: str) -> list[Path]:
        """Return the damaged checkpoints that do not come before one.

        Raises:
            StateError: there is one that is whole.
        """
        found = []
        for other in reversed(self.names()):
            path = self.folder / other
            ours = run_of(path) == self.run
            if _place_of(other) < (_place_of(name) if ours else (step_of(name), 0)):
                continue
            if damage(path) is not None:
                found.append(path)
                continue
            raise StateError(
                f"{self.folder} holds {other}, written by "
                f"{'another program that went on with this run' if ours else 'another run'}, and "
                f"this one is at {name}: nothing was written. Go on from there with "
                f"fit(..., resume='auto'), or write fit(..., checkpoint_dir='{self.folder}-2')."
            )
        return found

    def _own(self) -> list[str]:
        return [name for name in self.names() if run_of(self.folder / name) == self.run]

    def _whole(self) -> str:
        """Say which checkpoint there is to go on from."""
        whole = []
        with suppress(OSError):
            whole = [name for name in self.names() if damage(self.folder / name) is None]
        text = "Make room, or let the folder be written to, and start the program again"
        if not whole:
            return f"there is no whole one. {text}"
        return f"the newest whole one is {whole[-1]}. {text}: it goes on from there"

    def clean(self) -> None:
        """Remove what killed processes left unfinished; nothing where another program writes."""
        if not self.folder.is_dir() or not any(self.folder.glob(f"{_UNFINISHED}*")):
            return
        try:
            with self.held():
                for path in self.folder.glob(f"{_UNFINISHED}*"):
                    if path.is_symlink():
                        path.unlink()
                    shutil.rmtree(path, ignore_errors=True)
        except InUseError:
            return  # they may be of a program that lives

    def _unfinished(self, name: str) -> Path:
        return self.folder / f"{_UNFINISHED}{os.urandom(4).hex()}-{name}"

    def _remove(self, path: Path) -> None:
        # Renamed first: killed while it removes the files, it leaves nothing that looks damaged.
        link = self.folder / BEST
        if _is_ours(link) and os.readlink(link) == path.name:
            link.unlink()
        doomed = self._unfinished(path.name)
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _is_ours(link: Path) -> bool:
    return link.is_symlink() and _NAME.fullmatch(os.readlink(link)) is not None


def run_of(path: Path) -> str | None:
    """Return the identity of the run that wrote a checkpoint; None where it does not say."""
    found = _noted(path, "run")
    return found if isinstance(found, str) else None


def values_of(path: Path) -> dict[str, float]:
    """Return the values of the epoch behind which a checkpoint was written, where it was."""
    found = _noted(path, "values")
    return _finite(found) if isinstance(found, dict) else {}


def _noted(path: Path, what: str) -> Any:
    try:
        return json.loads((path / "checksums.json").read_text(encoding="utf-8"))[what]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Return what of an epoch's values is a number, as callbacks and files may hold anything."""
    found = {}
    for name, value in values.items():
        with suppress(TypeError, ValueError):
            if math.isfinite(number := float(value)):
                found[name] = number
    return found


def _place_of(name: str) -> tuple[int, int]:
    found = _NAME.fullmatch(name)
    assert found is not None
    return int(found[1]), int(found[2])


def step_of(name: str) -> int:
    """Return the steps of the optimizer before the checkpoint of that name."""
    return _place_of(name)[0]


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


def _write(
    folder: Path, model: dict[str, Any], state: dict[str, Any], notes: dict[str, Any]
) -> None:
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
    sums = {**notes, **{name: _checksum(folder / name) for name in _FILES}}
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
