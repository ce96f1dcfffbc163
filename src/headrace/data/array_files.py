"""Arrays in files, opened as memory maps: .npy, .npz and .safetensors. Nothing is unpickled."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Collection, Mapping, Sequence
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
import torch

from headrace.data.files import PathLike, fill
from headrace.data.gatherer import Array, Gatherer, IndexArray
from headrace.data.mapped import MappedFiles, memory_file
from headrace.errors import ArrayTypeError, HeadraceError, MissingColumnError, SourceError
from headrace.tree import NUMPY_DTYPES

MapMode: TypeAlias = Literal["r", "r+", "c"]

_ZIP_HEADER = 30  # bytes of a member's own header, before its name
_MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, as in the library
_SAFETENSORS_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}


def open_npy(paths: Any, mmap_mode: MapMode) -> Any:
    """Open a path, or a sequence or dict of them, as memory maps in the same nesting."""
    if isinstance(paths, Mapping):
        return {key: _open_npy(path, mmap_mode) for key, path in paths.items()}
    if isinstance(paths, (str, os.PathLike)):
        return _open_npy(paths, mmap_mode)
    return tuple(_open_npy(path, mmap_mode) for path in paths)


def _open_npy(path: PathLike, mmap_mode: MapMode) -> Array:
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # of NumPy and Python's parser, by which byte is wrong
        with open(path, "rb") as file:
            is_npy = file.read(6) == b"\x93NUMPY"
        if is_npy and "object" in str(error).lower():
            raise _holds_objects(os.fspath(path), "np.save(path, x.astype(np.float32))") from error
        raise SourceError(
            f"{os.fspath(path)} is no .npy file that can be read ({error}). "
            f"Write it again: np.save(path, array)."
        ) from error
    if not isinstance(array, np.ndarray):  # an .npz archive
        array.close()
        raise ArrayTypeError(
            f"{os.fspath(path)} is an archive of arrays. Write ArrayDataset.from_npz(path)."
        )
    return array


def _holds_objects(what: str, line: str) -> ArrayTypeError:
    return ArrayTypeError(
        f"{what} holds Python objects, which would have to be unpickled. Save a numeric array: "
        f"{line}."
    )


def open_npz(path: PathLike, names: Sequence[str] | None) -> dict[str, Array]:
    """Open the arrays of an archive: those that are stored as memory maps, compressed ones read.

    Raises:
        SourceError: it is no such archive, or a damaged one.
        ArrayTypeError: an array of Python objects.
        MissingColumnError: a name that it does not have.
    """
    place = os.fspath(path)
    try:
        with zipfile.ZipFile(place) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            return {
                name: _from_archive(archive, members[name], place)
                for name in _chosen(names, members, place)
            }
    except (HeadraceError, OSError):
        raise
    except Exception as error:  # of zipfile, by which byte is wrong, or as it is encrypted
        raise SourceError(
            f"{place} is no .npz archive that can be read ({error}). Write it again: "
            f"np.savez(path, x=x, y=y)."
        ) from error


def _from_archive(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str) -> Array:
    what = f"array {info.filename!r} of {path}"
    try:
        with archive.open(info) as member:
            shape, fortran, dtype = _npy_header(member)
            if dtype.hasobject:
                raise _holds_objects(what, "np.savez(path, x=x.astype(np.float32))")
            header_bytes = member.tell()
            wanted = math.prod(shape) * dtype.itemsize
            if header_bytes + wanted != info.file_size:
                raise ValueError(
                    f"{shape} of {dtype} needs {wanted:,} bytes, it has "
                    f"{info.file_size - header_bytes:,}"
                )
            if info.compress_type != zipfile.ZIP_STORED:
                array = np.empty(shape, dtype, "F" if fortran else "C")
                filled = fill(array.reshape(-1, order="A").view(np.uint8), member)
                if filled < wanted:
                    raise ValueError(f"it ends after {filled:,} of {wanted:,} bytes")
                return array
    except Exception as error:  # of zipfile, zlib or NumPy, by which byte is wrong
        if isinstance(error, HeadraceError):
            raise
        raise SourceError(
            f"{what} cannot be read ({error}). Write the file again: np.savez(path, x=x)."
        ) from error
    start = _start_of(info, path) + header_bytes
    return _mapped(path, dtype, shape, start, "F" if fortran else "C")


def _npy_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
        version, np.lib.format.read_array_header_2_0
    )
    header: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(member)
    return header


def _start_of(info: zipfile.ZipInfo, path: str) -> int:
    """Return where the content of a stored member begins: behind its own header."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(_ZIP_HEADER)
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + _ZIP_HEADER + lengths


