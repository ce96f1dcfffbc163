"""From a text to tokens: a tokenizer of Hugging Face's library, or a function."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from headrace.data.identity import function_identity
from headrace.errors import OptionError
from headrace.extras import import_extra

# What tokenizers call the token between documents; the first that a vocabulary has is taken.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]", "<|im_end|>")


class Encoder(Protocol):
    """Turns texts into tokens, in any process.

    Attributes:
        name: what it is, for people.
        mark: what tells it from another one.
        vocabulary: tokens are below it; None where nobody knows.
    """

    name: str
    mark: str
    vocabulary: int | None

    def __call__(self, texts: list[str]) -> list[Sequence[int]]:
        """Return the tokens of each text."""

    def token(self, name: str) -> int | None:
        """Return the number of a token, None where there is none of this name."""


def encoder_of(tokenizer: Any) -> Encoder:
    """Return what turns texts into tokens.

    Args:
        tokenizer: a ``tokenizer.json``, or a directory with one; a ``tokenizers.Tokenizer``; a
            function that takes a text and returns its tokens; or "module:function".

    Raises:
        OptionError: it is none of these.
    """
    if isinstance(tokenizer, (str, os.PathLike)):
        return _named(os.fspath(tokenizer))
    if hasattr(tokenizer, "encode_batch") and hasattr(tokenizer, "to_str"):
        return _Tokenizer(tokenizer.to_str(), "a tokenizer")
    if callable(tokenizer):
        return _Function(tokenizer)
    raise OptionError(
        f"tokenizer={tokenizer!r} is none. Give a tokenizer.json, a function that takes a text and "
        f"returns its tokens, or 'module:function'."
    )


def _named(name: str) -> Encoder:
    path = Path(name)
    if path.is_dir():
        path /= "tokenizer.json"
    if path.is_file():
        try:
            return _Tokenizer(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError:
            raise OptionError(
                f"{path} is no tokenizer.json, and no text at all. A model of SentencePiece is "
                f"saved as one by transformers: AutoTokenizer.from_pretrained(folder)"
                f".save_pretrained(folder)."
            ) from None
    module, colon, attribute = name.partition(":")
    if not colon:
        raise OptionError(
            f"there is no file {path}. Name a tokenizer.json, a directory with one, or "
            f"module:function."
        )
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise OptionError(f"tokenizer {name} cannot be had: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise OptionError(f"{name} is a {type(found).__name__}, not a function of a text.")
    return _Function(found)


class _Tokenizer:
    """A tokenizer of Hugging Face's ``tokenizers``; worker processes make their own of its text."""

    def __init__(self, text: str, name: str) -> None:
        self._text, self.name = text, name
        self.mark = blake2b(text.encode(), digest_size=8).hexdigest()
        self._inner: Any = None
        numbers = self._made().get_vocab(with_added_tokens=True)
        self.vocabulary: int | None = max(numbers.values(), default=0) + 1  # there may be gaps
        self._inner = None  # each process makes its own

    def _made(self) -> Any:
        if self._inner is None:
            # The processes are as many as the cores: threads of its own would fight for them.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            library = import_extra("tokenizers", "tokens")
            try:
                self._inner = library.Tokenizer.from_str(self._text)
            except Exception as error:  # of the library, a plain Exception
                raise OptionError(f"{self.name} is no tokenizer: {error}") from error
            self._inner.no_truncation()
            self._inner.no_padding()
        return self._inner

    def __call__(self, texts: list[str]) -> list[Sequence[int]]:
        encoded = self._made().encode_batch_fast(texts, add_special_tokens=False)
        return [one.ids for one in encoded]

    def token(self, name: str) -> int | None:
        found: int | None = self._made().token_to_id(name)
        self._inner = None
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inner": None}


class _Function:
    """A function of a text, which somebody else wrote."""

    vocabulary: int | None = None

    def __init__(self, function: Callable[[str], Sequence[int]]) -> None:
        self._function = function
        self.mark = function_identity(function)
        self.name = self.mark

    def __call__(self, texts: list[str]) -> list[Sequence[int]]:
        return [self._function(text) for text in texts]

    def token(self, name: str) -> int | None:  # noqa: ARG002 - it knows no names
        return None


def end_token_of(encoder: Encoder, wanted: str | int | None) -> int | None:
    """Return the token behind each document: the one that is wanted, or that the tokenizer has.

    Raises:
        OptionError: there is no such token.
    """
    if wanted is None:
        found = (encoder.token(name) for name in _ENDS)
        return next((token for token in found if token is not None), None)
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        token: int | None = wanted
    else:
        token = encoder.token(str(wanted))
        if token is None and str(wanted).isdigit():
            token = int(wanted)
    if token is None or token < 0 or (encoder.vocabulary or token + 1) <= token:
        raise OptionError(
            f"end_token={wanted!r} is no token of {encoder.name}. Give the name or the number of "
            f"one."
        )
    return token
