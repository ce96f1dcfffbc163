"""What to choose: batch size, and who makes the batches."""

from headrace.tune.batch_size import BatchSizeReport, Trial, find_batch_size
from headrace.tune.num_workers import WorkersReport, WorkersRow, find_num_workers
from headrace.tune.sweep import SweepReport, SweepRow, sweep_batch_sizes

__all__ = [
    "BatchSizeReport",
    "SweepReport",
    "SweepRow",
    "Trial",
    "WorkersReport",
    "WorkersRow",
    "find_batch_size",
    "find_num_workers",
    "sweep_batch_sizes",
]
