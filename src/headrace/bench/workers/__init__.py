"""``headrace bench workers``: batches made by worker processes, and how those start and end."""

from headrace.bench.harness import Report, Say, Size, environment
from headrace.bench.workers.closing import closing_stuck
from headrace.bench.workers.starts import first_forked, first_of_many_forkserver, second_epoch
from headrace.bench.workers.throughput import against_torch, beside_bare_loops

_MEANING = (
    "both loaders in turn in each round, medians; a ratio is the median of the rounds' ratios; "
    "nothing is done with a batch; workers are forked unless a row says otherwise",
    "throughput counts the batches after those that may be ready when the first one comes (2 a "
    "worker), so that neither the workers' start nor what they had ready counts",
    "CPU seconds are those of the user's process and all processes below it, from before iter() "
    "until the workers have ended; memory is their proportional set size at its peak, less before "
    "iter(), in a run of its own",
)


def measure(size: Size, say: Say) -> Report:
    """Measure all rows; takes a few minutes, most of them torch's."""
    where = environment()
    rows = [
        *against_torch(size, say),
        beside_bare_loops(size, say),
        first_forked(size, say),
        first_of_many_forkserver(size, say),
        second_epoch(size, say),
        closing_stuck(size, say),
    ]
    return Report("workers", _MEANING, tuple(rows), size, where)
