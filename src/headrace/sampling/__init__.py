"""Which samples, in which order, in which groups."""

from headrace.sampling.balanced import ClassBalancedSampler
from headrace.sampling.buckets import BucketBatchSampler
from headrace.sampling.distributed import DistributedSampler
from headrace.sampling.groups import GroupSampler
from headrace.sampling.packing import PackedBatchSampler
from headrace.sampling.planned import PlannedBatchSampler
from headrace.sampling.random import RandomSampler
from headrace.sampling.ranks import Shard
from headrace.sampling.stratified import StratifiedBatchSampler
from headrace.sampling.subset import SubsetRandomSampler
from headrace.sampling.weighted import WeightedRandomSampler

__all__ = [
    "BucketBatchSampler",
    "ClassBalancedSampler",
    "DistributedSampler",
    "GroupSampler",
    "PackedBatchSampler",
    "PlannedBatchSampler",
    "RandomSampler",
    "Shard",
    "StratifiedBatchSampler",
    "SubsetRandomSampler",
    "WeightedRandomSampler",
]
