"""Tables: CSV and Parquet files, Arrow tables, polars and pandas frames, Hugging Face datasets."""

from headrace.data.tables import huggingface  # noqa: F401 it joins the gather protocol
from headrace.data.tables.csv import CSVDataset
from headrace.data.tables.frames import TableDataset, as_dataset
from headrace.data.tables.parquet import ParquetDataset
from headrace.data.tables.prepare import PreparedColumns, prepare_columns
from headrace.data.tables.row_groups import RowGroupSampler

__all__ = [
    "CSVDataset",
    "ParquetDataset",
    "PreparedColumns",
    "RowGroupSampler",
    "TableDataset",
    "as_dataset",
    "prepare_columns",
]
