"""Which samples, in which order, in which groups."""

from headrace.sampling.distributed import DistributedSampler
from headrace.sampling.random import RandomSampler
from headrace.sampling.ranks import Shard

__all__ = ["DistributedSampler", "RandomSampler", "Shard"]
