"""What to choose: batch size, learning rate, and who makes the batches."""

from headrace.tune.batch_size import BatchSizeReport, Trial, find_batch_size
from headrace.tune.learning_rate import (
    LearningRateReport,
    LearningRateRow,
    find_learning_rate,
)
from headrace.tune.num_workers import WorkersReport, WorkersRow, find_num_workers
from headrace.tune.sweep import SweepReport, SweepRow, sweep_batch_sizes

__all__ = [
    "BatchSizeReport",
    "LearningRateReport",
    "LearningRateRow",
    "SweepReport",
    "SweepRow",
    "Trial",
    "WorkersReport",
    "WorkersRow",
    "find_batch_size",
    "find_learning_rate",
    "find_num_workers",
    "sweep_batch_sizes",
]
