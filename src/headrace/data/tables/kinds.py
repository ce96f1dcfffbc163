"""Arrow's types: which are numbers, which are one in several encodings, and images among structs.

Dictionaries, run ends, views, extensions and the large and small forms of a type are ways of
writing it down. They are plain here: ``large_string``, ``large_binary``, ``large_list``, and what
they hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from headrace.data.gatherer import Leaf
from headrace.extras import import_extra
from headrace.tree import TORCH_DTYPES

_ENDS_OF_IMAGES = (b"ftypavif", b"ftypheic", b"ftypmif1", b"ftypmsf1")
_STARTS_OF_IMAGES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*"),
    *(
        b"\0\0\0\x0cjP  ",
        b"\xff\x4f\xff\x51",
        *(b"P%d%c" % (n, c) for n in range(1, 7) for c in b" \n"),
    ),
)
_SNIFFED_ROWS = 16
_SNIFFED_BATCHES = 64


def is_number(kind: Any) -> bool:
    """Say whether an Arrow type is one of torch's numbers."""
    types = import_extra("pyarrow", "tables").types
    return bool(types.is_integer(kind) or types.is_floating(kind))


def is_time(kind: Any) -> bool:
    """Say whether a type counts from somewhere: dates, times, timestamps, durations."""
    types = import_extra("pyarrow", "tables").types
    return bool(types.is_temporal(kind) and not types.is_interval(kind))


def becomes_number(kind: Any) -> bool:
    """Say whether a plain type has one plain meaning as a number."""
    types = import_extra("pyarrow", "tables").types
    return is_number(kind) or types.is_boolean(kind) or is_time(kind) or types.is_decimal(kind)


def unit_of(kind: Any) -> str | None:
    """Return what the numbers of a date or time count; None for other types."""
    types = import_extra("pyarrow", "tables").types
    kind = plain_kind(kind)
    if not is_time(kind):
        return None
    if types.is_date(kind):
        return "days since 1970-01-01"
    if types.is_timestamp(kind):
        zone = " UTC" if kind.tz else ""
        return f"{kind.unit} since 1970-01-01{zone}"
    return f"{kind.unit} since midnight" if types.is_time(kind) else str(kind.unit)


def units_of(schema: Any, names: Iterable[str]) -> dict[str, str]:
    """Return the units of those columns of a schema that are dates or times."""
    found = {n: unit_of(schema.field(n).type) for n in names if n in schema.names}
    return {name: unit for name, unit in found.items() if unit is not None}


def leaf_of(kind: Any) -> Leaf | None:
    """Return what a column of a plain type is in a batch, None where it is no tensor."""
    types = import_extra("pyarrow", "tables").types
    shape: tuple[int, ...] = ()
    while types.is_fixed_size_list(kind):
        shape, kind = (*shape, kind.list_size), kind.value_type
    if is_time(kind):
        return Leaf(shape, torch.int64)
    if types.is_decimal(kind):
        return Leaf(shape, torch.float64)
    if not becomes_number(kind):
        return None
    return Leaf(shape, TORCH_DTYPES[np.dtype(kind.to_pandas_dtype())])


def is_list(kind: Any) -> bool:
    """Say whether a type is one of lists of any length, however they are written down."""
    types = import_extra("pyarrow", "tables").types
    checks = ("is_list", "is_large_list", "is_list_view", "is_large_list_view")
    return any(getattr(types, check, _no)(kind) for check in checks)


def _no(_: Any) -> bool:
    return False


def is_text(kind: Any) -> bool:
    """Say whether a type is text, however it is written down."""
    types = import_extra("pyarrow", "tables").types
    checks = ("is_string", "is_large_string", "is_string_view")
    return any(getattr(types, check, _no)(kind) for check in checks)


def is_bytes(kind: Any) -> bool:
    """Say whether a type is byte strings, however they are written down."""
    types = import_extra("pyarrow", "tables").types
    checks = ("is_binary", "is_large_binary", "is_binary_view", "is_fixed_size_binary")
    return any(getattr(types, check, _no)(kind) for check in checks)


def tensor_order(kind: Any) -> tuple[int, ...] | None:
    """Return in which order a type of tensors stores their dimensions; None for other types."""
    if getattr(kind, "extension_name", "") != "arrow.fixed_shape_tensor":
        return None
    order = kind.permutation
    return tuple(range(len(kind.shape)) if order is None else order)


