"""Samples that lie in shards: tar files, as WebDataset writes them, and Mosaic's MDS."""

from headrace.data.shards.mds import MDSDataset
from headrace.data.shards.tar import TarDataset
from headrace.data.shards.write import write_shards

__all__ = ["MDSDataset", "TarDataset", "write_shards"]
