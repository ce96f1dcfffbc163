"""Blocks of consecutive tokens, each with the tokens that come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from headrace.data.compose import Source
from headrace.data.gatherer import Array, Gatherer, IndexArray, Leaf
from headrace.data.identity import identity_of
from headrace.data.tokens.corpus import (
    IGNORE,
    check_length,
    documents_of,
    guard,
    name_of,
    place_of,
    tokens_of,
)
from headrace.data.tokens.file import TokenFile


class TokenBlocks(Source):
    """Blocks of a corpus: ``(x, y)``, where ``y`` is the token behind each of ``x``.

    Both are int64 of shape (length,). Blocks lie one behind the other: each token is in one ``x``
    at most, and each but the first of all (or of its document) is in one ``y`` at most. A batch is
    gathered from the mapped file in one step.

    Args:
        corpus: a `TokenFile`, or tokens in memory: an array or tensor of shape (tokens,).
        length: tokens in a block.
        cross_documents: False cuts each document by itself: no block has tokens of two.
        remainder: of what is left behind the last whole block, of the corpus or of each document:
            "drop" it (`dropped` says how many tokens have no place as ``y``), or "pad" it to one
            more block, in which ``y`` is `ignore_index` where nothing follows.
        pad_token: what stands in ``x`` behind the end.
        ignore_index: what stands in ``y`` there; torch's cross entropy leaves out -100.

    Raises:
        ValueError: an option that cannot be; a corpus too short for one block; documents that
            nobody knows.
        TypeError: no corpus.
    """

    def __init__(
        self,
        corpus: TokenFile | npt.NDArray[Any] | torch.Tensor,
        length: int,
        *,
        cross_documents: bool = True,
        remainder: Literal["drop", "pad"] = "drop",
        pad_token: int = 0,
        ignore_index: int = IGNORE,
    ) -> None:
        if remainder not in ("drop", "pad"):
            raise ValueError(f'remainder must be "drop" or "pad", got {remainder!r}.')
        self.corpus = corpus
        self.length = check_length(length)
        self.cross_documents, self.remainder = cross_documents, remainder
        self.pad_token, self.ignore_index = pad_token, ignore_index
        tokens = len(tokens_of(corpus))
        self._offsets = np.array([0, tokens]) if cross_documents else documents_of(corpus)
        # A document of n tokens has n - 1 that follow another.
        following = np.maximum(np.diff(self._offsets) - 1, 0)
        whole, rest = np.divmod(following, length)
        blocks = whole + (rest > 0) if remainder == "pad" else whole
        self._ends = np.cumsum(blocks)  # by document: how many blocks there are up to its end
        self._firsts = self._ends - blocks
        self.dropped = 0 if remainder == "pad" else int(rest.sum())
        if not len(self):
            raise ValueError(
                f"no block of {length} tokens and the one behind fits into {name_of(corpus)} "
                f"({tokens:,} tokens, {int(following.max(initial=0)):,} in a row that follow "
                f'another). Write a smaller length, or remainder="pad".'
            )

    def __len__(self) -> int:
        """Return the number of blocks."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def places(self, indices: IndexArray) -> tuple[IndexArray, IndexArray]:
        """Return where blocks begin in the corpus, and how many of their tokens have a next one.

        Args:
            indices: of blocks, in [0, len), shape (blocks,).
        """
        if len(self._ends) == 1:
            starts = indices * self.length
            return starts, np.minimum(self._offsets[1] - 1 - starts, self.length)
        document = np.searchsorted(self._ends, indices, side="right")
        starts = self._offsets[document] + (indices - self._firsts[document]) * self.length
        left = self._offsets[document + 1] - 1 - starts
        return starts, np.minimum(left, self.length)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``(x, y)`` of one block."""
        x, y = np.empty((2, 1, self.length), np.int64)
        _Blocks(self).gather(np.array([place_of(index, len(self))]), (x, y))
        return torch.from_numpy(x[0]), torch.from_numpy(y[0])

    def __gather__(self) -> Gatherer:
        """Join the gather protocol."""
        return _Blocks(self)

    def __repr__(self) -> str:
        rest = f"{self.dropped:,} tokens left over" if self.remainder == "drop" else "padded"
        return (
            f"TokenBlocks({name_of(self.corpus)}: {len(self):,} blocks of {self.length:,}, {rest})"
        )

    def _identity(self) -> str:
        options = (self.length, self.cross_documents, self.remainder, self.pad_token)
        return f"{identity_of(self.corpus)} {options} {self.ignore_index}"


class _Blocks:
    """Gathers blocks: the tokens as they lie in the file first, then as int64, twice."""

    def __init__(self, blocks: TokenBlocks) -> None:
        leaf = Leaf((blocks.length,), torch.int64)
        self.spec = [leaf, leaf]
        self._blocks = blocks
        self._tokens = tokens_of(blocks.corpus)
        # Only of tensors can be seen that they have changed.
        self.watched: Sequence[torch.Tensor] | None = (
            [blocks.corpus] if isinstance(blocks.corpus, torch.Tensor) else []
        )
        whole = len(self._tokens) > blocks.length
        window = blocks.length + 1
        # A view: all places where a block may begin, and the tokens from there on.
        self._windows = (
            np.lib.stride_tricks.sliding_window_view(self._tokens, window) if whole else None
        )

    def __len__(self) -> int:
        return len(self._blocks)

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        blocks = self._blocks
        guard(blocks.corpus)
        starts, known = blocks.places(indices)
        x, y = out
        if self._windows is not None and (
            blocks.remainder == "drop" or known.min() == blocks.length
        ):
            rows = self._windows[starts]
            x[...] = rows[:, :-1]
            y[...] = rows[:, 1:]
            return
        x[...], y[...] = blocks.pad_token, blocks.ignore_index
        for row, (start, count) in enumerate(zip(starts.tolist(), known.tolist(), strict=True)):
            x[row, :count] = self._tokens[start : start + count]
            y[row, :count] = self._tokens[start + 1 : start + count + 1]
