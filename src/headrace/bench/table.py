"""A report as people read it: a table in a terminal, a Markdown table elsewhere."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from headrace.bench.harness import Report, Row, Spread, System

_HEADINGS = ("work", "figure", "measured", "target", "reached", "systems")


def print_report(report: Report, console: Console) -> None:
    """Print the report's rows, each with its target and whether that was reached."""
    if console.is_terminal:
        console.print(_framed(report))
    else:
        _print_markdown(report, console)
    if report.size.quick:
        _print_line(console, "a quick run shows that all of it works; its figures mean little")
    else:
        reached = sum(row.reached for row in report.rows)
        _print_line(console, f"{reached} of {len(report.rows)} targets reached")
    for line in (*report.meaning, _where(report)):
        _print_line(console, f"- {line}")


def _framed(report: Report) -> Table:
    table = Table(*_HEADINGS, box=box.ROUNDED, show_lines=True)
    for row in report.rows:
        cells = _cells(row, "\n", quick=report.size.quick)
        work, figure, measured, target, reached, systems = cells
        colour = {"yes": "green", "no": "red"}.get(reached, "dim")
        table.add_row(
            escape(work),
            escape(figure),
            f"[bold]{measured}[/]",
            target,
            f"[{colour}]{reached}[/]",
            escape(systems),
        )
    return table


def _print_markdown(report: Report, console: Console) -> None:
    rows = [_cells(row, "; ", quick=report.size.quick) for row in report.rows]
    for cells in (_HEADINGS, ("---",) * len(_HEADINGS), *rows):
        _print_line(console, f"| {' | '.join(cells)} |")


def _print_line(console: Console, line: str) -> None:
    # A terminal's line is broken between words; what reads a pipe gets it whole.
    console.print(line, markup=False, soft_wrap=not console.is_terminal)


def _cells(row: Row, line_break: str, *, quick: bool) -> tuple[str, ...]:
    reached = "yes" if row.reached else "no"
    parts = [_system(system) for system in row.systems]
    if row.note:
        parts.append(row.note)
    return (
        row.work,
        row.figure,
        _spread(row.value, row.unit),
        f"{'>=' if row.target.kind == 'at least' else '<='} {number(row.target.bound)} {row.unit}",
        "-" if quick else reached,
        line_break.join(parts),
    )


def _system(system: System) -> str:
    parts = [f"{system.name} {number(system.figure.median)} {system.unit}"]
    if system.cpu_s is not None:
        parts.append(f"{number(system.cpu_s)} CPU s")
    if system.peak_memory_mib is not None:
        parts.append(f"{number(system.peak_memory_mib)} MiB")
    return ", ".join(parts)


def _spread(value: Spread, unit: str) -> str:
    if value.low == value.high:
        return f"{number(value.median)} {unit}"
    return f"{number(value.median)} {unit} ({number(value.low)} to {number(value.high)})"


def number(value: float) -> str:
    """Return ``value`` with three digits that count, and no exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.4f}".rstrip("0").rstrip(".")


def _where(report: Report) -> str:
    found = report.environment
    load = f", load {found['load_before']:.2f} before" if found["load_before"] is not None else ""
    return (
        f"{found['date']}, {found['processor']}, {found['cores']} cores{load}; "
        f"headrace {found['headrace']}, torch {found['torch']}, Python {found['python']}; "
        f"{report.size.rounds} {'round' if report.size.rounds == 1 else 'rounds'}"
    )
