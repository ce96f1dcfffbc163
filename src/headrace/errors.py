"""What can go wrong, each cause a class that derives from the builtin a user would catch.

::

    HeadraceError
    ├── CollateError                    samples that make no batch; names key path and indices
    │   ├── ShapeMismatchError          (RuntimeError)
    │   ├── MissingKeyError             (KeyError)
    │   └── NotCollatableError          (TypeError)
    │       ├── MixedKindsError         (RuntimeError) samples of several kinds, or None
    │       └── HugeIntegerError        (RuntimeError) an integer that 64 bits do not hold
    ├── SampleIndexError                (IndexError)   an index outside the dataset
    ├── ArrayMismatchError              (ValueError)   arrays of different lengths
    ├── ArrayTypeError                  (TypeError)    arrays that no tensor can hold
    ├── RowMismatchError                (ValueError)   a function that gives other rows than it got
    ├── TruncatedFileError              (OSError)      a file shorter than its memory map
    ├── DatasetStoppedError             (RuntimeError) StopIteration from a map-style dataset
    ├── TooManySkippedError             (RuntimeError) more samples raised than max_errors= allows
    ├── OptionError                     (ValueError)   a loader option that cannot be
    │   └── OptionTypeError             (TypeError)    one of a type that it cannot have
    ├── StateError                      (ValueError)   a state that does not fit the loader
    ├── InUseError                      (RuntimeError) a place that another program writes to
    ├── WorkerDiedError                 (RuntimeError) a worker process is gone for good
    ├── WorkerTimeoutError              (RuntimeError) no batch within ``timeout=``
    ├── WorkerStartError                (RuntimeError) a worker could not be started
    ├── SourceError                     (ValueError)   a file that is not what it should be
    ├── SourceChangedError              (RuntimeError) a file that changed while it was read
    ├── MissingColumnError              (KeyError)     a column that a table does not have
    ├── MissingExtraError               (ImportError)  a library that an extra brings
    ├── OutOfMemoryError                (RuntimeError) a step too large for the memory
    └── TrainingError                   (RuntimeError) a training that cannot be right

    SourceWarning                       (UserWarning)  data that may not be what was meant
    TrainingWarning                     (UserWarning)  a training that may not be what was meant
"""

from __future__ import annotations

from collections.abc import Hashable

import torch


class HeadraceError(Exception):
    """Base of every error that headrace raises on its own account."""


class CollateError(HeadraceError):
    """Samples that cannot become one batch.

    ``positions`` are places in the batch; the fetch that knows them fills in ``indices``,
    the places in the dataset. ``path`` is the way to the leaf, outermost key first.
    """

    def __init__(self, problem: str, wanted: str = "", positions: tuple[int, ...] = ()) -> None:
        super().__init__(problem)
        self.problem = problem
        self.wanted = wanted
        self.positions = positions
        self.path: tuple[Hashable, ...] = ()
        self.indices: tuple[object, ...] = ()

    def __str__(self) -> str:
        if not self.wanted:
            return self.problem  # rebuilt from a worker: the text is whole already
        where = f" at {format_path(self.path)}" if self.path else ""
        if self.indices:
            which = " and ".join(repr(i) for i in self.indices)
            where += f" (dataset {'index' if len(self.indices) == 1 else 'indices'} {which})"
        return f"{self.problem}{where}. {self.wanted}"


class ShapeMismatchError(CollateError, RuntimeError):
    """Two samples whose shapes do not stack."""


class MissingKeyError(CollateError, KeyError):
    """A key that some samples of a batch have and others have not."""

    __str__ = CollateError.__str__


class NotCollatableError(CollateError, TypeError):
    """A sample of a type that the default collation does not know."""


class MixedKindsError(NotCollatableError, RuntimeError):
    """Samples that cannot be stacked as one is a tensor, say, and another None.

    torch's own error is a TypeError for some kinds and a RuntimeError for others.
    """


class HugeIntegerError(NotCollatableError, RuntimeError, ValueError, OverflowError):
    """An integer that 64 bits do not hold.

    torch's own error is any of the last three, by its version and the other samples.
    """


class SampleIndexError(HeadraceError, IndexError):
    """An index that the dataset does not have."""


class ArrayMismatchError(HeadraceError, ValueError):
    """Arrays of one dataset that have different lengths."""


class ArrayTypeError(HeadraceError, TypeError):
    """An array whose elements no tensor can hold."""


class RowMismatchError(HeadraceError, ValueError):
    """A function whose results do not have one row for each row that it was given."""


class TruncatedFileError(HeadraceError, OSError):
    """A memory-mapped file that became shorter than its map."""


class DatasetStoppedError(HeadraceError, RuntimeError):
    """``StopIteration`` out of a map-style dataset's ``__getitem__``."""


class TooManySkippedError(HeadraceError, RuntimeError):
    """More samples raised in an epoch than ``max_errors=`` allows to be skipped."""


class OptionError(HeadraceError, ValueError):
    """An option of the loader that cannot be, alone or with the others."""


class OptionTypeError(TypeError, OptionError):
    """An option of a type that it cannot have: a TypeError, as in torch."""


class StateError(HeadraceError, ValueError):
    """A saved state that does not fit the loader it is given to."""


class InUseError(HeadraceError, RuntimeError):
    """A folder or file that another program, or another part of this one, is writing to."""


class WorkerDiedError(HeadraceError, RuntimeError):
    """A worker process died and could not be replaced."""


class WorkerTimeoutError(HeadraceError, RuntimeError):
    """A batch took longer than ``timeout=``."""


class WorkerStartError(HeadraceError, RuntimeError):
    """A worker process could not be started."""


class SourceError(HeadraceError, ValueError):
    """A file of data that is not what it should be; the text names file, line or row."""


class SourceChangedError(HeadraceError, RuntimeError):
    """A file of data that changed after it was opened or indexed."""


class MissingColumnError(HeadraceError, KeyError):
    """A column that a table does not have; the text names those that it has."""

    __str__ = Exception.__str__


class MissingExtraError(HeadraceError, ImportError):
    """A library that is not installed, and that an extra of headrace brings."""


class OutOfMemoryError(HeadraceError, torch.OutOfMemoryError):
    """A step that needs more memory than there is; the text names a batch size that fits."""


class TrainingError(HeadraceError, RuntimeError):
    """A training that cannot be right as it is set up, or that went wrong."""


class SourceWarning(UserWarning):
    """Data that may not be what was meant; the text names file and column, and what to write."""


class TrainingWarning(UserWarning):
    """A training that may not be what was meant; the text says what to write."""


def format_path(path: tuple[Hashable, ...]) -> str:
    """Write a key path as Python would index it: ``['image'][0]``."""
    return "sample" + "".join(f"[{key!r}]" for key in path)
