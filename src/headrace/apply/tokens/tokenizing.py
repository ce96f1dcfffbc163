"""Texts of files made into one corpus: read here, tokenised by workers, written in order."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.utils.data

from headrace.apply.tokens.encoders import Encoder, encoder_of, end_token_of
from headrace.apply.tokens.texts import Group, Place, Texts
from headrace.apply.tokens.writing import Writer
from headrace.data.files import PathLike
from headrace.data.progress import Progress
from headrace.errors import OptionError, SourceError
from headrace.loader import DataLoader
from headrace.locks import Lock, take
from headrace.machine import available_cores
from headrace.written import told

_SMALL = 1 << 16  # tokens below this are written as uint16


@dataclass(frozen=True)
class Corpus:
    """What was written.

    Attributes:
        path: the tokens; the index of documents is beside them, with the suffix ``.idx``.
        documents: how many.
        tokens: how many, those that end documents too.
        dtype: of a token.
        end_token: what ends each document, None for nothing.
        checksum: CRC-32 of the file of tokens.
        tokens_per_s: while this call ran.
    """

    path: Path
    documents: int
    tokens: int
    dtype: str
    end_token: int | None
    checksum: int
    tokens_per_s: float


def tokenize_files(
    inputs: PathLike | Sequence[PathLike],
    out: PathLike,
    tokenizer: Any,
    *,
    field: str = "text",
    end_token: str | int | None = None,
    num_workers: int | None = None,
) -> Corpus:
    """Write the tokens of texts to a corpus that `TokenFile` and Megatron-LM read.

    Args:
        inputs: files, in this order: text, a document a line, blank ones left out; JSON lines
            (``.jsonl``); both also ``.gz`` and ``.zst``; Parquet.
        out: ``NAME.bin``; the index of documents is ``NAME.idx``.
        tokenizer: a ``tokenizer.json`` of Hugging Face's `tokenizers` or a directory with one, such
            a tokenizer, a function that takes a text and returns its tokens, "module:function".
        field: of JSON lines, or the column of Parquet, that holds the text.
        end_token: written behind each document: a name or a number; None is what the tokenizer has
            under one of the usual names ("<|endoftext|>", "</s>" and others), or nothing.
        num_workers: processes that tokenise; None is one for each core.

    Tokens are uint16 where the vocabulary has at most 65,536, int32 otherwise. The same texts give
    the same bytes for any number of workers. A call that was killed is gone on with by the same
    call, behind the last document that is on the disk.

    Returns:
        ``path`` of the corpus, ``documents`` and ``tokens`` in it (those that end documents too),
        ``dtype``, ``end_token`` (None for nothing), ``checksum`` (CRC-32 of the tokens' file) and
        ``tokens_per_s`` of this call.

    Raises:
        OptionError: no tokenizer, no such end token, a name that does not end in ``.bin``.
        SourceError: a text that cannot be read, which it names; tokens that cannot be.
        SourceChangedError: a file changed meanwhile.
        StateError: what was begun there is made of something else.
        FileExistsError: the corpus is there already.
        InUseError: another program is writing it.
    """
    path = Path(os.path.expanduser(os.fspath(out))).absolute()
    if path.suffix != ".bin":
        raise OptionError(f"out={os.fspath(out)!r} does not end in .bin. Write '{path.stem}.bin'.")
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    texts = Texts([os.fspath(each) for each in given], field)
    encoder = encoder_of(tokenizer)
    end = end_token_of(encoder, end_token)
    dtype = "uint16" if encoder.vocabulary and encoder.vocabulary <= _SMALL else "int32"
    workers = max(1, int(available_cores())) if num_workers is None else num_workers
    with _held(path):
        writer = Writer(path, dtype, _made_of(texts, encoder, end, dtype))
        before, started = writer.note.tokens, time.monotonic()
        if not writer.is_whole:
            with writer:
                _through(texts, _Tokenised(encoder, end, dtype), writer, workers)
                writer.finish()
    note, seconds = writer.note, time.monotonic() - started
    rate = (note.tokens - before) / max(seconds, 1e-9)
    return Corpus(path, note.documents, note.tokens, dtype, end, note.checksum, rate)


def _held(out: Path) -> Lock:
    with told(out, "this is where the tokens are to be written"):
        out.parent.mkdir(parents=True, exist_ok=True)
        return take(
            out.with_name(f"{out.name}.part.lock"),
            os.fspath(out),
            f"Wait for its end, or write out='{out.with_stem(f'{out.stem}-2')}'.",
        )


def _made_of(texts: Texts, encoder: Encoder, end: int | None, dtype: str) -> dict[str, Any]:
    """Return what a corpus follows from, in words that JSON keeps."""
    files = [
        [os.path.abspath(path), stamp.size_bytes, stamp.mtime_ns]
        for path, stamp in zip(texts.paths, texts.stamps, strict=True)
    ]
    return {
        "files": files,
        "field": texts.field,
        "tokenizer": encoder.mark,
        "end_token": end,
        "dtype": dtype,
    }


def _through(texts: Texts, dataset: _Tokenised, writer: Writer, workers: int) -> None:
    place = Place(*writer.note.place)
    loader: Any = DataLoader(
        dataset,
        batch_size=None,
        sampler=_Groups(texts, place),
        num_workers=workers,
        collate_fn=_as_it_is,
    )
    started, before = time.monotonic(), writer.note.tokens
    with Progress("tokenizing", texts.size_bytes, "bytes") as progress:
        done = 0
        for tokens, lengths, behind in loader:
            writer.add(tokens, lengths, Place(*behind))
            now = texts.bytes_before(Place(*behind))
            rate = (writer.note.tokens - before) / max(time.monotonic() - started, 1e-9)
            progress.advance(now - done, rate=f"{rate / 1e6:.2f} M tokens/s")
            done = now


class _Groups(torch.utils.data.Sampler[Any]):
    """Reads the texts, as a loader asks for them: what a worker gets is the texts themselves."""

    def __init__(self, texts: Texts, place: Place) -> None:
        self._texts, self._place = texts, place

    def __iter__(self) -> Iterator[Group]:
        return self._texts.groups(self._place)


class _Tokenised(torch.utils.data.Dataset[Any]):
    """Groups of texts as tokens."""

    def __init__(self, encoder: Encoder, end: int | None, dtype: str) -> None:
        self._encoder, self._end = encoder, end
        self._limits = np.iinfo(dtype)

    def __getitem__(self, group: Group) -> Any:
        texts = list(group.read())
        encoded = [np.asarray(ids) for ids in self._encoder(texts)] if texts else []
        for number, ids in enumerate(encoded):
            self._check(ids, group, number)
        if self._end is not None:
            encoded = [np.append(ids.astype(np.int64), self._end) for ids in encoded]
        tokens = np.concatenate(encoded) if encoded else np.empty(0, np.int64)
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        return tokens.astype(self._limits.dtype), lengths, tuple(group.behind)

    def _check(self, ids: npt.NDArray[Any], group: Group, number: int) -> None:
        if ids.ndim == 1 and not len(ids):
            return
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise SourceError(
                f"the tokenizer gave {ids.dtype} of shape {ids.shape} for text {number + 1} of "
                f"{group}. It has to return a list of integers."
            )
        if ids.min() < 0 or ids.max() > self._limits.max:
            raise SourceError(
                f"the tokenizer gave the token {ids.min() if ids.min() < 0 else ids.max()} for "
                f"text {number + 1} of {group}: tokens go from 0 to {self._limits.max:,}."
            )


def _as_it_is(sample: Any) -> Any:
    return sample
