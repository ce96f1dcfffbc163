"""Texts made into a corpus: what is read, what is written, what a kill leaves."""

import gzip
import json
import os
import signal
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from headrace import InUseError, OptionError, StateError, tokenize_files
from headrace.apply.tokens import texts as reading
from headrace.apply.tokens import writing
from headrace.data import PackedBlocks, TokenBlocks, TokenFile
from headrace.errors import SourceError

TEXTS = ["one two three", "ünï cödé", "a" * 40, "x", *(f"line {n} of many" for n in range(40))]


def encode(text: str) -> list[int]:
    """A tokenizer of bytes."""
    return [*text.encode()]


def documents_of(corpus: TokenFile) -> list[list[int]]:
    bounds = corpus.documents.tolist()
    return [corpus[a:b].tolist() for a, b in pairwise(bounds)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def write_inputs(folder: Path, kind: str) -> Path:
    lines = "\n".join(TEXTS) + "\n"
    rows = "\n".join(json.dumps({"n": 1, "text": text}) for text in TEXTS)
    path = folder / f"texts.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"n": range(len(TEXTS)), "text": TEXTS}), path, row_group_size=7)
        return path
    data = (rows if "jsonl" in kind else lines).encode()
    if kind.endswith("gz"):
        data = gzip.compress(data)
    if kind.endswith("zst"):
        data = zstd.compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "kind", ["txt", "txt.gz", "txt.zst", "jsonl", "jsonl.gz", "jsonl.zst", "parquet"]
)
def test_texts_of_every_kind(tmp_path: Path, tokenizer: Path, kind: str) -> None:
    path = write_inputs(tmp_path, kind)
    made = tokenize_files(path, tmp_path / "corpus.bin", tokenizer, num_workers=0)
    known = Tokenizer.from_file(str(tokenizer))
    corpus = TokenFile(made.path)
    assert documents_of(corpus) == [[*known.encode(text).ids, 0] for text in TEXTS]
    assert (made.documents, made.tokens, made.end_token) == (len(TEXTS), len(corpus), 0)
    assert made.dtype == corpus.dtype.name == "uint16"
    assert len(TokenBlocks(corpus, 16)) == (len(corpus) - 1) // 16
    assert PackedBlocks(corpus, 64).fill > 0.9
    assert sorted(os.listdir(tmp_path)) == ["corpus.bin", "corpus.idx", path.name]


def test_several_files_and_any_number_of_workers(tmp_path: Path, tokenizer: Path) -> None:
    inputs = [write_inputs(tmp_path, kind) for kind in ("jsonl.zst", "txt", "parquet")]
    made = [
        tokenize_files(inputs, tmp_path / f"{n}.bin", tokenizer, num_workers=n) for n in (0, 1, 2)
    ]
    whole = [(one.path.read_bytes(), one.path.with_suffix(".idx").read_bytes()) for one in made]
    assert whole[0] == whole[1] == whole[2]
    assert {one.checksum for one in made} == {zlib.crc32(whole[0][0])}
    assert made[0].documents == 3 * len(TEXTS)


def test_a_function_is_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab\n\n  \r\nc\r\n")
    made = tokenize_files(tmp_path / "a.txt", tmp_path / "a.bin", encode, num_workers=0)
    assert documents_of(TokenFile(made.path)) == [[97, 98], [99]]
    assert (made.dtype, made.end_token) == ("int32", None)
    by_name = tokenize_files(
        tmp_path / "a.txt", tmp_path / "b.bin", f"{__name__}:encode", end_token="7", num_workers=0
    )
    assert documents_of(TokenFile(by_name.path)) == [[97, 98, 7], [99, 7]]


def test_nothing_is_read_twice_or_left_out_wherever_it_is_gone_on(tmp_path: Path) -> None:
    for kind in ("txt", "jsonl.gz", "parquet"):
        texts = reading.Texts([str(write_inputs(tmp_path, kind))] * 2, "text")
        whole = list(texts.groups(reading.Place(0, 0, 0)))
        read = [text for group in whole for text in group.read()]
        assert read == TEXTS * 2
        for number, group in enumerate(whole):
            rest = [text for later in texts.groups(group.behind) for text in later.read()]
            assert rest == [text for later in whole[number + 1 :] for text in later.read()]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_GROUP_TEXTS", 9)
    monkeypatch.setattr(writing, "_NOTE_EVERY_S", 0.0)


