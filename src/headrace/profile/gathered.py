"""What the processes of a program wrote down, put together by loader."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from headrace.profile import log


@dataclass
class Epoch:
    """One pass: when ``iter()`` was called and had returned, and each ``next()``; seconds."""

    began: float
    ready: float
    workers: list[int]
    steps: list[tuple[float, float]] = field(default_factory=list)
    last: float | None = None  # when next() was called that found no more

    @property
    def waits(self) -> list[float]:
        """Return how long each ``next()`` took."""
        return [ended - began for began, ended in self.steps]

    @property
    def works(self) -> list[float]:
        """Return how long the program took between one batch and its call for the next."""
        calls = [began for began, _ in self.steps[1:]]
        calls += [] if self.last is None else [self.last]
        return [call - step[1] for step, call in zip(self.steps, calls, strict=False)]

    @property
    def first_s(self) -> float:
        """Return the time from ``iter()`` to the first batch."""
        return self.ready - self.began + (self.waits[0] if self.steps else 0.0)


@dataclass
class Usage:
    """What a process has used between its first note and its last."""

    user_s: float = 0.0
    system_s: float = 0.0
    minor_faults: int = 0
    major_faults: int = 0
    memory: int = 0
    read_bytes: int = 0
    watching_s: float = 0.0


@dataclass
class Worker:
    """A process that made batches; the user's own where there are no others."""

    pid: int
    begun: float
    usage: Usage
    # began, ended, of that collating, seconds of a core
    batches: list[tuple[float, float, float, float]] = field(default_factory=list)
    pack_s: float = 0.0


@dataclass
class Watched:
    """All that is known of one loader."""

    number: str
    facts: dict[str, Any]
    epochs: list[Epoch] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    # seam, frames from it inwards ("file:line:function"), looks, seconds, of them with a core
    stacks: list[tuple[str, tuple[str, ...], int, float, float]] = field(default_factory=list)
    unpack_s: float = 0.0
    batch_bytes: int = 0

    @property
    def batches(self) -> list[tuple[float, float, float, float]]:
        """Return the batches of all workers, without each one's first: imports, cold caches."""
        several = [worker.batches[1:] or worker.batches for worker in self.workers]
        return [batch for some in several for batch in some]

    @property
    def steps(self) -> int:
        """Return the batches that were handed out."""
        return sum(len(epoch.steps) for epoch in self.epochs)

    @property
    def wait_s(self) -> float:
        """Return the seconds in ``iter()`` and ``next()``."""
        return sum(epoch.ready - epoch.began + sum(epoch.waits) for epoch in self.epochs)

    @property
    def work_s(self) -> float:
        """Return the seconds that the program itself took with its batches."""
        return sum(sum(epoch.works) for epoch in self.epochs)

    @property
    def make_s(self) -> float:
        """Return the median seconds of making a batch, by one worker."""
        return median([b[1] - b[0] for b in self.batches] or [0.0])

    @property
    def starts_s(self) -> list[float]:
        """Return the seconds that each epoch has lost to the start of its workers."""
        usual = self.make_s
        return [
            max(0.0, epoch.first_s - usual) if epoch.workers and epoch.steps else 0.0
            for epoch in self.epochs
        ]

    @property
    def held_up_s(self) -> float:
        """Return the seconds of waiting, without the first start: that happens once, however long.

        What a short run is lost to it says nothing of a long one.
        """
        return max(0.0, self.wait_s - sum(self.starts_s[:1]))


@dataclass
class Gathered:
    """What was seen of a program."""

    loaders: list[Watched]
    cores: float = 0.0
    memory: int = 0
    watching_s: float = 0.0


def gather(directory: str) -> Gathered:
    """Read what the processes of a program wrote to a directory."""
    found = Gathered([])
    by_number: dict[str, Watched] = {}
    for notes in log.read(directory):
        process = next((values for kind, values in notes if kind == "process"), None)
        if process is None:
            continue
        grouped: dict[str, list[Any]] = defaultdict(list)
        for kind, values in notes:
            grouped[kind] += [values] if isinstance(values, dict) else values
        _take(found, by_number, process, grouped)
    found.loaders = [one for one in by_number.values() if one.epochs]
    return found


def _take(
    found: Gathered,
    by_number: dict[str, Watched],
    process: dict[str, Any],
    notes: dict[str, list[Any]],
) -> None:
    """Take over what one process wrote."""

    def loader(number: Any) -> Watched:
        return by_number.setdefault(str(number), Watched(str(number), {}))

    for machine in notes["machine"]:
        found.cores, found.memory = machine["cores"], machine["memory"]
    for facts in notes["loader"]:
        loader(facts["number"]).facts = facts
    epochs = {}
    for note in notes["epoch"]:
        epoch = Epoch(note["began"], note["ready"], note["workers"])
        epochs[note["number"]] = note["loader"], epoch
        loader(note["loader"]).epochs.append(epoch)
    for number, began, ended, size in notes["steps"]:
        whose, epoch = epochs[number]
        epoch.steps.append((began, ended))
        loader(whose).batch_bytes = size if size >= 0 else loader(whose).batch_bytes
    for note in notes["over"]:
        epochs[note["number"]][1].last = note["last"]
    usage = _usage(notes["usage"], process["role"] == "worker")
    found.watching_s += usage.watching_s
    workers: dict[str, Worker] = {}
    for whose, *batch in notes["batches"]:
        made = workers.setdefault(str(whose), Worker(process["pid"], process["at"], usage))
        made.batches.append((batch[0], batch[1], batch[2], batch[3]))
    for whose, began, ended in notes["pack"]:
        if str(whose) in workers:
            workers[str(whose)].pack_s += ended - began
    for whose, began, ended in notes["unpack"]:
        if process["role"] == "main" and whose is not None:
            loader(whose).unpack_s += ended - began
    for whose, worker in workers.items():
        loader(whose).workers.append(worker)
    for whose, seam, stack, looks, wall_s, cpu_s in notes["stacks"]:
        loader(whose).stacks.append((seam, tuple(stack), looks, wall_s, cpu_s))


def _usage(notes: list[dict[str, Any]], whole: bool) -> Usage:
    """Return what was used between two notes; of a worker, since it was started."""
    if not notes:
        return Usage()
    first, last = notes[0], notes[-1]

    def used(name: str) -> Any:
        return last[name] if whole else last[name] - first[name]

    return Usage(
        user_s=used("user_s"),
        system_s=used("system_s"),
        minor_faults=used("minor_faults"),
        major_faults=used("major_faults"),
        memory=last["memory"],
        read_bytes=used("read_bytes"),
        watching_s=max(note["watching_s"] for note in notes),
    )
