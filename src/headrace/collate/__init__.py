"""Samples to a batch of shape ``(batch, ...)``: stacked, padded, ragged, packed."""

from headrace.collate.batches import iter_batches, stack_batch
from headrace.collate.by_key import collate_by_key
from headrace.collate.jagged import jagged_collate
from headrace.collate.numpy_arrays import numpy_collate
from headrace.collate.pack import Packed, pack_collate
from headrace.collate.pad import Masked, Padded, PaddedMasked, pad_collate, unpad
from headrace.collate.stack import default_collate

__all__ = [
    "Masked",
    "Packed",
    "Padded",
    "PaddedMasked",
    "collate_by_key",
    "default_collate",
    "iter_batches",
    "jagged_collate",
    "numpy_collate",
    "pack_collate",
    "pad_collate",
    "stack_batch",
    "unpad",
]
