"""headrace: a drop-in PyTorch ``DataLoader`` and the batching around it.

Names that ``torch.utils.data`` has too mean the same here, so a program moves over by its imports.
"""

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
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_convert,
    get_worker_info,
    random_split,
)

from headrace.collate import default_collate
from headrace.data.arrays import ArrayDataset
from headrace.data.gather import Gatherer, Leaf, columns
from headrace.engine.stats import Statistics
from headrace.errors import (
    ArrayMismatchError,
    ArrayTypeError,
    CollateError,
    DatasetStoppedError,
    HeadraceError,
    MissingKeyError,
    NotCollatableError,
    OptionError,
    SampleIndexError,
    ShapeMismatchError,
    StateError,
    TruncatedFileError,
    WorkerDiedError,
    WorkerStartError,
    WorkerTimeoutError,
)
from headrace.loader import DataLoader
from headrace.memory import alloc
from headrace.sampling.distributed import DistributedSampler
from headrace.sampling.random import RandomSampler

__version__ = "0.1.0"

__all__ = [
    "ArrayDataset",
    "ArrayMismatchError",
    "ArrayTypeError",
    "BatchSampler",
    "ChainDataset",
    "CollateError",
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "DatasetStoppedError",
    "DistributedSampler",
    "Gatherer",
    "HeadraceError",
    "IterableDataset",
    "Leaf",
    "MissingKeyError",
    "NotCollatableError",
    "OptionError",
    "RandomSampler",
    "SampleIndexError",
    "Sampler",
    "SequentialSampler",
    "ShapeMismatchError",
    "StackDataset",
    "StateError",
    "Statistics",
    "Subset",
    "SubsetRandomSampler",
    "TensorDataset",
    "TruncatedFileError",
    "WeightedRandomSampler",
    "WorkerDiedError",
    "WorkerStartError",
    "WorkerTimeoutError",
    "alloc",
    "columns",
    "default_collate",
    "default_convert",
    "get_worker_info",
    "random_split",
]