class Killer:
    """Ends the process before or behind the n-th of the steps that change what is on the disk."""

    def __init__(self, at: int) -> None:
        self.left = at

    def around(self, function: Any) -> Any:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            self.step()
            result = function(*args, **kwargs)
            self.step()
            return result

        return stepped

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["jsonl", "txt.gz", "parquet"])
def test_killed_at_every_step_and_gone_on_with(fork: Any, tmp_path: Path, kind: str) -> None:
    path = write_inputs(tmp_path, kind)

    def run(name: str) -> bytes:
        folder, whole = tmp_path / name, ["c.bin", "c.idx"]
        there = set(os.listdir(folder)) if folder.exists() else set()
        if there - {"c.bin.part.lock"} != set(whole):  # else it was killed behind its last step
            made = tokenize_files(path, folder / "c.bin", encode, end_token=0, num_workers=0)
            assert made.documents == len(TEXTS)
            assert sorted(os.listdir(folder)) == whole
        return b"".join((folder / name).read_bytes() for name in whole)

    want = run("whole")
    for at in range(1, 1000):

        def killed(process: Any, at: int = at) -> None:
            killer = Killer(at)
            writing.Writer.add = killer.around(writing.Writer.add)
            for name in ("fsync", "replace", "unlink"):
                setattr(os, name, killer.around(getattr(os, name)))
            Path.unlink = killer.around(Path.unlink)
            run(str(at))
            process.say("whole")

        if fork(killed).heard() == "whole":
            break
        assert run(str(at)) == want, at
    assert at > 20


@pytest.mark.usefixtures("small")
def test_what_was_begun_with_something_else_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    path, out = write_inputs(tmp_path, "jsonl"), tmp_path / "c.bin"

    def broken(text: str) -> list[int]:
        if text == TEXTS[20]:
            raise ValueError("broken")
        return encode(text)

    with pytest.raises(ValueError, match="broken"):
        tokenize_files(path, out, broken, num_workers=0)
    assert json.loads((tmp_path / "c.bin.part.json").read_text())["documents"] == 18
    with pytest.raises(StateError, match=r"tokenizer was .*broken, and now it is"):
        tokenize_files(path, out, tokenizer, num_workers=0)
    with pytest.raises(StateError, match="end_token was None, and now it is 5"):
        tokenize_files(path, out, broken, end_token=5, num_workers=0)
    os.utime(path, (1, 1))
    with pytest.raises(StateError, match="files was"):
        tokenize_files(path, out, broken, num_workers=0)
    for size in (0, 1):
        os.truncate(tmp_path / "c.bin.part.json", size)
        with pytest.raises(StateError, match=r"Remove c\.bin\.part and"):
            tokenize_files(path, out, broken, num_workers=0)
    for name in ("c.bin.part", "c.bin.part.json"):
        (tmp_path / name).unlink()
    assert tokenize_files(path, out, encode, num_workers=0).documents == len(TEXTS)
    with pytest.raises(FileExistsError, match="there already"):
        tokenize_files(path, out, encode, num_workers=0)


