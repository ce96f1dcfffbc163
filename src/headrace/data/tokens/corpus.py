"""What blocks are cut from: a file of tokens, or tokens in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headrace.data.mapped import memory_file
from headrace.data.tokens.file import TokenFile
from headrace.data.tokens.layouts import Offsets

IGNORE = -100  # the target that torch's cross entropy leaves out, unless it is told another


def tokens_of(corpus: Any) -> npt.NDArray[Any]:
    """Return the tokens of a corpus as an array of shape (tokens,).

    Raises:
        TypeError: it is no corpus.
    """
    if isinstance(corpus, TokenFile):
        return corpus.tokens
    array = corpus.numpy() if isinstance(corpus, torch.Tensor) else corpus
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim != 1:
        what = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else ""
        raise TypeError(
            f"a corpus is a TokenFile or one row of integers, got "
            f"{what or type(corpus).__name__}. Write TokenFile(path, 'uint16'), or "
            f"np.concatenate(documents)."
        )
    return array


def documents_of(corpus: Any) -> Offsets:
    """Return where the documents of a corpus begin, and the last one ends.

    Raises:
        ValueError: nobody knows.
    """
    if isinstance(corpus, TokenFile):
        return corpus.documents
    raise ValueError(
        "nothing says where the documents of tokens in memory begin. Write them to a file and give "
        "TokenFile(path, dtype, end_token=...)."
    )


def check_length(length: int, least: int = 1) -> int:
    """Return the length of a block.

    Raises:
        ValueError: it is no integer, or too small.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < least:
        raise ValueError(f"length must be an integer of {least} or more, got {length!r}.")
    return length


def place_of(index: Any, blocks: int) -> int:
    """Return an index in [0, blocks); negative ones count from the end.

    Raises:
        IndexError: it is out of range.
    """
    at: int = index.__index__()
    if not -blocks <= at < blocks:
        raise IndexError(
            f"block {at} is out of range: there are {blocks}. "
            f"Write an index from 0 to {blocks - 1}."
        )
    return at % blocks


def guard(corpus: Any) -> None:
    """Raise where the file of a corpus has become shorter than it was."""
    if isinstance(corpus, TokenFile):
        corpus.check()
    elif isinstance(corpus, np.ndarray):
        memory_file(corpus, check=True)


def name_of(corpus: Any) -> str:
    """Return what a message calls a corpus."""
    return corpus.path if isinstance(corpus, TokenFile) else f"{len(corpus):,} tokens in memory"
