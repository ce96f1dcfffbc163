"""What all benches share: systems in turn, medians, targets, where and when it was measured.

Systems are measured in turn within one run: on a machine whose speed drifts, two figures that
were taken minutes apart cannot be compared, two that were taken side by side can. A ratio is
therefore the median of the rounds' ratios, never the ratio of two medians.
"""

import gc
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

import numpy
import torch

import headrace

Say = Callable[[str], None]
R = TypeVar("R")


@dataclass(frozen=True)
class Size:
    """How much to measure: ``quick`` shows that all of it runs, and its figures mean little."""

    rounds: int = 5
    quick: bool = False
    full: bool = False

    def choose(self, usual: int, quick: int) -> int:
        """Return ``usual``, or ``quick`` in a quick run."""
        return quick if self.quick else usual


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds: its median, smallest and largest value."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Target:
    """What a figure has to reach: at least, or at most, ``bound``."""

    bound: float
    kind: Literal["at least", "at most"]

    def reached_by(self, value: float) -> bool:
        """Say whether ``value`` is on the right side of the bound."""
        return value >= self.bound if self.kind == "at least" else value <= self.bound


@dataclass(frozen=True)
class System:
    """One of the systems compared: its own figure, and what that cost."""

    name: str
    figure: Spread
    unit: str
    cpu_s: float | None = None
    peak_memory_mib: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of a report: a figure, its target, and the systems it was made from."""

    work: str
    figure: str
    value: Spread
    unit: str
    target: Target
    systems: tuple[System, ...]
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether the median reaches the target."""
        return self.target.reached_by(self.value.median)


@dataclass(frozen=True)
class Report:
    """A bench's rows, what its figures mean, and where and when they were measured.

    ``must_reach`` says that a target that was missed is a failure of the command.
    """

    bench: str
    meaning: tuple[str, ...]
    rows: tuple[Row, ...]
    size: Size
    environment: Mapping[str, Any]
    must_reach: bool = False

    @property
    def failed(self) -> bool:
        """Whether a target was missed that had to be reached: never in a quick run."""
        return self.must_reach and not self.size.quick and not all(r.reached for r in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it, ``reached`` beside each row's figure."""
        rows = [{**asdict(row), "reached": row.reached} for row in self.rows]
        return {
            "bench": self.bench,
            "environment": dict(self.environment),
            "size": asdict(self.size),
            "meaning": list(self.meaning),
            "rows": rows,
        }


def at_least(bound: float) -> Target:
    """Return the target of a figure that should be large."""
    return Target(bound, "at least")


def at_most(bound: float) -> Target:
    """Return the target of a figure that should be small."""
    return Target(bound, "at most")


def spread(values: Sequence[float]) -> Spread:
    """Return median, smallest and largest of ``values``."""
    return Spread(median(values), min(values), max(values))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Return the spread of the rounds' ratios."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def in_turn(systems: Mapping[str, Callable[[], R]], rounds: int) -> dict[str, list[R]]:
    """Run every system once a round; return each one's results, round by round.

    Each round begins with another system, so that none always runs in the caches that the same
    neighbour left behind.
    """
    names = list(systems)
    results: dict[str, list[R]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            results[name].append(systems[name]())
    return results


def environment() -> dict[str, Any]:
    """Return where and when this is measured, and with which versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "headrace": headrace.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
