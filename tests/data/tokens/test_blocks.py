"""Blocks of tokens, against loops over documents."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.tokens.files import write_flat
from headrace import DataLoader
from headrace.data import Subset, TokenBlocks, TokenFile
from headrace.data.gather import find_gatherer
from headrace.errors import TruncatedFileError

END = 99


def blocks_of(tokens: list[int], length: int, *, pad: bool) -> list[tuple[list[int], list[int]]]:
    """Cut one document as the documentation says."""
    found = []
    for start in range(0, len(tokens) - 1, length):
        x = tokens[start : min(start + length, len(tokens) - 1)]
        y = tokens[start + 1 : start + 1 + length]
        missing = length - len(x)
        if not missing:
            found.append((x, y))
        elif pad:
            found.append((x + [0] * missing, y + [-100] * missing))
    return found


def documents_in(tokens: list[int]) -> list[list[int]]:
    documents: list[list[int]] = [[]]
    for token in tokens:
        documents[-1].append(token)
        if token == END:
            documents.append([])
    return [document for document in documents if document]


tokens = st.lists(st.sampled_from([*range(5), END]), min_size=1, max_size=60)


@given(tokens=tokens, length=st.integers(1, 12), cross=st.booleans(), pad=st.booleans())
def test_every_block_of_any_corpus(
    tmp_path_factory: Any, tokens: list[int], length: int, cross: bool, pad: bool
) -> None:
    tokens = [*tokens, END]
    path = write_flat(tmp_path_factory.mktemp("tokens") / "a.bin", tokens)
    corpus = TokenFile(path, "uint16", end_token=END)
    documents = [tokens] if cross else documents_in(tokens)
    want = [block for d in documents for block in blocks_of(d, length, pad=pad)]
    remainder = "pad" if pad else "drop"

    def make() -> TokenBlocks:
        return TokenBlocks(corpus, length, cross_documents=cross, remainder=remainder)

    if not want:
        with pytest.raises(ValueError, match="fits into"):
            make()
        return
    blocks = make()
    assert [(x.tolist(), y.tolist()) for x, y in blocks] == want
    following = sum(len(d) - 1 for d in documents)
    given_out = sum(sum(token != -100 for token in y) for _, y in want)
    assert blocks.dropped == following - given_out
    batches = list(DataLoader(blocks, 3))
    assert torch.cat([x for x, _ in batches]).tolist() == [x for x, _ in want]
    assert torch.cat([y for _, y in batches]).tolist() == [y for _, y in want]


@pytest.mark.parametrize("kind", [torch.tensor, np.array], ids=["tensor", "array"])
def test_tokens_in_memory(kind: Any) -> None:
    blocks = TokenBlocks(kind(list(range(10))), 3)
    assert [x.tolist() for x, _ in blocks] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert blocks.dropped == 0
    with pytest.raises(ValueError, match="TokenFile"):
        TokenBlocks(kind([1, 2, 3]), 1, cross_documents=False)


def test_a_change_of_tokens_in_memory_is_seen() -> None:
    tokens = torch.zeros(1000, dtype=torch.int64)
    loader = DataLoader(TokenBlocks(tokens, 9), 10, num_workers=1)
    batches = iter(loader)
    next(batches)
    tokens.fill_(7)
    assert bool((next(batches)[0] == 7).all())


def test_the_largest_tokens_of_each_type(tmp_path: Path) -> None:
    for dtype in ("uint8", "uint16", "uint32", "int8"):
        limits = np.iinfo(dtype)
        path = write_flat(tmp_path / f"{dtype}.bin", [limits.max, limits.min, limits.max], dtype)
        ((x, y),) = TokenBlocks(TokenFile(path, dtype), 2)
        assert x.tolist() == [limits.max, limits.min]
        assert y.tolist() == [limits.min, limits.max]
        assert x.dtype == y.dtype == torch.int64


def test_is_gathered_shuffled_split_and_resumed(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a.bin", np.arange(20_001) % 60_000)
    blocks = TokenBlocks(TokenFile(path, "uint16"), 20)
    assert find_gatherer(blocks) is not None
    part = Subset(blocks, range(500))
    assert find_gatherer(part) is not None
    loader = DataLoader(part, 8, shuffle=True, seed=3, num_workers=2)
    whole = [x.tolist() for x, _ in loader]
    assert sorted(x[0] for batch in whole for x in batch) == [20 * i for i in range(500)]
    loader = DataLoader(part, 8, shuffle=True, seed=3)
    batches = iter(loader)
    for _ in range(20):
        next(batches)
    state = loader.state_dict()
    later = DataLoader(part, 8, shuffle=True, seed=3, num_workers=2, backend="thread")
    later.load_state_dict(state)
    assert [x.tolist() for x, _ in later] == whole[20:]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_map_the_file_themselves(tmp_path: Path, method: str) -> None:
    path = write_flat(tmp_path / "a.bin", [*range(98), END, *range(50)])
    blocks = TokenBlocks(TokenFile(path, "uint16", end_token=END), 10, cross_documents=False)
    mapped = blocks.map(_first)
    loader = DataLoader(mapped, 4, num_workers=2, multiprocessing_context=method)
    got = [int(value) for batch in loader for value in batch]
    assert got == [int(x[0]) for x, _ in blocks]


def _first(sample: Any) -> torch.Tensor:
    return sample[0][0]


def test_a_file_that_is_cut_short_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a.bin", range(50_000))
    blocks = TokenBlocks(TokenFile(path, "uint16"), 100)
    with open(path, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(TruncatedFileError):
        blocks[-1]
    with pytest.raises(TruncatedFileError):
        list(DataLoader(blocks, 10))
    np.save(tmp_path / "a.npy", np.arange(50_000))
    blocks = TokenBlocks(np.load(tmp_path / "a.npy", mmap_mode="r"), 100)
    os.truncate(tmp_path / "a.npy", 1000)
    with pytest.raises(TruncatedFileError):
        list(DataLoader(blocks, 10))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        (([1, 2, 3], 1), {}, TypeError, "TokenFile(path, 'uint16')"),
        ((torch.zeros(3, 3, dtype=torch.int64), 1), {}, TypeError, "int64 of shape (3, 3)"),
        ((torch.zeros(5), 1), {}, TypeError, "float32"),
        ((torch.arange(5), 0), {}, ValueError, "1 or more"),
        ((torch.arange(5), 2.0), {}, ValueError, "1 or more"),
        ((torch.arange(5), True), {}, ValueError, "1 or more"),
        ((torch.arange(5), 5), {}, ValueError, "smaller length"),
        ((torch.arange(5), 2), {"remainder": "keep"}, ValueError, '"drop" or "pad"'),
    ],
)
def test_wrong_use(arguments: Any, options: Any, error: type, said: str) -> None:
    with pytest.raises(error) as caught:
        TokenBlocks(*arguments, **options)
    assert said in str(caught.value)


def test_says_what_is_left_over() -> None:
    assert repr(TokenBlocks(torch.arange(10), 4)) == (
        "TokenBlocks(10 tokens in memory: 2 blocks of 4, 1 tokens left over)"
    )
    with pytest.raises(IndexError, match="from 0 to 1"):
        TokenBlocks(torch.arange(10), 4)[2]
    assert TokenBlocks(torch.arange(10), 4)[-1][0].tolist() == [4, 5, 6, 7]
