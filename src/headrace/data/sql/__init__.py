"""Rows of databases: SQLite, PostgreSQL and DuckDB, by ADBC."""

from headrace.data.sql.dataset import SQLDataset

__all__ = ["SQLDataset"]
