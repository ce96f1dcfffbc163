"""Which batches, in which order: samplers, ranks, and where an order stands."""

from headrace.engine.order.ranks import ShardOption, which_rank
from headrace.engine.order.samplers import batch_size_of, generators_of, order_sampler
from headrace.engine.order.state import Shape

__all__ = [
    "Shape",
    "ShardOption",
    "batch_size_of",
    "generators_of",
    "order_sampler",
    "which_rank",
]
