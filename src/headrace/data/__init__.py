"""Datasets and sources: what the samples are and how they are read."""

from torch.utils.data import ChainDataset, ConcatDataset, StackDataset, Subset, TensorDataset

from headrace.data.arrays import ArrayDataset
from headrace.data.cached import CachedDataset, cached
from headrace.data.columns import columns
from headrace.data.compose import (
    FilteredDataset,
    FilteredStream,
    MappedDataset,
    MappedStream,
    Source,
    StreamSource,
)
from headrace.data.gatherer import Gatherer, Leaf
from headrace.data.images import (
    CIFAR10,
    CIFAR100,
    EMNIST,
    KMNIST,
    MNIST,
    FashionMNIST,
    ImageDecoder,
    ImageFolder,
)
from headrace.data.shards import MDSDataset, TarDataset, write_shards
from headrace.data.shared_list import SharedList
from headrace.data.split import LeakWarning, chronological_split, random_split, stratified_split
from headrace.data.sql import SQLDataset
from headrace.data.tables import (
    CSVDataset,
    ParquetDataset,
    PreparedColumns,
    RowGroupSampler,
    TableDataset,
    prepare_columns,
)
from headrace.data.text import JSONLines, StreamedJSONLines, StreamedTextLines, TextLines
from headrace.data.tokens import PackedBlocks, TokenBlocks, TokenFile, cu_seqlens
from headrace.data.windows import SlidingWindows

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "EMNIST",
    "KMNIST",
    "MNIST",
    "ArrayDataset",
    "CSVDataset",
    "CachedDataset",
    "ChainDataset",
    "ConcatDataset",
    "FashionMNIST",
    "FilteredDataset",
    "FilteredStream",
    "Gatherer",
    "ImageDecoder",
    "ImageFolder",
    "JSONLines",
    "Leaf",
    "LeakWarning",
    "MDSDataset",
    "MappedDataset",
    "MappedStream",
    "PackedBlocks",
    "ParquetDataset",
    "PreparedColumns",
    "RowGroupSampler",
    "SQLDataset",
    "SharedList",
    "SlidingWindows",
    "Source",
    "StackDataset",
    "StreamSource",
    "StreamedJSONLines",
    "StreamedTextLines",
    "Subset",
    "TableDataset",
    "TarDataset",
    "TensorDataset",
    "TextLines",
    "TokenBlocks",
    "TokenFile",
    "cached",
    "chronological_split",
    "columns",
    "cu_seqlens",
    "prepare_columns",
    "random_split",
    "stratified_split",
    "write_shards",
]
