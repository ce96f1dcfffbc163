"""Samples to a batch of shape ``(batch, ...)``: stacked, padded, ragged, packed."""

from headrace.collate.stack import default_collate

__all__ = ["default_collate"]
