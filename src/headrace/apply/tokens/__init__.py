"""Files of texts made into a corpus of tokens."""

from headrace.apply.tokens.tokenizing import Corpus, tokenize_files

__all__ = ["Corpus", "tokenize_files"]
