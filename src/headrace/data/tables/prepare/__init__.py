"""From columns as people have them to tensors: what is learnt of one split, applied to others."""

from headrace.data.tables.prepare.prepared import PreparedColumns, prepare_columns

__all__ = ["PreparedColumns", "prepare_columns"]
