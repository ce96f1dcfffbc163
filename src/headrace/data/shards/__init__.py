"""Samples that lie in shards: tar files, as WebDataset writes them."""

from headrace.data.shards.tar import TarDataset

__all__ = ["TarDataset"]
