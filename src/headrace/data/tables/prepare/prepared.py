"""Scaling, filling in, categories and dates, learnt from one part of the rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.data.gatherer import Array
from headrace.data.tables.csv.dates import given
from headrace.data.tables.prepare.kinds import KINDS, Asked, Category, Kind, learn
from headrace.data.tables.prepare.values import columns_of
from headrace.errors import MissingColumnError, OptionError, SourceError, SourceWarning
from headrace.notices import warn_user
from headrace.written import written_whole

_FORM = 1


class PreparedColumns:
    """What `prepare_columns` has learnt: call it with any rows, and it makes tensors of them.

    ``numbers, codes = prepared(table)``: float32 of shape (rows, width), and int64 of shape
    (rows, categories), a column for each of `category_sizes`.

    Attributes:
        left_out: a dict from the columns that are not used to why: ids, sentences, constants.
        notes: a dict from columns to what may not be meant, as which of day and month comes first.
    """

    def __init__(
        self, kinds: Sequence[Kind], left_out: Mapping[str, str], notes: Mapping[str, str]
    ) -> None:
        self._kinds = tuple(kinds)
        self.left_out = dict(left_out)
        self.notes = dict(notes)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns that are used."""
        return tuple(kind.name for kind in self._kinds)

    @property
    def width(self) -> int:
        """How many numbers stand for the columns that are no categories."""
        return sum(kind.width for kind in self._kinds if not isinstance(kind, Category))

    @property
    def category_sizes(self) -> tuple[int, ...]:
        """How many codes each column of categories has; 0 is for what training has not seen."""
        return tuple(kind.size for kind in self._kinds if isinstance(kind, Category))

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """The texts of each column of categories, by their codes from 1 on."""
        return {kind.name: kind.texts for kind in self._kinds if isinstance(kind, Category)}

    def __call__(self, table: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tensors of a table, of the kinds that `prepare_columns` takes.

        Raises:
            MissingColumnError: a column that was learnt is not there.

        Warns:
            SourceWarning: texts where numbers or dates were learnt; they count as missing.
        """
        columns = columns_of(table)
        absent = [name for name in self.column_names if name not in columns]
        if absent:
            raise MissingColumnError(
                f"the columns {absent} were learnt, and the table has {sorted(columns)}. Give it "
                f"those too, or leave them out: prepare_columns(train, columns=[...])."
            )
        rows = len(next(iter(columns.values()))) if columns else 0
        numbers: list[Array] = [np.zeros((rows, 0), np.float32)]
        codes: list[Array] = []
        for kind in self._kinds:
            column = columns[kind.name]
            if isinstance(kind, Category):
                codes.append(kind.codes(column))
                continue
            _tell_of_unread(kind, column)
            numbers.append(kind.numbers(column))
        joined = np.concatenate(numbers, 1)
        coded = np.stack(codes, 1) if codes else np.zeros((rows, 0), np.int64)
        return torch.from_numpy(joined), torch.from_numpy(coded)

    def to_json(self) -> str:
        """Return all that was learnt as JSON text."""
        kinds = [{"kind": kind.kind, **asdict(kind)} for kind in self._kinds]
        state = {"form": _FORM, "columns": kinds, "left_out": self.left_out, "notes": self.notes}
        return json.dumps(state, ensure_ascii=False, allow_nan=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> PreparedColumns:
        """Return what was learnt, of what `to_json` wrote.

        Raises:
            SourceError: it is something else.
        """
        try:
            state = json.loads(text)
            if state["form"] != _FORM:
                raise ValueError(f"form {state['form']}")
            kinds = [_kind_of(dict(column)) for column in state["columns"]]
            return cls(kinds, state["left_out"], state["notes"])
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f"this is no JSON of PreparedColumns ({error!r:.200}). Make it anew: "
                f"prepare_columns(train).save(path)."
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a JSON file, whole or not at all."""
        with written_whole(Path(path)) as file:
            file.write(f"{self.to_json()}\n".encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PreparedColumns:
        """Read what `save` wrote."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))

    def __repr__(self) -> str:
        return (
            f"PreparedColumns({len(self._kinds)} columns: {self.width} numbers, "
            f"{len(self.category_sizes)} of categories; {len(self.left_out)} left out)"
        )


def prepare_columns(
    train: Any,
    columns: str | Sequence[str] | None = None,
    *,
    categories: str | Sequence[str] = (),
    dates: str | Sequence[str] | Mapping[str, str | None] = (),
    decimal: str | None = None,
) -> PreparedColumns:
    """Learn from the rows of the training split what makes tensors of a table's columns.

    Numbers, also those written as text ("1.234,5", "12 %"), are scaled to mean 0 and spread 1;
    where one is missing stands the median, and a second number says so. Texts are categories;
    code 0 is for those that training has seen once or never. Dates become a scaled time, and
    points of a circle for the time of the year, the week and the day. Left out is what says
    nothing about other rows: ids, names and sentences (a text of its own in most rows), constants.

    Args:
        train: the training rows alone: a dict of columns, a ``pyarrow.Table``, a polars or pandas
            frame, a `TableDataset`, `ParquetDataset` or `CSVDataset`, or a ``Subset`` of one. What
            validation and test are told of, a model must not learn.
        columns: the columns to use, whatever they look like; None finds those that can be used.
        categories: columns of numbers that are names, as postal codes.
        dates: columns of dates; or a dict from name to format, as ``{"day": "%d.%m.%Y"}``.
        decimal: "." or "," before decimals; None finds it for each column.

    Raises:
        SourceError: no rows, or no column that can be used.
        MissingColumnError: a column that is not there.
        ArrayTypeError: no table, or values that are neither numbers, dates nor texts.
    """
    if decimal not in (None, ".", ","):
        raise OptionError(f"decimal={decimal!r}: write decimal='.', decimal=',' or leave it out.")
    found = columns_of(train)
    named = _names(columns)
    several = _names(categories)
    formats = given(dates if isinstance(dates, Mapping) else dict.fromkeys(_names(dates)))
    for name in (*named, *several, *formats):
        if name not in found:
            raise MissingColumnError(f"there is no column {name!r}, there are {sorted(found)}.")
    if not found or not len(next(iter(found.values()))):
        raise SourceError("the training rows are none: there is nothing to learn from them.")
    asked = Asked(frozenset(named), frozenset(several), formats, decimal)
    kinds, left_out, notes = [], {}, {}
    for name in named or found:
        kind, said = learn(name, found[name], asked)
        if kind is None:
            left_out[name] = said
            continue
        kinds.append(kind)
        if said:
            notes[name] = said
    if not kinds:
        reasons = "; ".join(f"{name!r} is {why}" for name, why in left_out.items())
        raise SourceError(
            f"no column can be used: {reasons}. Write prepare_columns(train, columns=[...]) with "
            f"those to use all the same."
        )
    return PreparedColumns(kinds, left_out, notes)


def _names(names: str | Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)


def _kind_of(state: dict[str, Any]) -> Kind:
    kind: Kind = KINDS[state.pop("kind")](
        **{key: tuple(value) if isinstance(value, list) else value for key, value in state.items()}
    )
    return kind


def _tell_of_unread(kind: Any, column: Array) -> None:
    unread = kind.unread(column)
    if unread.any():
        one = column[unread][:1].tolist()[0]  # as Python writes it
        warn_user(
            f"column {kind.name!r} was learnt as {kind.kind}s, and {int(unread.sum()):,} of "
            f"{len(column):,} values are none, as {one!r:.60}: they count as missing.",
            SourceWarning,
        )
