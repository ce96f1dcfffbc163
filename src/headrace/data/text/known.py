"""What a file is that is no plain text, by its first bytes, and what is said of it."""

from __future__ import annotations

import codecs
import difflib
import errno
import os
from collections.abc import Collection
from typing import NamedTuple

from headrace.errors import SourceError

_LOOKED_AT_BYTES = 64

COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    **{b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)},
    **{b"BZh%d\x17\x72\x45\x38\x50\x90" % level: "bzip2" for level in range(1, 10)},  # empty
}
PROGRAMS = {"gzip": "gunzip", "zstd": "unzstd", "bzip2": "bunzip2", "xz": "unxz"}


class _Format(NamedTuple):
    name: str
    remedy: str


_UNPACK = "Unpack it, and give the path of the file in it"
_FORMATS = {
    b"PK\x03\x04": _Format("zip archive", "Unzip it, and give the path of the file in it"),
    b"7z\xbc\xaf\x27\x1c": _Format("7z archive", _UNPACK),
    b"Rar!\x1a\x07": _Format("rar archive", _UNPACK),
    b"\x04\x22\x4d\x18": _Format("file compressed with lz4", "Write unlz4, and read its result"),
    b"PAR1": _Format("Parquet file", "Write headrace.data.ParquetDataset(path)"),
    b"ARROW1": _Format(
        "Arrow file", "Write headrace.data.TableDataset(pyarrow.feather.read_table(path))"
    ),
    b"\x93NUMPY": _Format("NumPy file", "Write headrace.data.ArrayDataset.from_npy(path)"),
    b"\x89HDF\r\n": _Format("HDF5 file", "Read it with h5py or pandas.read_hdf"),
    b"\xd0\xcf\x11\xe0\xa1\xb1": _Format("Excel file", "Save it as CSV there"),
    b"SQLite format 3\x00": _Format("SQLite database", "Read it with pandas.read_sql"),
    b"%PDF-": _Format("PDF file", "It is no table: export one from it"),
    b"\x89PNG\r\n": _Format("PNG image", "Write headrace.data.ImageFolder(directory)"),
    b"\xff\xd8\xff": _Format("JPEG image", "Write headrace.data.ImageFolder(directory)"),
}
_EXCEL = _Format("Excel file (a zip archive)", "Save it as CSV there, or read it with pandas")


def first_bytes(path: str) -> bytes:
    """Return how a file begins; at least one byte.

    Raises:
        SourceError: the file is empty.
        FileNotFoundError, IsADirectoryError: with what to write.
        OSError: it cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            beginning = file.read(_LOOKED_AT_BYTES)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise not_there(path, error) from None
    if not beginning:
        raise SourceError(f"{path} is an empty file: it has no lines. Leave it out of the paths.")
    return beginning


def not_there(path: str, error: OSError) -> OSError:
    """Return the error for a path that is no file, with what to write."""
    code, said = error.errno, error.strerror
    if os.path.isdir(path):
        code, said = errno.EISDIR, f"a directory. Write the files in it: sorted(glob('{path}/*'))"
    elif "://" in path:
        said = "an address, and files are read from disks. Download it, or open it with fsspec"
    elif any(mark in path for mark in "*?["):
        said = f"no such file. For all that match, write sorted(glob.glob({path!r}))"
    elif path.startswith("~"):
        said = f"no such file. Write os.path.expanduser({path!r})"
    elif error.errno == errno.ENOENT:
        said = "no such file" + _near(path)
    return type(error)(code, said, path)


def _near(path: str) -> str:
    """Say which file of another name may be meant, and from where a path counts."""
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        here = "" if os.path.isabs(path) else f" (the working directory is {os.getcwd()})"
        return f": there is no directory {folder}{here}. Write the path of one that is there"
    stem = name.partition(".")[0]
    like = [n for n in names if n.partition(".")[0] == stem]
    like = like or difflib.get_close_matches(name, names, 1)
    if like:
        return f". There is {os.path.join(folder, min(like))!r}: write that, if it is meant"
    here = folder or os.getcwd()
    return f" in {here}. Write its path from there, or the whole path"


def compression_of(beginning: bytes) -> str | None:
    """Return how a file that begins like this is compressed: "gzip" or the like, or not at all."""
    return next((name for magic, name in COMPRESSIONS.items() if beginning.startswith(magic)), None)


def check_text(path: str, beginning: bytes, readable: Collection[str] = ()) -> str | None:
    """Check that a file is text, or compressed in a way that can be read; return which.

    Raises:
        SourceError: it is something else: an archive, Parquet, an image.
    """
    compression = compression_of(beginning)
    if compression in readable:
        return compression
    if compression is not None:
        raise SourceError(
            f"{path} is compressed ({compression}), which is not read here. Write "
            f"{PROGRAMS[compression]} {path}, and read the file that it makes."
        )
    for magic, kind in _FORMATS.items():
        if beginning.startswith(magic):
            name, remedy = _EXCEL if b"[Content_Types].xml" in beginning else kind
            article = "an" if name[0] in "AEIO" else "a"
            raise SourceError(f"{path} is {article} {name}, no text. {remedy}.")
    return None


def wide_encoding(beginning: bytes) -> str | None:
    """Return the encoding of text in units of two or four bytes: by its mark, or by its zeros."""
    for mark, name in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if beginning.startswith(mark):
            return name
    even, odd = beginning[0::2], beginning[1::2]
    if len(beginning) < 4 or (len(beginning) % 2 and len(beginning) < _LOOKED_AT_BYTES):
        return None
    for zeros, others, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros.count(0) * 10 > len(zeros) * 7 and all(others):
            return name
    return None