def test_one_program_at_a_time(fork: Any, tmp_path: Path) -> None:
    path, out = write_inputs(tmp_path, "txt"), tmp_path / "c.bin"

    def waits(process: Any) -> None:
        def encode_when_told(text: str) -> list[int]:
            process.say("here")
            signal.pause()
            return []

        tokenize_files(path, out, encode_when_told, num_workers=0)

    first = fork(waits)
    assert first.heard() == "here"
    with pytest.raises(InUseError, match=r"c\.bin"):
        tokenize_files(path, out, encode, num_workers=0)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            '{"text": "a"}\n{"txt": "b"}\n',
            r"line 2: there is no text 'text' in it, found \['txt'\]",
        ),
        ('{"text": "a"}\n\n{"text": 5}\n', "line 3: there is no text"),
        ('{"text": "a"}\n[1]\n', "line 2: there is no text .*, found list"),
        ('{"text": "a"}\n{"text": \n', "line 2 is no JSON: Expecting value"),
    ],
)
def test_lines_that_are_none_are_named(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text(lines)
    for workers in (0, 1):
        with pytest.raises(SourceError, match=said):
            tokenize_files(tmp_path / "a.jsonl", tmp_path / "a.bin", encode, num_workers=workers)


def test_other_inputs_that_are_none(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    (tmp_path / "a.txt").write_bytes(b"good\n\xff\xfe bad\n")
    with pytest.raises(SourceError, match=r"a\.txt, line 2: .*utf-8"):
        tokenize_files(tmp_path / "a.txt", out, encode, num_workers=0)
    whole = gzip.compress(os.urandom(1000).hex().encode())
    (tmp_path / "a.txt.gz").write_bytes(whole[:-100])
    with pytest.raises(SourceError, match=r"a\.txt\.gz"):
        tokenize_files(tmp_path / "a.txt.gz", tmp_path / "2.bin", encode, num_workers=0)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(SourceError, match=r"a\.parquet cannot be read as Parquet"):
        tokenize_files(tmp_path / "a.parquet", tmp_path / "3.bin", encode, num_workers=0)
    pq.write_table(pa.table({"n": [1], "text": ["a"]}), tmp_path / "b.parquet")
    for field, said in (("body", "it has n, text"), ("n", "texts are strings, found int")):
        with pytest.raises(SourceError, match=said):
            tokenize_files(
                tmp_path / "b.parquet", tmp_path / "4.bin", encode, field=field, num_workers=0
            )
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "c.parquet")
    with pytest.raises(SourceError, match="row 2: there is no text"):
        tokenize_files(tmp_path / "c.parquet", tmp_path / "5.bin", encode, num_workers=0)
    (tmp_path / "d.csv").write_text("text\na\n")
    with pytest.raises(SourceError, match="is a table"):
        tokenize_files(tmp_path / "d.csv", out, encode)
    with pytest.raises(SourceError, match="no files"):
        tokenize_files([], out, encode)
    with pytest.raises(FileNotFoundError):
        tokenize_files(tmp_path / "missing.txt", out, encode)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ([-1], "the token -1 for text 1"),
        ([2**31], "the token 2147483648 for text 1"),
        ([0.5], "float64 of shape"),
        ([[1]], r"shape \(1, 1\)"),
        ("text", r"<U4 of shape \(\)"),
        (None, "object of shape"),
    ],
)
def test_tokens_that_are_none(tmp_path: Path, result: Any, said: str) -> None:
    path = write_inputs(tmp_path, "txt")
    with pytest.raises(SourceError, match=said):
        tokenize_files(path, tmp_path / "a.bin", lambda _: np.array(result), num_workers=0)


def test_wrong_use(tmp_path: Path, tokenizer: Path) -> None:
    path = write_inputs(tmp_path, "txt")
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "bad.model").write_bytes(b"\n\x0e\xff\xfe")
    for out, given, end, said in [
        ("a.npy", encode, None, r"Write 'a\.bin'"),
        ("a.bin", 5, None, "module:function"),
        ("a.bin", "missing.json", None, "no file"),
        ("a.bin", "missing_module:encode", None, "cannot be had"),
        ("a.bin", "json:__name__", None, "not a function"),
        ("a.bin", tmp_path / "bad.json", None, "no tokenizer"),
        ("a.bin", tmp_path / "bad.model", None, "SentencePiece"),
        ("a.bin", tokenizer, "<eod>", "no token of"),
        ("a.bin", tokenizer, 100_000, "no token of"),
        ("a.bin", encode, -1, "no token of"),
    ]:
        with pytest.raises(OptionError, match=said):
            tokenize_files(path, tmp_path / out, given, end_token=end)
    assert sorted(os.listdir(tmp_path)) == ["bad.json", "bad.model", "texts.txt"]


def test_a_tokenizer_adds_pads_and_cuts_nothing(tmp_path: Path, tokenizer: Path) -> None:
    plain, odd = (Tokenizer.from_file(str(tokenizer)) for _ in range(2))
    odd.enable_truncation(3)
    odd.enable_padding(length=50)
    odd.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    odd.save(str(tmp_path / "tokenizer.json"))
    path = write_inputs(tmp_path, "txt")
    for number, given in enumerate([tmp_path, odd]):  # a directory with one, and one
        made = tokenize_files(path, tmp_path / f"{number}.bin", given, num_workers=0)
        want = [[*plain.encode(text).ids, 0] for text in TEXTS]
        assert documents_of(TokenFile(made.path)) == want
