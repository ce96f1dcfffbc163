"""Documents packed into blocks: each token once, nothing across documents."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.tokens.files import write_flat, write_megatron
from data.tokens.test_blocks import END, documents_in, tokens
from headrace import DataLoader
from headrace.data import PackedBlocks, TokenFile, cu_seqlens
from headrace.errors import TruncatedFileError


def pieces_in(sample: dict[str, torch.Tensor]) -> list[tuple[list[int], list[int]]]:
    """Return the tokens and targets of each document of a block, and check all else."""
    found = []
    documents = sample["document_ids"]
    for number in range(int(documents.max()) + 1):
        mine = documents == number
        places = mine.nonzero().flatten()
        assert places.tolist() == list(range(int(places[0]), int(places[-1]) + 1))
        assert sample["position_ids"][mine].tolist() == list(range(len(places)))
        found.append((sample["tokens"][mine].tolist(), sample["targets"][mine].tolist()))
    behind = documents == -1
    assert bool((sample["tokens"][behind] == 0).all())
    assert bool((sample["targets"][behind] == -100).all())
    assert sample["position_ids"][behind].tolist() == list(range(int(behind.sum())))
    return found


@given(tokens=tokens, length=st.integers(1, 12))
def test_each_token_once_with_the_next_of_its_document(
    tmp_path_factory: Any, tokens: list[int], length: int
) -> None:
    tokens = [*tokens, END]
    path = write_flat(tmp_path_factory.mktemp("tokens") / "a.bin", tokens)
    blocks = PackedBlocks(TokenFile(path, "uint16", end_token=END), length)
    want = []
    for document in documents_in(tokens):
        following = [*document[1:], -100]
        for start in range(0, len(document), length):
            stop = start + length
            want.append((document[start:stop], following[start:stop]))
    got = [piece for sample in blocks for piece in pieces_in(sample)]
    assert sorted(got) == sorted(want)
    assert blocks.fill == len(tokens) / (len(blocks) * length)
    batches = list(DataLoader(blocks, 3))
    for key, values in blocks[0].items():
        assert torch.equal(torch.cat([b[key] for b in batches])[0], values)
        assert torch.equal(torch.cat([b[key] for b in batches])[-1], blocks[-1][key])


def test_megatrons_documents_and_empty_ones(tmp_path: Path) -> None:
    write_megatron(tmp_path / "a", [[[1, 2], [3]], [], [[4, 5, 6, 7]], [[8]]])
    blocks = PackedBlocks(TokenFile(tmp_path / "a"), 4)
    assert [pieces_in(sample) for sample in blocks] == [
        [([4, 5, 6, 7], [5, 6, 7, -100])],
        [([1, 2, 3], [2, 3, -100]), ([8], [-100])],
    ]


def test_blocks_are_full_and_the_same_each_time(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    sizes = np.maximum(draw.lognormal(5, 1, 20_000).astype(int), 1)
    made = draw.integers(0, 1000, sizes.sum())
    made[np.cumsum(sizes) - 1] = 60_000
    path = write_flat(tmp_path / "a.bin", made)
    blocks = PackedBlocks(TokenFile(path, "uint16", end_token=60_000), 1024)
    assert blocks.fill >= 0.99
    again = PackedBlocks(TokenFile(path, "uint16", end_token=60_000), 1024)
    copied = pickle.loads(pickle.dumps(blocks))
    for number in (0, 7, -1):
        for other in (again, copied):
            assert torch.equal(blocks[number]["tokens"], other[number]["tokens"])
    assert "% full" in repr(blocks)


def test_what_attention_takes() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    bounds, longest = cu_seqlens(positions)
    assert bounds.tolist() == [0, 3, 5, 6, 10]
    assert bounds.dtype == torch.int32
    assert longest == 4
    for wrong in (positions[:, 1:], positions[:0]):
        with pytest.raises(ValueError, match="must begin with 0"):
            cu_seqlens(wrong)


def test_attention_over_packed_blocks_is_that_over_documents(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a.bin", [1, 2, END, 3, END, 4, 5, 6, END])
    (sample,) = PackedBlocks(TokenFile(path, "uint16", end_token=END), 10)
    vectors = torch.randn(100, 8)[sample["tokens"]]
    same = sample["document_ids"][:, None] == sample["document_ids"][None, :]
    masked = torch.nn.functional.scaled_dot_product_attention(
        vectors[None], vectors[None], vectors[None], attn_mask=same.tril()
    )[0]
    bounds, _ = cu_seqlens(sample["position_ids"])
    for start, stop in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        alone = vectors[None, start:stop]
        want = torch.nn.functional.scaled_dot_product_attention(alone, alone, alone, is_causal=True)
        torch.testing.assert_close(masked[start:stop], want[0])


def test_wrong_use(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a.bin", range(10))
    with pytest.raises(ValueError, match="end_token="):
        PackedBlocks(TokenFile(path, "uint16"), 4)
    with pytest.raises(ValueError, match="in memory"):
        PackedBlocks(torch.arange(10), 4)
    with pytest.raises(ValueError, match="1 or more"):
        PackedBlocks(TokenFile(path, "uint16", end_token=3), 0)


def test_a_file_that_is_cut_short_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a.bin", range(50_000))
    blocks = PackedBlocks(TokenFile(path, "uint16", end_token=25_000), 100)
    os.truncate(path, 1000)
    with pytest.raises(TruncatedFileError):
        list(DataLoader(blocks, 10))
