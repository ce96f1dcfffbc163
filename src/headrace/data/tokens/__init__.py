"""Language-model data: files of tokens, and blocks of them to train on."""

from headrace.data.tokens.blocks import TokenBlocks
from headrace.data.tokens.file import TokenFile
from headrace.data.tokens.packed import PackedBlocks, cu_seqlens

__all__ = ["PackedBlocks", "TokenBlocks", "TokenFile", "cu_seqlens"]
