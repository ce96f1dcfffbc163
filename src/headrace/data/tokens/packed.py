"""Documents packed into blocks of one length, with what attention needs to keep them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
from headrace.data.tokens.layouts import Offsets
from headrace.sampling.packing import pack

_KEYS = ("tokens", "targets", "position_ids", "document_ids")


class PackedBlocks(Source):
    """Blocks of whole documents, as many as fit into each, found by best-fit decreasing.

    A sample is a dict of four int64 tensors of shape (length,): ``tokens``; ``targets``, the token
    that follows in the same document (do not shift them again); ``position_ids``, which begin at 0
    in each document; ``document_ids``, which number the documents of the block, -1 where nothing
    is. Documents longer than a block are cut first; the pieces are packed like documents, but the
    last target of a piece is the first token of the next. So each token is in one block, once.
    Which documents share a block follows from their lengths alone (Krell et al., "Efficient
    sequence packing without cross-contamination", 2021): shuffle the blocks.

    Args:
        corpus: a `TokenFile` whose documents are known.
        length: tokens in a block.
        pad_token: what stands in ``tokens`` where nothing is.
        ignore_index: what stands in ``targets`` at the end of a document and where nothing is.

    Raises:
        ValueError: nobody knows the documents; a length that cannot be.
        TypeError: no corpus.
    """

    def __init__(
        self,
        corpus: TokenFile,
        length: int,
        *,
        pad_token: int = 0,
        ignore_index: int = IGNORE,
    ) -> None:
        self.corpus = corpus
        self.length = check_length(length)
        self.pad_token, self.ignore_index = pad_token, ignore_index
        self._tokens = len(tokens_of(corpus))
        starts, sizes, goes_on = _pieces(documents_of(corpus), length)
        order = np.argsort(_short(length - sizes), kind="stable")
        rows = pack(sizes[order], length)
        self._ends = np.cumsum([len(row) for row in rows])  # by block: pieces up to its end
        places = order[np.concatenate(rows)]
        self._starts, self._sizes = starts[places], sizes[places]
        self._goes_on = goes_on[places]

    @property
    def fill(self) -> float:
        """The share of the blocks' places that hold tokens."""
        return self._tokens / (len(self) * self.length)

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return the tokens of one block, their targets, positions and documents."""
        out = [np.empty((1, self.length), np.int64) for _ in _KEYS]
        _PackedBlocks(self).gather(np.array([place_of(index, len(self))]), out)
        return {key: torch.from_numpy(array[0]) for key, array in zip(_KEYS, out, strict=True)}

    def __gather__(self) -> Gatherer:
        """Join the gather protocol."""
        return _PackedBlocks(self)

    def __repr__(self) -> str:
        return (
            f"PackedBlocks({name_of(self.corpus)}: {len(self._sizes):,} documents and pieces in "
            f"{len(self):,} blocks of {self.length:,}, {self.fill:.1%} full)"
        )

    def _identity(self) -> str:
        options = (self.length, self.pad_token, self.ignore_index)
        return f"{identity_of(self.corpus)} {options}"


def cu_seqlens(position_ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return where sequences begin and end in a batch laid flat, and how long the longest is.

    Args:
        position_ids: 0 where a sequence begins, shape (blocks, length) or (tokens,). The places of
            a block that hold nothing count as a sequence, as `PackedBlocks` numbers them.

    Returns:
        int32 of shape (sequences + 1,), from 0 to the number of tokens, and an int: what
        `flash_attn_varlen_func` and torch's `varlen_attn` take with `tokens.flatten()`.

    Raises:
        ValueError: the first sequence does not begin at 0.
    """
    flat = position_ids.flatten()
    if not len(flat) or int(flat[0]):
        raise ValueError("position_ids must begin with 0. Give the batch's own, uncut.")
    begins = (flat == 0).nonzero().flatten()
    bounds = torch.cat([begins, begins.new_tensor([len(flat)])]).to(torch.int32)
    return bounds, int(bounds.diff().max())


def _pieces(documents: Offsets, length: int) -> tuple[Offsets, Offsets, npt.NDArray[np.bool_]]:
    """Cut documents into pieces of at most ``length``; return begins, sizes, and which go on."""
    sizes = np.diff(documents)
    count = -(-sizes // length)
    document = np.repeat(np.arange(len(sizes)), count)
    number = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    left = sizes[document] - number * length
    starts = documents[document] + number * length
    return starts, np.minimum(left, length), left > length


def _short(sizes: Offsets) -> npt.NDArray[Any]:
    """Return sizes in the smallest type that holds them: 16 bits are sorted in linear time."""
    return sizes.astype(np.min_scalar_type(int(sizes.max(initial=0))))


class _PackedBlocks:
    """Gathers blocks, all pieces of a batch at once."""

    watched: Sequence[torch.Tensor] | None = ()

    def __init__(self, blocks: PackedBlocks) -> None:
        leaf = Leaf((blocks.length,), torch.int64)
        self.spec = dict.fromkeys(_KEYS, leaf)
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        blocks = self._blocks
        guard(blocks.corpus)
        corpus = tokens_of(blocks.corpus)
        ends = blocks._ends[indices]
        count = ends - np.where(indices > 0, blocks._ends[indices - 1], 0)
        pieces = _ranges(ends - count, count)
        sizes = blocks._sizes[pieces]
        number = _ranges(np.zeros_like(count), count)  # of a piece in its block

        within = _ranges(np.zeros_like(sizes), sizes)
        sources = np.repeat(blocks._starts[pieces], sizes) + within
        used = np.add.reduceat(sizes, np.cumsum(count) - count)
        rows = np.arange(len(indices)) * blocks.length
        places = _ranges(rows, used)
        behind = _ranges(rows + used, blocks.length - used)

        tokens, targets, positions, documents = (array.reshape(-1) for array in out)
        tokens[places], tokens[behind] = corpus[sources], blocks.pad_token
        last = np.cumsum(sizes) - 1
        follow = sources + 1
        ended = last[~blocks._goes_on[pieces]]
        follow[ended] = 0
        found = corpus[follow].astype(np.int64)
        found[ended] = blocks.ignore_index
        targets[places], targets[behind] = found, blocks.ignore_index
        positions[places] = within
        positions[behind] = _ranges(np.zeros_like(used), blocks.length - used)
        documents[places], documents[behind] = np.repeat(number, sizes), -1


def _ranges(starts: IndexArray, counts: IndexArray) -> IndexArray:
    """Return ``starts[i], starts[i] + 1, ...``, ``counts[i]`` of them, one behind the other."""
    begins = np.cumsum(counts) - counts
    shifts: IndexArray = np.repeat(starts - begins, counts)
    return shifts + np.arange(len(shifts))
