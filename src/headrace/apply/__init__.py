"""Functions applied in batches to data that is longer than memory."""

from headrace.apply.batched import batched
from headrace.apply.mapping import map_batches
from headrace.apply.tokens import tokenize_files

__all__ = ["batched", "map_batches", "tokenize_files"]
