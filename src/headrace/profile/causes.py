"""Why a program waits for its batches: one cause, with the numbers that say so.

Looked for in this order, since each hides those behind it: whether it waits at all, the start of
workers, memory that is asked for again and again (the kernel looks for some now and then, and a few
batches take long by that), a few batches that take much longer than the others, more workers than
cores; else the longest part of making a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from headrace.engine.stats import in_units
from headrace.profile.gathered import Gathered, Watched
from headrace.profile.split import Part, parts_of

NOT_THE_DATA = "step"
_WAITS = 0.1  # of the time, from which on waiting is worth a word
_PAGE_BYTES = 4096
_FAULTS = 100  # a batch, that are no sign of anything


@dataclass(frozen=True)
class Finding:
    """A cause, and one sentence that gives its numbers.

    Attributes:
        cause: "step" (the data is not what holds the program up), "start", "imbalance", "memory",
            "workers", "read", "decode", "transform", "collate", "hand over"; "nothing" where no
            loader was iterated.
        share: waiting for batches, of the time with the loader.
        text: in plain words.
    """

    cause: str
    share: float
    text: str


def find(gathered: Gathered) -> tuple[Finding, Watched | None]:
    """Return the cause for the whole program, and the loader that it is about."""
    loaders = [loader for loader in gathered.loaders if loader.steps]
    if not loaders:
        return Finding("nothing", 0.0, "No batch was asked for, so there is nothing to say."), None
    worst = max(loaders, key=lambda loader: loader.held_up_s)
    waited = sum(loader.held_up_s for loader in loaders)
    # A loader that is iterated within another one's step (validation) counts once.
    whole = _covered([(e.began, _end(e.steps, e.last)) for one in loaders for e in one.epochs])
    whole -= sum(loader.wait_s - loader.held_up_s for loader in loaders)
    share = min(1.0, waited / whole) if whole > 0 else 0.0
    wait_s = waited / sum(loader.steps for loader in loaders)
    begin = (
        f"{share:.0%} of the time with the loaders was spent in waiting for data "
        f"({seconds(wait_s)} a step)."
    )
    if share < _WAITS:
        return _not_the_data(begin, share, worst), worst
    cause, why = _cause(worst, gathered.cores)
    return Finding(cause, share, f"{begin} {why}"), worst


def _not_the_data(begin: str, share: float, loader: Watched) -> Finding:
    step_s = loader.work_s / max(1, loader.steps)
    text = f"{begin} The data is not what holds this up: the step itself takes {seconds(step_s)}."
    return Finding(NOT_THE_DATA, share, text)


def _cause(loader: Watched, cores: float) -> tuple[str, str]:
    parts = parts_of(loader)
    for looked_for in (_start, _memory, _imbalance):
        why = looked_for(loader)
        if why:
            return looked_for.__name__[1:], why
    why = _workers(loader, cores)
    if why:
        return "workers", why
    if not parts:
        return "read", "What it waits for could not be seen: no batch was made within sight."
    return parts[0].kind, _longest(parts, loader, cores)


def _start(loader: Watched) -> str:
    again = loader.starts_s[1:]
    if not again or sum(again) < 0.5 * loader.held_up_s:
        return ""
    workers = loader.facts.get("num_workers", 0)
    return (
        f"{sum(again) / loader.held_up_s:.0%} of that is starting {workers} workers anew: "
        f"{seconds(sum(again) / len(again))} in each epoch."
    )


def _imbalance(loader: Watched) -> str:
    took = sorted(ended - began for began, ended, *_ in loader.batches)
    if len(took) < 8:
        return ""
    usual = median(took)
    slow = [one for one in took if one > max(4 * usual, usual + 0.005)]
    more = sum(slow) - usual * len(slow)
    if not slow or len(slow) > 0.25 * len(took) or more < 0.4 * sum(took):
        return ""
    return (
        f"One batch in {round(len(took) / len(slow))} takes {median(slow) / usual:.0f} times as "
        f"long as the others ({seconds(median(slow))} beside {seconds(usual)}), and those behind "
        f"it wait: a few samples are much slower than the rest."
    )


def _memory(loader: Watched) -> str:
    used = [worker.usage for worker in loader.workers]
    made = sum(len(worker.batches) for worker in loader.workers)
    system_s, user_s = sum(u.system_s for u in used), sum(u.user_s for u in used)
    if not made or not system_s:
        return ""
    share = system_s / (system_s + user_s)
    # The kernel may answer one fault with several pages: their number bounds the bytes from below.
    faults = sum(u.minor_faults + u.major_faults for u in used) / made
    expected = _FAULTS + 2 * loader.batch_bytes / _PAGE_BYTES
    cpu_s, wall_s = worked_s(loader)
    if share < 0.5 or faults < expected or cpu_s < 0.3 * wall_s:
        return ""
    return (
        f"{share:.0%} of the work is the system's, not the program's: {faults:,.0f} page faults "
        f"for each batch of {in_units(loader.batch_bytes)}. Large arrays are made and dropped "
        f"again and again."
    )


def _workers(loader: Watched, cores: float) -> str:
    workers = len({worker.pid for worker in loader.workers if worker.batches})
    asked = loader.facts.get("num_workers", 0)
    if asked <= max(2, cores + 1) or workers < 2:
        return ""
    busy = cores_busy(loader)
    cpu_s, wall_s = worked_s(loader)
    if cpu_s > 0.85 * wall_s or busy < 0.3 * cores:
        return ""
    return (
        f"{asked} workers share {cores:g} cores: each has one for {cpu_s / wall_s:.0%} of the time "
        f"that it works, and stands in line for the rest."
    )


def worked_s(loader: Watched) -> tuple[float, float]:
    """Return the seconds that batches took of a core, and by the clock."""
    batches = loader.batches
    return sum(b[3] for b in batches), sum(b[1] - b[0] for b in batches)


def cores_busy(loader: Watched) -> float:
    """Return how many cores the workers kept busy, over the epochs."""
    whole = _covered([(e.began, _end(e.steps, e.last)) for e in loader.epochs])
    cpu_s = sum(batch[3] for worker in loader.workers for batch in worker.batches)
    return cpu_s / whole if whole else 0.0


_WORDS = {
    "read": "reading",
    "decode": "decoding",
    "transform": "the dataset's own Python and transforms",
    "collate": "collating: putting the samples together",
    "hand over": "handing the batch over from the worker to the program",
}


def _longest(parts: list[Part], loader: Watched, cores: float) -> str:
    total = sum(part.seconds for part in parts)
    part = parts[0]
    file, _, line = part.line.rpartition(":")
    where = f" in {file.rsplit('/', 1)[-1]}:{line} ({part.function})" if part.line else ""
    said = f"{part.seconds / total:.0%} of making a batch is {_WORDS[part.kind]}{where}."
    busy = cores_busy(loader)
    return f"{said} {busy:.1f} of {cores:g} cores make batches."


def seconds(value: float) -> str:
    """Write a time with two or three digits."""
    if value >= 0.9995:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 9.995e-4 else f"{value * 1e6:.3g} us"


def _end(steps: list[tuple[float, float]], last: float | None) -> float:
    return last if last is not None else (steps[-1][1] if steps else 0.0)


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total