def plain_kind(kind: Any) -> Any:  # noqa: PLR0911 - one for each kind of type
    """Return what a type is apart from how it is written down."""
    pa = import_extra("pyarrow", "tables")
    types = pa.types
    if (order := tensor_order(kind)) is not None:
        made = kind.value_type
        for dimension in reversed(order):
            made = pa.list_(made, kind.shape[dimension])
        return made
    if isinstance(kind, pa.BaseExtensionType):
        return plain_kind(kind.storage_type)
    if types.is_dictionary(kind) or getattr(types, "is_run_end_encoded", _no)(kind):
        return plain_kind(kind.value_type)
    if is_text(kind):
        return pa.large_string()
    if is_bytes(kind):
        return pa.large_binary()
    if types.is_fixed_size_list(kind):
        return pa.list_(plain_kind(kind.value_type), kind.list_size)
    if is_list(kind):
        return pa.large_list(plain_kind(kind.value_type))
    if types.is_map(kind):
        return pa.map_(plain_kind(kind.key_type), plain_kind(kind.item_type))
    if types.is_struct(kind):
        return pa.struct([(f.name, plain_kind(f.type)) for f in kind])
    return kind


def plain_array(array: Any) -> Any:  # noqa: PLR0911 - one for each kind of type
    """Return an array without the encoding of its values; those inside them stay as they are."""
    pa = import_extra("pyarrow", "tables")
    types, kind = pa.types, array.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain_array(array.storage)
    if types.is_dictionary(kind):
        return plain_array(array.dictionary_decode())
    if getattr(types, "is_run_end_encoded", _no)(kind):
        compute = import_extra("pyarrow.compute", "tables")
        return plain_array(compute.run_end_decode(array))
    if is_text(kind):
        return array.cast(pa.large_string())
    if is_bytes(kind):
        return array.cast(pa.large_binary())
    if types.is_map(kind):
        entry = pa.struct([("key", kind.key_type), ("value", kind.item_type)])
        return array.cast(pa.list_(entry))
    return array


def is_image_struct(kind: Any) -> bool:
    """Say whether a type is ``{bytes, path}``, as images and sounds are published."""
    types = import_extra("pyarrow", "tables").types
    if not types.is_struct(kind) or sorted(field.name for field in kind) != ["bytes", "path"]:
        return False
    inside = {field.name: plain_kind(field.type) for field in kind}
    text = is_text(inside["path"]) or types.is_null(inside["path"])
    return is_bytes(inside["bytes"]) and text


def may_hold_images(kind: Any) -> bool:
    """Say whether there is such a struct anywhere in a plain type."""
    types = import_extra("pyarrow", "tables").types
    if types.is_struct(kind):
        return is_image_struct(kind) or any(may_hold_images(field.type) for field in kind)
    if types.is_map(kind):
        return may_hold_images(kind.item_type)
    return bool(
        (is_list(kind) or types.is_fixed_size_list(kind)) and may_hold_images(kind.value_type)
    )


def image_places(array: Any, name: str) -> dict[str, bool]:
    """Return the places of such structs in an array that have bytes: are those of images?

    The first that are not missing tell. A place is a column's name and the way inside:
    ``"pages[].image"``.
    """
    types = import_extra("pyarrow", "tables").types
    array = plain_array(array)
    if is_image_struct(array.type):
        known = array.field("bytes") if not array.null_count else array.drop_null().field("bytes")
        first = next((value.as_py() for value in known if value.is_valid), None)
        return {} if first is None else {name: looks_like_image(first)}
    found: dict[str, bool] = {}
    if types.is_struct(array.type):
        for field, values in zip(array.type, array.flatten(), strict=True):
            found |= image_places(values, f"{name}.{field.name}")
    elif is_list(array.type) or types.is_fixed_size_list(array.type):
        found |= image_places(array.flatten(), f"{name}[]")
    return found


def find_images(batches: Any, name: str) -> frozenset[str]:
    """Return the places of images in a column, of which ``batches`` are the first rows."""
    found: dict[str, bool] = {}
    for _, batch in zip(range(_SNIFFED_BATCHES), batches, strict=False):
        found = image_places(batch, name)
        if found:
            break
    return frozenset(place for place, is_image in found.items() if is_image)


def first_batches(column: Any) -> Any:
    """Yield the first rows of a ``ChunkedArray``, a few at a time."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), _SNIFFED_ROWS):
            yield chunk.slice(start, _SNIFFED_ROWS)


def first_batches_of_file(file: Any, name: str) -> Any:
    """Yield the first rows of a column of a ``ParquetFile``; no row group is read as a whole."""
    for batch in file.iter_batches(_SNIFFED_ROWS, columns=[name], use_threads=False):
        yield batch.column(batch.schema.get_field_index(name))


def looks_like_image(data: bytes) -> bool:
    """Say whether bytes begin as those of an image do: not whether they can be decoded."""
    if data.startswith(b"RIFF"):
        return data[8:12] == b"WEBP"  # and WAVE is a sound
    return data.startswith(_STARTS_OF_IMAGES) or data[4:12] in _ENDS_OF_IMAGES
