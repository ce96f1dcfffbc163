"""``headrace peek``: what a loader would give of a source."""

import json
from pathlib import Path

from headrace.cli.peek.doubts import doubts_as_facts, heard
from headrace.cli.peek.looking import look
from headrace.cli.peek.opening import Asked, open_source
from headrace.cli.peek.showing import show
from headrace.cli.problems import CannotGoOn, WrongUse, need
from headrace.data import ImageFolder

__all__ = ["Asked", "run_peek"]


def run_peek(asked: Asked, *, batch_size: int, rows: int, out: Path | None, as_json: bool) -> None:
    """Open a source, make one batch of it, and print what is in it.

    Raises:
        WrongUse: an option, or a source that is not there or of no known kind.
        CannotGoOn: a source that cannot be read.
    """
    if batch_size < 1:
        raise WrongUse(f"--batch-size must be at least 1, not {batch_size}")
    if rows < 0:
        raise WrongUse(f"--rows must be at least 0, not {rows}")
    if out is not None:
        need("plots", "matplotlib")
        if out.suffix.lower() != ".png" or out.is_dir():
            raise WrongUse(f"--out {out} must be the name of a picture, such as grid.png")
    with heard() as said:
        opened = open_source(asked)
    with heard() as said_later:
        view = look(opened.shown or asked.source, opened.dataset, batch_size, rows)
    if "doubts" not in view.facts:  # of a CSV file, which has them at hand
        later = [] if isinstance(opened.dataset, ImageFolder) else said_later
        view.facts["doubts"] = doubts_as_facts([*said, *opened.doubts, *later])
    if opened.problem is not None:
        view.facts["problem"] = opened.problem
        view.facts["opened_with"] = opened.options
    if out is not None:
        _draw(view.images, out)
        view.facts["picture"] = str(out)
    if as_json:
        print(json.dumps(view.facts, indent=2, ensure_ascii=False))
    else:
        show(view)


def _draw(images: list[tuple[object, str]], out: Path) -> None:
    from headrace.cli.peek.grid import draw_grid

    if not images:
        raise WrongUse(f"there are no images in the samples to write to {out}; leave --out away")
    try:
        draw_grid(images, out)
    except OSError as error:
        raise CannotGoOn(f"--out {out} cannot be written: {error.strerror}") from error
