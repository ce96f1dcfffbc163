"""What drivers give as a type of their own, as the column that it is."""

from __future__ import annotations

from typing import Any

from headrace.data.sql.statements import quoted
from headrace.data.tables.arrow import Place, column_of
from headrace.data.tables.nested import Column
from headrace.data.tables.numbers import numbers_of, texts_as_numbers
from headrace.errors import ArrayTypeError
from headrace.extras import import_extra


def column_in(array: Any, field: Any, place: Place) -> Column:
    """Return a column of rows of a database, as a Parquet file's of that type would be.

    Args:
        array: a ``pyarrow.ChunkedArray``.
        field: its field in the schema, which says what the server calls its type.
        place: where it is from.

    Raises:
        SourceError: a value that is missing, or that would not be what it is.
        ArrayTypeError: a type that has no plain meaning.
    """
    pa = import_extra("pyarrow", "sql")
    _check(field, place)
    name = quoted(place.name)
    remedy = f"Write CAST({name} AS float8) AS {name} in the query, which rounds it."
    if _is_numeric(field.type):
        texts = pa.chunked_array([chunk.storage for chunk in array.chunks], pa.string())
        numbers = texts_as_numbers(texts.combine_chunks(), place.fault_at, remedy)
        array = pa.chunked_array([numbers])
    elif pa.types.is_decimal(field.type):
        array = pa.chunked_array([numbers_of(array.combine_chunks(), place.fault_at, remedy)])
    return column_of(array, place)


def check_columns(schema: Any, where: str) -> None:
    """Check that columns can be read, before any row is.

    Raises:
        ArrayTypeError: one has a type that has no plain meaning.
    """
    pa = import_extra("pyarrow", "sql")
    for field in schema:
        place = Place(where, field.name, "error")
        _check(field, place)
        column_of(pa.chunked_array([], kind_of(field)), place)


def kind_of(field: Any) -> Any:
    """Return the Arrow type that a column has once it is read."""
    pa = import_extra("pyarrow", "sql")
    return pa.float64() if _is_numeric(field.type) else field.type


def _is_numeric(kind: Any) -> bool:
    """Say whether a type is PostgreSQL's numeric, which comes as text."""
    return getattr(kind, "type_name", "") == "numeric" and hasattr(kind, "vendor_name")


def _check(field: Any, place: Place) -> None:
    """Raise for what a server writes in a way of its own."""
    if _is_numeric(field.type):
        return
    name = quoted(place.name)
    what = _opaque_in(field.type)
    cast = f"CAST({name} AS text)"
    if what == "numeric":
        what, cast = "a list of numeric", f"CAST({name} AS float8[])"
    elif (field.metadata or {}).get(b"POSTGRESQL:type") == b"money":
        what, cast = "money", f"CAST({name} AS numeric)"
    elif import_extra("pyarrow", "sql").types.is_interval(field.type):
        what, cast = "an interval", f"extract(epoch FROM {name})"
    if what is not None:
        raise ArrayTypeError(
            f"{place.where}, column {place.name!r}: {what} makes no tensor. Write {cast} AS {name} "
            f"in the query."
        )


def _opaque_in(kind: Any) -> str | None:
    """Return the name of a type that a driver does not take apart, anywhere in a type."""
    if hasattr(kind, "vendor_name"):
        return str(kind.type_name)
    inside = [kind.field(number) for number in range(kind.num_fields)]
    return next((found for f in inside if (found := _opaque_in(f.type)) is not None), None)
