"""Samples that lie in shards: tar files, as WebDataset writes them."""

from headrace.data.shards.tar import TarDataset
from headrace.data.shards.write import write_shards

__all__ = ["TarDataset", "write_shards"]
