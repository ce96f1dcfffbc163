"""A function applied in batches to data that is larger than memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from headrace.apply.arrow import Arrow
from headrace.apply.calls import MOST_ROWS, Calls, RowLimit, evaluating, module_of
from headrace.apply.feed import Feed, feed
from headrace.apply.resume import Note, Notes
from headrace.apply.rows import Column, as_tensor, columns_of, join_rows, rebuild
from headrace.apply.samples import checksum_of_rows, checksum_of_weights
from headrace.apply.sinks import Memory, Npy, Safetensors, Sink
from headrace.data.progress import Progress
from headrace.errors import OptionError, RowMismatchError, StateError
from headrace.locks import Lock, take
from headrace.oom import batch_rows
from headrace.train.devices import device_of
from headrace.tree import leaves
from headrace.written import told

_FILES: dict[str, Callable[[Path], Sink]] = {
    ".npy": Npy,
    ".safetensors": Safetensors,
    ".arrow": Arrow,
}


def map_batches(
    fn: Callable[..., Any],
    data: Any,
    batch_size: int | Literal["auto"] = "auto",
    device: torch.device | str | None = None,
    out: str | os.PathLike[str] | None = None,
    **loader_options: Any,
) -> Any:
    """Apply a function or model to all of ``data`` in batches; results in input order.

    ::

        features = headrace.map_batches(model, images)  # (n, 3, h, w) -> (n, d)
        headrace.map_batches(model, dataset, out="features.npy", num_workers=4)

    The function is called without gradients. A module (or the module that ``fn`` is a method of) is
    in evaluation mode meanwhile. A function is given a batch as the loader collates it; a module
    its inputs: of a pair or dict with targets, what is not the target.

    It must return tensors of shape (rows, ...), one row for each row that it got, or dicts, tuples
    and lists of them. Nothing else is assumed, and results do not depend on how the rows were cut
    (but for the last bits of matrix products, whose order of summation depends on the size).

    With ``out`` results are written as they come, to ``<out>.part``, which takes its name when all
    of them are there; an older file of that name is replaced. A run that was killed goes on where
    the file ends when it is called again: a note beside the file says how far it came, and what it
    was made of. Other columns, rows, lengths, values of the data or weights of a module are
    refused; another function cannot be seen.

    Args:
        fn: a function of a batch of tensors on ``device``, or a module.
        data: an array or tensor of shape (rows, ...), a tuple or dict of them, a dataset, a list or
            another iterable of samples, or a DataLoader that does not shuffle.
        batch_size: rows of a call, at most. ``"auto"``: about 1 MiB of rows in memory (32 to 4,096
            of them), 64 samples of a dataset, the batches of a loader; on a CUDA device it grows to
            half of the free memory. When memory runs out, batches are split in any case, and grow
            again after a while.
        device: where the function runs; None is where the module is, or the tensors. A module is
            moved there and stays.
        out: a ``.npy`` file (one tensor), a ``.safetensors`` or an ``.arrow`` file; None keeps the
            results in memory.
        loader_options: for the DataLoader: ``num_workers=``, ``collate_fn=``, ...

    Returns:
        NumPy arrays where arrays went in, tensors on the CPU otherwise; the path with ``out``.

    Raises:
        RowMismatchError: a result has not one row for each row.
        OptionError: options that cannot be together, or change the order; no such device.
        StateError: ``out`` was begun with something else.
        InUseError: another call writes to ``out``.
        OSError: it cannot be written: the disk is full, the directory read-only.
        MemoryError: a single row does not fit.
    """
    if not callable(fn):
        raise TypeError(
            f"fn is a {type(fn).__name__}, not a function or module. Write map_batches(fn, data)."
        )
    module = module_of(fn)
    place = _device(device, module, data)
    if module is not None and device is not None:
        module.to(place)
    source = feed(data, batch_size, place.type == "cuda", loader_options)
    limit = _limit(source, batch_size, place)
    calls = Calls(fn, place, limit)
    with evaluating(module):
        if out is None:
            run = _Run(source, calls, Memory(source.length, source.arrays), None)
            columns = run.through()
            return rebuild(run.like, columns)
        path = Path(out)
        if path.suffix not in _FILES:
            raise OptionError(
                f"out={os.fspath(out)!r} does not end in {', '.join(_FILES)}. "
                f"Write out='{path.stem}.npy'."
            )
        there = path.absolute()  # the same one if the function changes the directory
        with _held(there):
            run = _Run(source, calls, _FILES[path.suffix](there), Notes(there))
            run.made_of(module, data)
            run.through()
        return path


def _held(out: Path) -> Lock:
    """Be the one call, of all programs, that writes to a file."""
    with told(out, "this is where the results are to be written"):
        out.parent.mkdir(parents=True, exist_ok=True)
        return take(
            out.with_name(f"{out.name}.part.lock"),
            os.fspath(out),
            f"Wait for its end, or write out='{out.with_stem(f'{out.stem}-2')}'.",
        )


def _device(device: Any, module: torch.nn.Module | None, data: Any) -> torch.device:
    if device is not None:
        return device_of(device, "map_batches")
    owned = [] if module is None else [*module.parameters(), *module.buffers()]
    in_memory = leaves(data) if isinstance(data, (torch.Tensor, Mapping, tuple)) else []
    found = owned or [leaf for leaf in in_memory if isinstance(leaf, torch.Tensor)]
    return found[0].device if found else torch.device("cpu")


def _limit(source: Feed, batch_size: int | str, device: torch.device) -> RowLimit:
    if batch_size == "auto" and device.type == "cuda" and source.batch_size is not None:
        return RowLimit(source.batch_size, MOST_ROWS)
    rows = source.batch_size or 1 << 62  # the batches of a user's loader, whole
    return RowLimit(rows, rows)


class _Run:
    """One way through the data."""

    def __init__(self, source: Feed, calls: Calls, sink: Sink, notes: Notes | None) -> None:
        self._source, self._calls, self._sink, self._notes = source, calls, sink, notes
        self._note = Note([], source.length, source.rows_look_like)
        self._begun = False
        self.like: Any = None

    def made_of(self, module: torch.nn.Module | None, data: Any) -> None:
        """Note what tells weights and data from others."""
        self._note.weights = checksum_of_weights(module)
        if self._source.rows_look_like is not None:
            self._note.values = checksum_of_rows(data)

    def through(self) -> Any:
        """Call the function on all rows, and return what the sink makes of them."""
        name = f"applying {self._calls.name}"
        with self._closed_sink(), Progress(name, self._source.length, "rows") as progress:
            self._resume()
            progress.advance(self._note.rows)
            for batch, count, more in self._groups():
                for rows, result in self._calls.on(batch):
                    self._write(result)
                    progress.advance(rows)
                self._note.batches += count
                if more and self._notes is not None and self._notes.is_due():
                    self._commit(self._notes)
            if not self._begun:
                self._nothing()
            with self._told():
                result = self._sink.finish()
        if self._notes is not None:
            self._notes.remove()
        return result

    @contextmanager
    def _closed_sink(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._told():  # what was not yet written is, where there is room
                self._sink.close()

    def _told(self) -> AbstractContextManager[None]:
        if self._notes is None:
            return nullcontext()
        return told(self._notes.part, self._notes.noted)

    def _resume(self) -> None:
        """Go on behind the rows of an earlier run."""
        before = None if self._notes is None else self._notes.read()
        if before is None or self._notes is None:
            return
        self._notes.check("the number of rows", before.length, self._note.length)
        self._notes.check("the input", before.rows_look_like, self._note.rows_look_like)
        for name, saw, sees in (
            ("of the weights", before.weights, self._note.weights),
            ("of the input's values", before.values, self._note.values),
        ):
            if saw is not None and sees is not None:
                self._notes.check(f"the checksum {name}", saw, sees)
        if before.loader is not None:
            try:
                self._source.loader.load_state_dict(before.loader)  # type: ignore[attr-defined]
            except StateError as error:
                raise self._notes.refused(str(error)) from error
        self._note = before
        self._begin(before.columns)

    def _groups(self) -> Iterator[tuple[Any, int, bool]]:
        """Yield as many batches at once as the limit of rows has grown to.

        With them comes their number, and whether the loader still stands behind them: asked for
        more at its end, it stands at the beginning of its next epoch.
        """
        batches: Iterator[Any] = iter(self._source.loader)
        if self._note.loader is None:
            batches = islice(batches, self._note.batches, None)
        size = self._source.batch_size
        more = True
        while more:
            wanted = 1 if size is None else max(1, self._calls.limit.rows // size)
            group = list(islice(batches, wanted))
            more = len(group) == wanted
            if _joins(group):
                yield join_rows(group), len(group), more
            else:
                for place, batch in enumerate(group, 1):
                    yield batch, 1, more and place == len(group)

    def _write(self, result: Any) -> None:
        columns = columns_of(result)
        if not self._begun:
            self._begin(columns)
        elif columns != self._note.columns:
            self._refuse(columns)
        if self.like is None:
            self.like = rebuild(result, [None] * len(columns))
        parts = [as_tensor(leaf) for leaf in leaves(result)]
        with self._told():
            self._sink.write(parts)
        self._note.rows += len(parts[0])

    def _begin(self, columns: list[Column]) -> None:
        self._begun = True
        self._note.columns = columns
        with self._told():
            self._sink.begin(columns, self._note.rows)

    def _refuse(self, columns: list[Column]) -> None:
        before, now = ("; ".join(map(str, c)) for c in (self._note.columns, columns))
        if self.like is None and self._notes is not None:  # the first result after resuming
            self._notes.check("the result", self._note.columns, columns)
        raise RowMismatchError(
            f"{self._calls.name} returned rows of another kind after {self._note.rows:,} rows: "
            f"{now}, and {before} before. Bring the rows to one shape and type: pad them to a "
            f"length that holds for all batches."
        )

    def _commit(self, notes: Notes) -> None:
        if hasattr(self._source.loader, "state_dict"):
            self._note.loader = self._source.loader.state_dict()
        with self._told():
            self._sink.flush()
            notes.write(self._note)

    def _nothing(self) -> None:
        """Find what the result of no rows looks like."""
        if self._source.empty is None:
            raise RowMismatchError(
                f"there is no row to apply {self._calls.name} to, so it is not known what its "
                f"result looks like. Give it data, or an empty array."
            )
        for _, result in self._calls.on(self._source.empty):
            self._write(result)


def _joins(group: list[Any]) -> bool:
    """Say whether several batches are tensors only, whose rows can stand behind each other."""
    if len(group) < 2:
        return False
    found = [leaves(batch) for batch in group]
    shapes = [[getattr(leaf, "shape", ())[1:] for leaf in batch] for batch in found]
    plain = all(isinstance(leaf, torch.Tensor) and leaf.ndim for batch in found for leaf in batch)
    return plain and all(s == shapes[0] for s in shapes) and all(map(batch_rows, group))
