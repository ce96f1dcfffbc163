"""What a source warns of, and what is found in it that would be passed over, for the reader."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from headrace.data.images.survey import Survey
from headrace.errors import SourceWarning


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect what sources warn of, which is shown with the rest; other warnings pass."""
    texts: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", SourceWarning)
        passed_on = warnings.showwarning

        def show(message: Any, category: Any, *place: Any, **more: Any) -> None:
            if issubclass(category, SourceWarning):
                texts.append(str(message))
            else:
                passed_on(message, category, *place, **more)

        warnings.showwarning = show
        yield texts


def doubts_as_facts(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return doubts as JSON can hold them: none of these is an error."""
    return [{"text": text, "sure": False} for text in texts]


def doubts_of_images(found: Survey) -> list[str]:
    """Return what a survey of images found, each kind with the option for it."""
    kinds = (
        (
            found.lying,
            "are not upright, as their EXIF orientation says, which is ignored",
            'exif="apply"',
            "turns them",
        ),
        (
            found.transparent,
            "are transparent in places, which is dropped: colours appear that it hides",
            "background=(255, 255, 255)",
            "puts them on white",
        ),
        (
            found.several,
            "have several images in them, of which the first is read",
            "frame=1",
            "reads another",
        ),
    )
    return [
        f"{len(paths):,} of the {found.looked_at:,} files that were looked at {what}: {paths[0]} "
        f"is one. ImageFolder(..., {option}) {does}."
        for paths, what, option, does in kinds
        if paths
    ]
