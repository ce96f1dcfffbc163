"""Files of tokens: the layouts, and what is said of those that are none."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from data.tokens.files import CODES, write_flat, write_llm_c, write_megatron
from headrace.data import TokenFile
from headrace.errors import (
    SourceChangedError,
    SourceError,
    SourceWarning,
    TruncatedFileError,
)

TOKENS = [5, 6, 9, 1, 2, 9, 9, 3]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "int64"])
def test_nothing_but_tokens(tmp_path: Path, dtype: str) -> None:
    corpus = TokenFile(write_flat(tmp_path / "a.bin", TOKENS, dtype), dtype)
    assert len(corpus) == 8
    assert corpus[:].tolist() == TOKENS
    assert corpus[2:4].tolist() == [9, 1]
    assert corpus[-1] == 3
    assert not corpus[:].flags.writeable


@pytest.mark.parametrize("magic", [20240520, 20240801])
def test_the_header_of_llm_c_is_no_tokens(tmp_path: Path, magic: int) -> None:
    corpus = TokenFile(write_llm_c(tmp_path / "a.bin", TOKENS, magic=magic), end_token=9)
    assert corpus[:].tolist() == TOKENS
    assert corpus.documents.tolist() == [0, 3, 6, 7, 8]


def test_a_header_that_the_file_does_not_keep(tmp_path: Path) -> None:
    path = write_llm_c(tmp_path / "a.bin", TOKENS)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(SourceError, match="says 8 tokens of 2 bytes, but 14 bytes follow"):
        TokenFile(path)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("name", ["a", "a.bin", "a.idx"])
def test_megatrons_pair(tmp_path: Path, dtype: str, name: str) -> None:
    write_megatron(tmp_path / "a", [[[1, 2], [3]], [], [[4, 5, 6]]], dtype)
    corpus = TokenFile(tmp_path / name)
    assert corpus.dtype == dtype
    assert corpus[:].tolist() == [1, 2, 3, 4, 5, 6]
    assert corpus.documents.tolist() == [0, 3, 3, 6]


def test_megatrons_pair_with_modalities(tmp_path: Path) -> None:
    write_megatron(tmp_path / "a", [[[1, 2], [3]]], modes=b"\x00\x01")
    assert TokenFile(tmp_path / "a").documents.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"version": 2}, "version 2"),
        ({"code": 7}, "float32: tokens are integers"),
        ({"code": 77}, "unknown code 77"),
        ({"places": [0, 3]}, "do not lie one behind the other"),
        ({"lengths": [-1, 4], "places": [0, -2]}, "do not lie one behind the other"),
        ({"bounds": [0, 1, 5]}, "not all sequences"),
        ({"bounds": [0, 2, 1]}, "not all sequences"),
        ({"modes": b"\x00\x00\x00"}, "damaged, or of a version"),
    ],
)
def test_indexes_that_contradict_themselves(tmp_path: Path, odd: dict, said: str) -> None:
    write_megatron(tmp_path / "a", [[[1, 2]], [[3]]], **odd)
    with pytest.raises(SourceError, match=said):
        TokenFile(tmp_path / "a.bin")


def test_an_index_cut_anywhere_or_of_another_file(tmp_path: Path) -> None:
    write_megatron(tmp_path / "a", [[[1, 2]], [[3]]])
    index = (tmp_path / "a.idx").read_bytes()
    for size in range(len(index)):
        (tmp_path / "a.idx").write_bytes(index[:size])
        with pytest.raises(SourceError):
            TokenFile(tmp_path / "a.bin")
    (tmp_path / "a.idx").write_bytes(index)
    (tmp_path / "a.bin").write_bytes(b"1234")
    with pytest.raises(SourceError, match="do not belong together"):
        TokenFile(tmp_path / "a.bin")


def test_documents_by_their_last_token(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a.bin", TOKENS)
    assert TokenFile(path, "uint16", end_token=9).documents.tolist() == [0, 3, 6, 7, 8]
    assert TokenFile(path, "uint16", end_token=3).documents.tolist() == [0, 8]
    with pytest.raises(SourceError, match="the token 8 is nowhere"):
        _ = TokenFile(path, "uint16", end_token=8).documents
    with pytest.raises(ValueError, match="end_token=50256"):
        _ = TokenFile(path, "uint16").documents


def test_documents_across_pieces_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.data.tokens.file._AT_ONCE", 3)
    path = write_flat(tmp_path / "a.bin", TOKENS)
    assert TokenFile(path, "uint16", end_token=9).documents.tolist() == [0, 3, 6, 7, 8]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((), ValueError, 'TokenFile(path, "uint16")'),
        (("float32",), TypeError, "tokens are integers"),
        (("uint32", 70_000_000_000), ValueError, "cannot be in a file of uint32"),
        (("uint16", -1), ValueError, "from 0 to 65535"),
        (("uint16", True), TypeError, "must be an integer"),
        (("uint16", "9"), TypeError, "must be an integer"),
    ],
)
def test_wrong_use(tmp_path: Path, arguments: tuple, error: type, said: str) -> None:
    path = write_flat(tmp_path / "a.bin", TOKENS)
    dtype, end = (*arguments, None, None)[:2]
    with pytest.raises(error) as caught:
        TokenFile(path, dtype, end_token=end)
    assert said in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.bin"):
        TokenFile(tmp_path / "missing.bin", "uint16")
    (tmp_path / "empty.bin").touch()
    with pytest.raises(SourceError, match="has no tokens"):
        TokenFile(tmp_path / "empty.bin", "uint16")
    (tmp_path / "odd.bin").write_bytes(b"123")
    with pytest.raises(SourceError, match="no whole tokens of 2"):
        TokenFile(tmp_path / "odd.bin", "uint16")
    write_megatron(tmp_path / "pair", [[[1]]])
    with pytest.raises(SourceError, match="Leave dtype= out"):
        TokenFile(tmp_path / "pair", "uint32")
    with pytest.raises(ValueError, match="Leave end_token= out"):
        TokenFile(tmp_path / "pair", end_token=1)


def test_a_file_that_others_change(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a.bin", range(10_000))
    corpus = TokenFile(path, "uint16")
    kept = pickle.dumps(corpus)
    assert len(kept) < 1000
    assert pickle.loads(kept)[9999] == 9999
    os.truncate(path, 100)
    with pytest.raises(TruncatedFileError, match="truncated after it was opened"):
        corpus[5000:]
    with pytest.raises(SourceChangedError):
        pickle.loads(kept)


def test_other_byte_orders_are_read_as_said(tmp_path: Path) -> None:
    np.array(TOKENS, ">u2").tofile(tmp_path / "a.bin")
    assert TokenFile(tmp_path / "a.bin", ">u2")[:].tolist() == TOKENS


@pytest.mark.parametrize(
    "beginning",
    [
        b"\x93NUMPY",
        b"PK\x03\x04",
        b"\x1f\x8b\x08\x08",
        b"\x28\xb5\x2f\xfd",
        b"PAR1",
        b"MMIDIDX\0\0",
    ],
)
def test_files_of_other_kinds_are_no_tokens(tmp_path: Path, beginning: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(beginning + bytes(1000))
    with pytest.raises(SourceError, match="and no file of tokens alone"):
        TokenFile(tmp_path / "a.bin", "uint8")


@pytest.mark.parametrize(
    ("written", "read", "doubt"),
    [
        ("uint32", "uint16", "every second token is 0"),
        ("int32", "uint16", "every second token is 0"),
        ("uint16", "uint32", "as in a file of uint16"),
        ("uint16", "int32", "as in a file of uint16"),
        ("uint16", "int64", "as in a file of uint16"),
    ],
)
def test_the_type_of_another_file_is_doubted(
    tmp_path: Path, written: str, read: str, doubt: str
) -> None:
    path = write_flat(
        tmp_path / "a.bin", np.random.default_rng(0).integers(0, 50_000, 800), written
    )
    with pytest.warns(SourceWarning, match=doubt):
        TokenFile(path, read)
    TokenFile(path, written)  # says nothing


def test_zeros_are_tokens_of_any_type(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a.bin", np.zeros(800))
    for dtype in ("uint16", "uint32", "int64"):
        TokenFile(path, dtype)
