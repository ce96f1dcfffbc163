"""From what was typed to a dataset."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from headrace import data
from headrace.cli.peek.doubts import doubts_of_images
from headrace.cli.problems import CannotGoOn, WrongUse
from headrace.data.images.survey import survey
from headrace.data.sql.address import address_of, is_database
from headrace.data.sql.statements import quoted
from headrace.data.stores.remote import Stores, is_remote
from headrace.errors import (
    HeadraceError,
    MissingColumnError,
    MissingExtraError,
    OptionError,
    SourceError,
)

_LOOKED_AT = 10_000  # entries of a directory, to find what is in it
_BLOCK = 128  # tokens in a sample that is shown
_NAMED = 10  # tables of a database
_DATABASES = (".db", ".sqlite", ".sqlite3", ".duckdb")
_OF_ALL = (
    "SELECT table_name AS name FROM information_schema.tables WHERE table_schema NOT IN "
    "('information_schema', 'pg_catalog') ORDER BY 1"
)
_TABLES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY 1",
    "duckdb": _OF_ALL,
    "postgresql": _OF_ALL,
}

_KINDS = (
    ".csv, .tsv (these two also .gz, .zst, .bz2, .xz), .parquet, .npy, .npz, .safetensors, .tar, "
    ".bin and .idx (a corpus of tokens), "
    ".txt, .jsonl (these two also .gz and .zst), "
    "a directory of Parquet files, of tar or MDS shards, of one directory of images for each "
    "class, or with MNIST or CIFAR in it, an address (s3://bucket/train), a database with --query, "
    "or module:callable"
)


@dataclass(frozen=True)
class Asked:
    """What was typed: a source, the column to predict, and of a database a query and its key."""

    source: str
    target: str | None = None
    query: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Opened:
    """A dataset, and what keeps a loader from reading it as it is, if anything does.

    ``options`` are those with which it was opened all the same; ``doubts`` are what was found that
    a loader would not stop at. ``shown`` is what to call it, where that is not what was typed.
    """

    dataset: Any
    problem: str | None = None
    options: str = ""
    doubts: Sequence[str] = ()
    shown: str = ""


def _emnist(root: str) -> Any:
    """Return the first split of EMNIST that is there."""
    raw, splits = Path(root, "EMNIST", "raw"), data.EMNIST.splits
    there = [split for split in splits if [*raw.glob(f"emnist-{split}-train-images*")]]
    return data.EMNIST(root, (there or splits)[0])


_IN_DIRECTORIES: dict[str, Callable[..., Any]] = {
    "MNIST": data.MNIST,
    "FashionMNIST": data.FashionMNIST,
    "KMNIST": data.KMNIST,
    "EMNIST": _emnist,
    "cifar-10-batches-py": data.CIFAR10,
    "cifar-10-batches-bin": data.CIFAR10,
    "cifar-100-python": data.CIFAR100,
    "cifar-100-binary": data.CIFAR100,
}


def open_source(asked: Asked) -> Opened:
    """Open the dataset of a path or of ``module:callable``; a table's missing values become NaN.

    Raises:
        WrongUse: there is no such thing, or nothing is known of its kind.
        CannotGoOn: it is there and cannot be opened.
    """
    source, target = asked.source, asked.target
    module, colon, name = source.partition(":")
    if is_database(source) or asked.query is not None or source.lower().endswith(_DATABASES):
        opener: Callable[[], Any] = partial(_of_database, asked)
    elif "://" in source and not is_remote(source):
        raise WrongUse(f"{source.partition('://')[0]}:// is of no kind that is known: {_KINDS}")
    elif asked.key is not None:
        raise WrongUse("--key is a column of --query, for databases")
    elif is_remote(source):
        opener = partial(_of_address, source)
    elif colon and not os.path.exists(source) and module.replace(".", "").isidentifier():
        opener = _of_module(module, name)
    else:
        opener = _of_path(source, target)
    try:
        opened = opener()
        return opened if isinstance(opened, Opened) else Opened(opened)
    except (MissingColumnError, MissingExtraError, OptionError) as error:
        raise WrongUse(str(error)) from error
    except (HeadraceError, OSError) as error:
        raise CannotGoOn(str(error)) from error


def _of_module(module: str, name: str) -> Callable[[], Any]:
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise WrongUse(
            f"{module}:{name} cannot be found ({error}); write module:callable"
        ) from error

    def make() -> Any:
        try:
            dataset = found() if callable(found) else found
        except Exception as error:
            kind = type(error).__name__
            raise CannotGoOn(f"{module}:{name}() raised {kind}: {error}") from error
        if not hasattr(dataset, "__getitem__") and not hasattr(dataset, "__iter__"):
            kind = type(dataset).__name__
            raise WrongUse(f"{module}:{name}() gave a {kind}; it must give a dataset")
        return dataset

    return make


def _of_database(asked: Asked) -> Opened:
    """Open the rows of a query; without one, say which tables there are."""
    if asked.target is not None:
        raise WrongUse("--target is for .csv and .tsv files")
    try:
        address = address_of(asked.source)
    except FileNotFoundError as error:
        raise WrongUse(f"there is no database {error.filename}") from error
    if asked.query is None:
        listed = data.SQLDataset(asked.source, _TABLES[address.kind], cache_dir=False)
        names = [str(listed[place]["name"]) for place in range(min(len(listed), _NAMED))]
        more = f" and {len(listed) - _NAMED:,} more" if len(listed) > _NAMED else ""
        there = f"it has {', '.join(names)}{more}" if names else "it has no tables"
        what = quoted(names[0]) if names and not names[0].isidentifier() else (names or ["..."])[0]
        raise WrongUse(f"{address.shown}: {there}; write --query 'SELECT * FROM {what}'")
    opened = _table(data.SQLDataset, asked.source, query=asked.query, key=asked.key)
    return replace(opened, shown=address.shown)


def _of_address(address: str) -> Any:
    """Return the dataset at an address, by how it ends, or by what is below it."""
    if address.endswith(".tar"):
        return _shards(address)
    if address.endswith(".parquet"):
        return _table(data.ParquetDataset, address)
    if address.startswith("http"):
        return data.MDSDataset(address)  # of directories, such a server shows what it is asked for
    names = [about.address for about in Stores().below(address.rstrip("/") + "/")[:_LOOKED_AT]]
    for ending, kind in (("/index.json", data.MDSDataset), (".parquet", data.ParquetDataset)):
        if any(name.endswith(ending) for name in names):
            return _table(kind, address) if kind is data.ParquetDataset else kind(address)
    return _shards(address)


def _of_path(path: str, target: str | None) -> Callable[[], Any]:
    if not os.path.exists(path):
        raise WrongUse(f"there is no file or directory {path}")
    if os.path.isdir(path):
        return _of_directory(path)
    stem, last = os.path.splitext(path.lower())
    streamed = last in (".gz", ".zst", ".gzip", ".zstd")
    is_packed = streamed or last in (".bz2", ".xz")
    ending = os.path.splitext(stem)[1] if is_packed else last
    if ending in (".csv", ".tsv"):
        separator = "\t" if ending == ".tsv" else ","
        return partial(_csv, path, target, separator)
    if target is not None:
        raise WrongUse("--target is for .csv and .tsv files")
    if is_packed and not streamed:
        ending = last
    openers: dict[str, Callable[[], Any]]
    if streamed:
        openers = {
            ".txt": lambda: data.StreamedTextLines(path),
            ".jsonl": lambda: data.StreamedJSONLines(path),
            ".ndjson": lambda: data.StreamedJSONLines(path),
        }
    else:
        openers = {
            ".parquet": partial(_table, data.ParquetDataset, path),
            ".npy": lambda: data.ArrayDataset.from_npy(path),
            ".npz": lambda: data.ArrayDataset.from_npz(path),
            ".safetensors": lambda: data.ArrayDataset.from_safetensors(path),
            ".tar": partial(_shards, path),
            ".bin": partial(_tokens, path),
            ".idx": partial(_tokens, path),
            ".txt": lambda: data.TextLines(path),
            ".jsonl": lambda: data.JSONLines(path),
            ".ndjson": lambda: data.JSONLines(path),
        }
    if ending not in openers:
        raise WrongUse(f"{path} is of no kind that is known: {_KINDS}")
    return openers[ending]


def _csv(path: str, target: str | None, separator: str) -> Opened:
    """Open a CSV file: as it is, or else in the way that the first error says."""
    nan = {"missing": float("nan")}
    ways: list[dict[str, Any]] = [{}, nan, {"separator": None}, {"separator": None, **nan}]
    first: Exception | None = None
    for way in ways:
        options: dict[str, Any] = {"separator": separator, "target": target, **way}
        try:
            dataset = data.CSVDataset(path, on_doubt="warn", **options)
        except (MissingColumnError, SourceError) as error:
            first = first or error
        else:
            said = ", ".join(f"{k}={_written(v)}" for k, v in way.items())
            return Opened(dataset, None if first is None else str(first), said)
    raise first or SourceError(path)


def _tokens(path: str) -> Any:
    """Return blocks of a corpus whose header or index says what its tokens are."""
    try:
        corpus = data.TokenFile(path)
    except ValueError as error:  # SourceError is one
        said = str(error).partition(" Write TokenFile(")[0]
        raise CannotGoOn(
            f"{said} Write module:callable, of a function that returns "
            f"TokenBlocks(TokenFile({path!r}, dtype), length)."
            if said != str(error)
            else said
        ) from error
    return data.TokenBlocks(corpus, min(_BLOCK, max(1, len(corpus) - 1)), remainder="pad")


def _written(value: object) -> str:
    return 'float("nan")' if isinstance(value, float) else repr(value)


def _table(kind: Callable[..., Any], path: str, **options: Any) -> Opened:
    try:
        return Opened(kind(path, **options))
    except MissingColumnError:
        raise
    except SourceError as error:
        try:
            dataset = kind(path, missing=float("nan"), **options)
        except HeadraceError:
            raise error from None
        return Opened(dataset, str(error), 'missing=float("nan")')


def _shards(*paths: str) -> Opened:
    """Open shards: as they are, or with what keeps a loader from it left out."""
    ways: list[tuple[str, dict[str, Any]]] = [
        ("", {}),
        ("decode=False", {"decode": False}),
        ('on_error="skip"', {"on_error": "skip"}),
        ('on_error="skip", decode=False', {"on_error": "skip", "decode": False}),
    ]
    first: Exception | None = None
    for said, way in ways:
        try:
            dataset = data.TarDataset(paths, **way)
        except SourceError as error:
            first = first or error
        else:
            return Opened(dataset, None if first is None else str(first), said)
    raise first or SourceError(paths[0])


def _of_directory(path: str) -> Callable[[], Any]:
    for place in (path, os.path.dirname(os.path.abspath(path))):
        for name, kind in _IN_DIRECTORIES.items():
            inside = os.path.join(place, name)
            if os.path.isdir(inside) and (place == path or os.path.samefile(inside, path)):
                return lambda: kind(place)
    if any(p.suffix == ".parquet" for p in islice(Path(path).rglob("*"), _LOOKED_AT)):
        return partial(_table, data.ParquetDataset, path)
    if any(".mds" in name for name in os.listdir(path)[:_LOOKED_AT]):
        return partial(data.MDSDataset, path)
    if any(name.endswith(".tar") for name in os.listdir(path)[:_LOOKED_AT]):
        return partial(_shards, path)
    return partial(_images, path)


def _images(path: str) -> Opened:
    """Open a folder of images, and look for what its decoder has to be told."""
    dataset = data.ImageFolder(path)
    found = survey([sample for sample, _ in dataset.samples])
    doubts = doubts_of_images(found)
    deep = found.deep or found.deep_colour
    if not deep:
        return Opened(dataset, doubts=doubts)
    problem = dataset.loader.find_fault(deep[0])  # type: ignore[attr-defined]
    option: Literal["keep", "scale"] = "keep" if found.deep else "scale"
    opened = data.ImageFolder(path, deep=option)
    return Opened(opened, problem, f'deep="{option}"', doubts)
