"""One file of tokens, mapped: a corpus for language models."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.data.files import PathLike, Stamp
from headrace.data.identity import files_identity
from headrace.data.mapped import MappedFiles
from headrace.data.progress import Progress
from headrace.data.tokens.layouts import Layout, Offsets, flat, header_of, megatron
from headrace.errors import SourceError

_AT_ONCE = 1 << 24  # tokens looked at in one step


class TokenFile:
    """A file of tokens, one number behind the other, which is mapped and never read whole.

    Three layouts are known: nothing but tokens, as nanoGPT's scripts write them; with the header
    of llm.c's files; and Megatron's pair of ``.bin`` and ``.idx``.

    Args:
        path: the file. For Megatron's pair either of the two, or their name without its end.
        dtype: of a token, as in "uint16". It must be given for files of tokens alone, which do not
            say; where a header or an index does, it is compared.
        end_token: the token that ends each document, which belongs to it. The file is searched for
            it once, when somebody asks for the documents. Leave it out where an index says.

    Raises:
        SourceError: the file is empty, damaged, or not of this type.
        TypeError: a dtype that is no type of integers, an end token that is no integer.
        ValueError: no dtype where nothing says it; an end token that the dtype cannot hold.

    ``corpus[a:b]`` is a view of the tokens as a NumPy array.
    """

    def __init__(
        self, path: PathLike, dtype: npt.DTypeLike | None = None, *, end_token: int | None = None
    ) -> None:
        self.path, idx = _files_of(os.fspath(path))
        self.end_token = end_token
        wanted = None if dtype is None else _integers(dtype)
        layout = _layout(self.path, idx, wanted)
        if not layout.tokens:
            raise SourceError(f"{self.path} has no tokens. Write it again.")
        if end_token is not None:
            _check_end(end_token, layout, idx)
        self.dtype = layout.dtype
        self._idx = idx
        self._layout = layout
        self._documents = layout.documents
        self._stamp = Stamp.of(self.path)
        self._map()

    def _map(self) -> None:
        layout = self._layout
        mapped = np.memmap(
            self.path, layout.dtype, "r", offset=layout.offset_bytes, shape=(layout.tokens,)
        )
        self._files = MappedFiles([mapped])
        self.tokens: npt.NDArray[Any] = mapped.view(np.ndarray)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self._layout.tokens

    def __getitem__(self, place: Any) -> Any:
        """Return a token, or a view of several.

        Raises:
            TruncatedFileError: the file has become shorter.
        """
        self.check()
        return self.tokens[place]

    def check(self) -> None:
        """Raise where the file has become shorter than it was: its end could not be read.

        Raises:
            TruncatedFileError: it has.
        """
        self._files.check()

    @property
    def documents(self) -> Offsets:
        """Where documents begin, and the last one ends: int64, shape (documents + 1,).

        Raises:
            ValueError: neither an index nor an ``end_token=`` says.
            SourceError: the end token does not occur.
        """
        if self._documents is None:
            if self.end_token is None:
                raise ValueError(
                    f"nothing says where documents of {self.path} end. Give the token that ends "
                    f"each: TokenFile(path, dtype, end_token=50256)."
                )
            self._documents = self._search(self.end_token)
        return self._documents

    def _search(self, end_token: int) -> Offsets:
        found = [np.zeros(1, np.int64)]
        with Progress(f"searching documents in {self.path}", len(self), "tokens") as progress:
            for start in range(0, len(self), _AT_ONCE):
                some = self[start : start + _AT_ONCE]
                found.append(np.flatnonzero(some == end_token) + (start + 1))
                progress.advance(len(some))
        offsets = np.concatenate(found)
        if len(offsets) == 1:
            raise SourceError(
                f"the token {end_token} is nowhere in {self.path}, so its documents are not known. "
                f"Give the end_token= that it was written with."
            )
        return offsets if offsets[-1] == len(self) else np.append(offsets, len(self))

    def __repr__(self) -> str:
        return f"TokenFile({self.path}: {len(self):,} tokens of {self.dtype.name})"

    def _identity(self) -> str:
        return f"{files_identity([self.path])} {self.dtype} {self.end_token}"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the path, not the tokens."""
        return {k: v for k, v in self.__dict__.items() if k not in ("tokens", "_files")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._stamp.check(self.path)
        self._map()


def _files_of(path: str) -> tuple[str, str | None]:
    """Return the file of the tokens, and Megatron's index where there is one."""
    stem, end = os.path.splitext(path)
    if end == ".idx":
        path = f"{stem}.bin"
    elif not os.path.exists(path) and os.path.exists(f"{path}.bin"):
        stem, path = path, f"{path}.bin"
    idx = f"{stem}.idx"
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}. Name a file of tokens.")
    return path, idx if os.path.isfile(idx) and idx != path else None


def _integers(dtype: npt.DTypeLike) -> np.dtype[Any]:
    known = np.dtype(dtype)
    if known.kind not in "iu":
        raise TypeError(f'tokens are integers, got dtype={dtype!r}. Write dtype="uint16".')
    return known.newbyteorder("<") if known.byteorder == "=" else known


def _layout(path: str, idx: str | None, wanted: np.dtype[Any] | None) -> Layout:
    said = megatron(idx, path) if idx is not None else header_of(path)
    if said is None:
        if wanted is None:
            raise ValueError(
                f"{path} is a file of tokens alone, which does not say of what type they are. "
                f'Write TokenFile(path, "uint16"), or the type that it was written with.'
            )
        return flat(path, wanted)
    if wanted is not None and wanted != said.dtype:
        raise SourceError(
            f"{idx or path} says that its tokens are {said.dtype.name}, but dtype={wanted.name!r} "
            f"was given. Leave dtype= out."
        )
    return said


def _check_end(end_token: int, layout: Layout, idx: str | None) -> None:
    if layout.documents is not None:
        raise ValueError(f"{idx} says where documents end. Leave end_token= out.")
    if isinstance(end_token, bool) or not isinstance(end_token, (int, np.integer)):
        raise TypeError(f"end_token must be an integer, got {end_token!r}.")
    limits = np.iinfo(layout.dtype)
    if not limits.min <= end_token <= limits.max:
        raise ValueError(
            f"end_token={end_token} cannot be in a file of {layout.dtype.name}, whose tokens go "
            f"from {limits.min} to {limits.max}. Give another end_token=, or another dtype=."
        )
