"""A view on the terminal: what it is, a batch, the classes, the first samples."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.cli.peek.looking import View

_MOST_CLASSES = 20
_MOST_CATEGORIES = 8
_MOST_COLUMNS = 60
_BAR = 24
_SHORT = 20  # a column's width, if there is no room for more
_GAP = 3  # between two columns
_NUMBERS = 4


def show(view: View, console: Console | None = None) -> None:
    """Print a view, at the width of the terminal."""
    console = console or Console(highlight=False)
    facts = view.facts
    samples = "a stream" if facts["samples"] is None else f"{facts['samples']:,} samples"
    console.print(f"[bold]{_escaped(facts['source'])}[/]   {facts['dataset']}, {samples}")
    if "problem" in facts:
        console.print(f"\nAs it is, this is an error; here it is read with {facts['opened_with']}:")
        console.print(Text(facts["problem"]), style="yellow")
    _show_batch(facts["batch"], console)
    if facts.get("classes"):
        _show_classes(facts["classes"], console)
    if facts["rows"]:
        _show_rows(facts["rows"], console)
    for name, unit in facts.get("units", {}).items():
        console.print(Text(f"  {name}: {unit}"), style="dim")
    if columns := facts.get("columns"):
        _show_columns(columns, facts["categories"], console)
    for doubt in facts.get("doubts", ()):
        degree = "An error, unless on_doubt='warn'" if doubt["sure"] else "Doubtful"
        console.print(Text(f"\n{degree}: {doubt['text']}"), style="yellow")
    if "picture" in facts:
        count = min(len(view.images), 64)
        console.print(f"\n{count} images of the batch are in [bold]{_escaped(facts['picture'])}[/]")
    elif view.images:
        console.print("\nThere are images in it: [bold]--out grid.png[/] draws them.")


def _show_batch(batch: Mapping[str, Any], console: Console) -> None:
    console.print(f"\n[bold]A batch of {batch['size']}[/]")
    if "problem" in batch:
        console.print("The default collation cannot make one of these samples:", style="yellow")
        console.print(Text(batch["problem"]), style="yellow")
        return
    table = _table("", "shape", "dtype", "values")
    for leaf in batch["leaves"]:
        shape = "(" + ", ".join(map(str, leaf["shape"])) + ("," * (len(leaf["shape"]) == 1)) + ")"
        table.add_row(*map(Text, (leaf["path"], shape, leaf["dtype"], _range(leaf))))
    console.print(table)


def _range(leaf: Mapping[str, Any]) -> str:
    if "lengths" in leaf:
        low, high = leaf["lengths"]
        return f"{low:,} long" if low == high else f"{low:,} to {high:,} long"
    if "min" not in leaf:
        return f"{leaf['nan']:,} NaN" if "nan" in leaf else ""
    missing = f", {leaf['nan']:,} NaN" if "nan" in leaf else ""
    if leaf["min"] == leaf["max"]:
        return f"all {_number(leaf['min'])}{missing}"
    return f"{_number(leaf['min'])} to {_number(leaf['max'])}{missing}"


def _number(value: Any) -> str:
    return f"{value:.{_NUMBERS}g}" if isinstance(value, float) else str(value)


def _show_classes(classes: Mapping[str, int], console: Console) -> None:
    console.print(f"\n[bold]{len(classes):,} classes[/] in the whole of it")
    table = _table("", "samples", "", header=False)
    largest = max(classes.values())
    for name, count in list(classes.items())[:_MOST_CLASSES]:
        bar = "█" * max(1, round(_BAR * count / largest))
        table.add_row(Text(name), Text(f"{count:,}", justify="right"), Text(bar, style="cyan"))
    console.print(table)
    if len(classes) > _MOST_CLASSES:
        console.print(f"  and {len(classes) - _MOST_CLASSES:,} more", style="dim")


def _show_rows(rows: Sequence[Any], console: Console) -> None:
    noun = "sample" if len(rows) == 1 else f"{len(rows)} samples"
    console.print(f"\n[bold]The first {noun}[/]")
    cells = [_cells(row) for row in rows]
    names = list(dict.fromkeys(name for row in cells for name in row))
    widths = {n: max(len(n), *(len(row.get(n, "")) for row in cells)) for n in names}
    fitting = _fitted(widths, console.width - 2)
    table = _table(header=names != [""])
    for name, width in fitting.items():
        table.add_column(Text(name), width=width, no_wrap=True, overflow="ellipsis")
    for row in cells:
        table.add_row(*(Text(row.get(name, "")) for name in fitting))
    console.print(table)
    if len(fitting) < len(names):
        console.print(f"  and {len(names) - len(fitting):,} more columns", style="dim")


def _show_columns(
    columns: Sequence[Mapping[str, Any]], categories: Mapping[str, Sequence[str]], console: Console
) -> None:
    console.print("\n[bold]The columns[/] in the whole of it")
    rows: list[tuple[str, ...]] = [("", "taken as", "values", "missing")]
    for column in columns[:_MOST_COLUMNS]:
        kind = column["kind"] + (", the target" if column["role"] == "target" else "")
        absent = f"{column['missing']:,}" if column["missing"] else ""
        values = _values(column, categories.get(column["name"]))
        rows.append((_cell(column["name"]) or "(no name)", kind, values, absent))
    if not any(row[3] for row in rows[1:]):
        rows = [row[:3] for row in rows]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    widths[0] = min(widths[0], _SHORT)
    room = console.width - 2 - _GAP * len(widths) - sum(widths[:2] + widths[3:])
    widths[2] = max(_SHORT, min(widths[2], room))
    table = _table()
    for name, width in zip(rows[0], widths, strict=True):
        side: Any = "right" if name == "missing" else "left"
        table.add_column(Text(name), width=width, justify=side, no_wrap=True, overflow="ellipsis")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    console.print(table)
    if len(columns) > _MOST_COLUMNS:
        console.print(f"  and {len(columns) - _MOST_COLUMNS:,} more", style="dim")


def _values(column: Mapping[str, Any], texts: Sequence[str] | None) -> str:
    if texts is not None:
        return _numbered(texts)
    return f"{column['categories']:,} classes" if "categories" in column else _range(column)


def _numbered(texts: Sequence[str]) -> str:
    shown = ", ".join(f"{code} {_cell(text)}" for code, text in enumerate(texts[:_MOST_CATEGORIES]))
    more = len(texts) - _MOST_CATEGORIES
    return f"{shown} and {more:,} more" if more > 0 else shown


def _fitted(widths: Mapping[str, int], room: int) -> dict[str, int]:
    """Return the columns that have room, and how wide each is: the first ones, shortened."""
    fitting: dict[str, int] = {}
    for name, width in widths.items():
        shortened = min(width, _SHORT)
        if fitting and room < shortened + _GAP:
            break
        fitting[name] = shortened
        room -= shortened + _GAP
    for name, width in fitting.items():
        more = max(0, min(room, widths[name] - width))
        fitting[name] = width + more
        room -= more
    return fitting


def _cells(row: Any) -> dict[str, str]:
    if isinstance(row, Mapping):
        return {str(key): _cell(value) for key, value in row.items()}
    if isinstance(row, list) and any(isinstance(v, (str, list, dict)) for v in row):
        return {f"[{i}]": _cell(value) for i, value in enumerate(row)}
    return {"": _cell(row)}


def _cell(value: Any) -> str:
    if isinstance(value, list):
        shown = " ".join(_cell(v) for v in value[:12])
        return f"[{shown}{' …' if len(value) > 12 else ''}]"
    if isinstance(value, str):
        return value if value.isprintable() else repr(value)[1:-1]
    return _number(value)


def _table(*names: str, header: bool = True) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD if header else None, show_header=header, padding=(0, 1), pad_edge=True
    )
    for name in names:
        table.add_column(Text(name), overflow="ellipsis", no_wrap=True)
    return table


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
