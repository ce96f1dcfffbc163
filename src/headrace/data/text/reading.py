"""From the bytes of a line to a sample, and what is said of files and lines that are none."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Sequence
from typing import Any

from headrace.data.files import PathLike
from headrace.data.text.known import check_text, first_bytes, wide_encoding
from headrace.errors import SourceError, SourceWarning
from headrace.notices import warn_user

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_STREAMED = ("gzip", "zstd")
_SHOWN = 60
SPACES = b" \t\r\n"  # what JSON calls whitespace

CHECKED_BYTES = 1_024
_RECORDS = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*[\[{]")
_NESTED = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:\[|\{\s*\"[^\"]*\"\s*:\s*(?:\[\s*[\[{]|\{\s*\"))")

_parse = json.JSONDecoder().decode  # json.loads, without looking at options each time


class BadLineError(Exception):
    """A line that is no sample, and why; whoever knows file and line makes an error of it."""


def path_list(paths: PathLike | Sequence[PathLike]) -> list[str]:
    """Return one path or several as a list of strings.

    Raises:
        SourceError: there are none.
    """
    found = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not found:
        raise SourceError("there are no files: the list of paths is empty. Give it a path.")
    return [os.fspath(path) for path in found]


def compression_of(path: str) -> str | None:
    """Return how a file of lines is compressed, by its first bytes: "gzip", "zstd", or not at all.

    Raises:
        SourceError: the file is empty, compressed in another way, or no text in which lines end
            in a byte 10.
        OSError: it cannot be opened.
    """
    beginning = first_bytes(path)
    compression = check_text(path, beginning, _STREAMED)
    wide = wide_encoding(beginning)
    if compression is None and wide is not None:
        raise SourceError(
            f"{path} is {wide}, in which a newline is no single byte, by which lines are found. "
            f"Convert the file: iconv -f {wide} -t utf-8 {path} > utf8.txt"
        )
    return compression


def is_blank(raw: bytes) -> bool:
    """Say whether a line is nothing but what JSON calls whitespace."""
    return raw[0] in SPACES and not raw.strip(SPACES)


def codec_of(encoding: str, errors: str) -> str:
    """Return the codec that decodes the lines of a file in this encoding.

    Raises:
        SourceError: Python does not know it or ``errors``, or its newline is not the byte 10.
    """
    try:
        codecs.lookup_error(errors)
    except LookupError:
        raise SourceError(
            f"errors={errors!r} is no way to treat bytes of another encoding. Write "
            f"errors='strict' or errors='replace'."
        ) from None
    try:
        name = codecs.lookup(encoding).name
        name = "utf-8" if name == "utf-8-sig" else name
        newline = "\n".encode(name)
    except LookupError:
        raise SourceError(
            f"encoding {encoding!r} is no encoding of text that Python knows. Write "
            f"encoding='utf-8'."
        ) from None
    if newline != b"\n":
        raise SourceError(
            f"encoding {encoding!r} does not write a newline as the byte 10, by which lines are "
            f"found. Convert the file: iconv -f {encoding} -t utf-8 old.txt > new.txt"
        )
    return name


def to_text(raw: bytes, codec: str, errors: str, *, first: bool) -> str:
    r"""Decode a line, without the ``\n`` or ``\r\n`` that ends it.

    ``first`` is whether it is at the beginning of its file, where a byte order mark may stand.

    Raises:
        BadLineError: bytes that the codec does not have.
    """
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    if first and codec == "utf-8":
        raw = raw.removeprefix(_BYTE_ORDER_MARK)
    try:
        return raw.decode(codec, errors)
    except UnicodeDecodeError as error:
        raise BadLineError(
            f"byte {error.object[error.start]:#04x} at position {error.start} is not {codec} "
            f"({error.reason}). Give the encoding of the file, such as encoding='latin-1', or "
            f"write errors='replace'."
        ) from None


def to_value(text: str) -> Any:
    """Parse a line of JSON.

    Raises:
        BadLineError: it is none.
    """
    try:
        return _parse(text)
    except json.JSONDecodeError as error:
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
        raise BadLineError(
            f"no JSON ({error.msg}, column {error.colno}): {shown!r}. Each line must be one value: "
            f"correct it. If the file is one value over many lines, write jq -c '.[]' old.json > "
            f"new.jsonl"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadLineError(f"JSON that cannot be read ({error}). Correct the line.") from None


def check_alone(path: str, raw: bytes) -> None:
    """Check that the only line of a file of JSON lines is one sample, not all of them.

    Raises:
        SourceError: it is an array of records.
    """
    beginning = raw[:CHECKED_BYTES]
    if _RECORDS.match(beginning):
        raise SourceError(
            f"{path} is a JSON array of records in one line, which would be one sample: a list. "
            f"Write a record a line: jq -c '.[]' {path} > records.jsonl. Or, in Python, "
            f"DataLoader(json.load(open({path!r})))."
        )
    if _NESTED.match(beginning):
        warn_user(
            f"{path} has one line, which is one sample. If it holds many, write each of them in a "
            f"line: jq -c '.[]' {path} > records.jsonl (or '.data[]', with the name of its list).",
            SourceWarning,
        )
