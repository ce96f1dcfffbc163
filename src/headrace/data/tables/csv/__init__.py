"""CSV files: how they are written, what their columns are, and what is doubted about them."""

from headrace.data.tables.csv.dataset import CSVDataset

__all__ = ["CSVDataset"]
