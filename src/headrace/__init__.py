"""headrace: a drop-in PyTorch ``DataLoader`` and the batching around it.

Names that ``torch.utils.data`` has too mean the same here, so a program moves over by its imports.
"""

from importlib import import_module
from typing import Any

from torch.utils.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    Dataset,
    IterableDataset,
    Sampler,
    SequentialSampler,
    StackDataset,
    Subset,
    TensorDataset,
    default_convert,
    get_worker_info,
)

from headrace.apply import batched, map_batches, tokenize_files
from headrace.collate import (
    Masked,
    Packed,
    Padded,
    PaddedMasked,
    collate_by_key,
    default_collate,
    iter_batches,
    jagged_collate,
    numpy_collate,
    pack_collate,
    pad_collate,
    stack_batch,
    unpad,
)
from headrace.data.arrays import ArrayDataset
from headrace.data.columns import columns
from headrace.data.gatherer import Gatherer, Leaf
from headrace.data.shared_list import SharedList
from headrace.data.split import LeakWarning, chronological_split, random_split, stratified_split
from headrace.data.windows import SlidingWindows
from headrace.engine.stats import Statistics
from headrace.engine.task import SkippedSample
from headrace.errors import (
    ArrayMismatchError,
    ArrayTypeError,
    CollateError,
    DatasetStoppedError,
    HeadraceError,
    InUseError,
    MissingColumnError,
    MissingExtraError,
    MissingKeyError,
    NotCollatableError,
    OptionError,
    RowMismatchError,
    SampleIndexError,
    ShapeMismatchError,
    SourceChangedError,
    SourceError,
    SourceWarning,
    StateError,
    TooManySkippedError,
    TrainingError,
    TruncatedFileError,
    WorkerDiedError,
    WorkerStartError,
    WorkerTimeoutError,
)
from headrace.install import Installation, install, installed, uninstall
from headrace.loader import DataLoader
from headrace.memory import alloc
from headrace.rng import TaskRng, task_rng
from headrace.sampling import (
    BucketBatchSampler,
    ClassBalancedSampler,
    DistributedSampler,
    GroupSampler,
    PackedBatchSampler,
    PlannedBatchSampler,
    RandomSampler,
    StratifiedBatchSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Load ``headrace.train`` and ``headrace.tune`` when they are first asked for."""
    if name in ("train", "tune"):
        return import_module(f"headrace.{name}")
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")


__all__ = [
    "ArrayDataset",
    "ArrayMismatchError",
    "ArrayTypeError",
    "BatchSampler",
    "BucketBatchSampler",
    "ChainDataset",
    "ClassBalancedSampler",
    "CollateError",
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "DatasetStoppedError",
    "DistributedSampler",
    "Gatherer",
    "GroupSampler",
    "HeadraceError",
    "InUseError",
    "Installation",
    "IterableDataset",
    "Leaf",
    "LeakWarning",
    "Masked",
    "MissingColumnError",
    "MissingExtraError",
    "MissingKeyError",
    "NotCollatableError",
    "OptionError",
    "Packed",
    "PackedBatchSampler",
    "Padded",
    "PaddedMasked",
    "PlannedBatchSampler",
    "RandomSampler",
    "RowMismatchError",
    "SampleIndexError",
    "Sampler",
    "SequentialSampler",
    "ShapeMismatchError",
    "SharedList",
    "SkippedSample",
    "SlidingWindows",
    "SourceChangedError",
    "SourceError",
    "SourceWarning",
    "StackDataset",
    "StateError",
    "Statistics",
    "StratifiedBatchSampler",
    "Subset",
    "SubsetRandomSampler",
    "TaskRng",
    "TensorDataset",
    "TooManySkippedError",
    "TrainingError",
    "TruncatedFileError",
    "WeightedRandomSampler",
    "WorkerDiedError",
    "WorkerStartError",
    "WorkerTimeoutError",
    "alloc",
    "batched",
    "chronological_split",
    "collate_by_key",
    "columns",
    "default_collate",
    "default_convert",
    "get_worker_info",
    "install",
    "installed",
    "iter_batches",
    "jagged_collate",
    "map_batches",
    "numpy_collate",
    "pack_collate",
    "pad_collate",
    "random_split",
    "stack_batch",
    "stratified_split",
    "task_rng",
    "tokenize_files",
    "uninstall",
    "unpad",
]