def _mapped(
    path: str, dtype: np.dtype[Any], shape: tuple[int, ...], start: int, order: Literal["C", "F"]
) -> Array:
    if not math.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, order)


def open_safetensors(path: PathLike, names: Sequence[str] | None) -> dict[str, Any]:
    """Open the tensors of a file as memory maps.

    They are NumPy arrays, and torch tensors where NumPy has no such type (bfloat16, float8).

    Raises:
        SourceError: it is no such file, or a damaged one.
        MissingColumnError: a name that it does not have.
    """
    place = os.fspath(path)
    with open(place, "rb") as file:
        described, start = _safetensors_header(file, place)
        size = os.fstat(file.fileno()).st_size
    described.pop("__metadata__", None)
    return {
        name: _from_safetensors(place, name, described[name], start, size)
        for name in _chosen(names, described, place)
    }


def _safetensors_header(file: BinaryIO, path: str) -> tuple[dict[str, Any], int]:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    try:
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"its header would have {length:,} bytes, the file has {size:,}")
        described = json.loads(file.read(length))
        if not isinstance(described, dict):
            raise ValueError("its header is no JSON object")
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{path} is no .safetensors file that can be read ({error}). Write it again: "
            f"safetensors.torch.save_file(tensors, path)."
        ) from None
    return described, 8 + length


def _from_safetensors(path: str, name: str, described: Any, start: int, size: int) -> Any:
    try:
        dtype = _SAFETENSORS_DTYPES.get(described["dtype"])
        shape = tuple(map(int, described["shape"]))
        first, last = map(int, described["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{path}: the header says nothing usable of tensor {name!r}.") from error
    if dtype is None:
        raise SourceError(
            f"{path}: tensor {name!r} has type {described['dtype']!r}, which is none of "
            f"{', '.join(_SAFETENSORS_DTYPES)}. Leave it out with names=[...]."
        )
    wanted = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or not 0 <= first <= last <= size - start:
        raise SourceError(
            f"{path} is cut short or damaged: tensor {name!r} would be at bytes {first:,} to "
            f"{last:,} of {size - start:,}. Copy the file again."
        )
    if last - first != wanted:
        raise SourceError(
            f"{path} is damaged: tensor {name!r} of shape {shape} and type {described['dtype']} "
            f"needs {wanted:,} bytes and has {last - first:,}. Copy the file again."
        )
    if dtype in NUMPY_DTYPES:
        return _mapped(path, NUMPY_DTYPES[dtype], shape, start + first, "C")
    if not wanted:
        return torch.empty(shape, dtype=dtype)
    # Private to this process, so that torch may think it writable.
    raw = np.memmap(path, np.uint8, "c", start + first, (wanted,))
    tensor = torch.from_numpy(raw).view(dtype).reshape(shape)
    tensor.map = raw  # type: ignore[attr-defined]  # for map_under
    return tensor


def map_under(source: Any) -> Array | None:
    """Return the array that is mapped from a file under an array or an opened tensor, or None."""
    array: Array | None = getattr(source, "map", None) if torch.is_tensor(source) else source
    return None if array is None or memory_file(array) is None else array


def _chosen(names: Sequence[str] | None, there: Collection[str], path: str) -> list[str]:
    if isinstance(names, str):
        names = [names]
    if names is None:
        names = list(there)
    missing = [name for name in names if name not in there]
    if missing:
        raise MissingColumnError(
            f"{path} has no array {missing[0]!r}; it has {', '.join(map(repr, there)) or 'none'}."
        )
    return list(names)


class Guarded:
    """A gatherer of tensors that lie in mapped files: it looks for files that were truncated."""

    def __init__(self, inner: Gatherer, files: MappedFiles) -> None:
        self.spec = inner.spec
        self.watched = inner.watched
        self._inner = inner
        self._files = files

    def __len__(self) -> int:
        return len(self._inner)

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        """Gather once every file has been found whole."""
        self._files.check()
        self._inner.gather(indices, out)
