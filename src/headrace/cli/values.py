"""Values of options, read so that a wrong one can be answered in one clear line."""

from typing import Any

import typer


def number_option(help_text: str) -> Any:
    """Return an option that takes a whole number."""
    return typer.Option(help=help_text, metavar="N", parser=_whole_number)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"must be a whole number, not {text!r}") from None
