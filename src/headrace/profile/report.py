"""The report of a watched program: as JSON values, and as the lines for a terminal."""

from __future__ import annotations

from statistics import median
from typing import Any

from headrace.profile.causes import cores_busy, find, seconds
from headrace.profile.gathered import Epoch, Gathered, Watched
from headrace.profile.split import parts_of

FORM = 1  # of the JSON
_STEP_COST_S = 2.5e-6  # of watching one call of next(), and a batch's seams: measured


def report(gathered: Gathered, program: list[str], ended: str) -> dict[str, Any]:
    """Return what was seen of a program, as JSON values; times in seconds.

    Args:
        gathered: what its processes wrote down.
        program: its command line.
        ended: how it ended, in words.
    """
    finding, about = find(gathered)
    loaders = [_loader(loader) for loader in gathered.loaders]
    return {
        "form": FORM,
        "program": program,
        "ended": ended,
        "verdict": {
            "cause": finding.cause,
            "waiting": finding.share,
            "text": finding.text,
            "loader": about.number if about else None,
        },
        "loaders": loaders,
        "machine": {"cores": gathered.cores, "memory_bytes": gathered.memory},
        "overhead": _overhead(gathered),
    }


def _overhead(gathered: Gathered) -> float:
    """Return what watching has cost, of the time with the loaders."""
    whole = sum(one.wait_s + one.work_s for one in gathered.loaders)
    cost = gathered.watching_s + _STEP_COST_S * sum(one.steps for one in gathered.loaders)
    return cost / whole if whole else 0.0


def _loader(loader: Watched) -> dict[str, Any]:
    batches = loader.batches
    return {
        "number": loader.number,
        **{key: value for key, value in loader.facts.items() if key not in ("at", "number")},
        "epochs": [_epoch(epoch) for epoch in loader.epochs],
        "steps": loader.steps,
        "wait_s": loader.wait_s,
        "step_s": loader.work_s,
        "starts_s": loader.starts_s,
        "batch": {
            "make_s": loader.make_s,
            "cpu_s": median([batch[3] for batch in batches] or [0.0]),
            "size_bytes": loader.batch_bytes,
            "parts": [
                {"kind": p.kind, "seconds": p.seconds, "line": p.line, "function": p.function}
                for p in parts_of(loader)
            ],
        },
        "cores_busy": cores_busy(loader),
        "workers": [
            {
                "pid": worker.pid,
                "batches": len(worker.batches),
                "memory_bytes": worker.usage.memory,
                "user_s": worker.usage.user_s,
                "system_s": worker.usage.system_s,
                "minor_faults": worker.usage.minor_faults,
                "major_faults": worker.usage.major_faults,
                "read_bytes": worker.usage.read_bytes,
            }
            for worker in loader.workers
        ],
    }


def _epoch(epoch: Epoch) -> dict[str, Any]:
    return {
        "steps": len(epoch.steps),
        "finished": epoch.last is not None,
        "wait_s": epoch.ready - epoch.began + sum(epoch.waits),
        "step_s": sum(epoch.works),
        "first_batch_s": epoch.first_s,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return a report for a terminal: the verdict, then a line for each loader and each part."""
    told = [found["verdict"]["text"]]
    if found["ended"]:
        told.append(f"The program {found['ended']}; this is what was seen until then.")
    for loader in found["loaders"]:
        told += ["", *_loader_lines(loader)]
    told += ["", f"Watching it took {found['overhead']:.1%} of the time with the loaders."]
    return told


def _loader_lines(loader: dict[str, Any]) -> list[str]:
    steps = max(1, loader["steps"])
    where = loader.get("where", "").rsplit("/", 1)[-1]
    whose = "headrace's" if loader.get("ours") else "torch's"
    told = [
        f"{loader.get('dataset', 'a loader')} at {where}: {whose} loader, "
        f"{loader.get('num_workers', '?')} workers, {len(loader['epochs'])} epochs, "
        f"{loader['steps']} steps",
        f"  a step        {seconds(loader['wait_s'] / steps):>9} waiting, "
        f"{seconds(loader['step_s'] / steps)} the program's own",
    ]
    if loader["epochs"]:
        first = median([epoch["first_batch_s"] for epoch in loader["epochs"]])
        told.append(f"  first batch   {seconds(first):>9}")
    total = sum(part["seconds"] for part in loader["batch"]["parts"])
    for part in loader["batch"]["parts"]:
        line = part["line"].rsplit("/", 1)[-1]
        hottest = f"  mostly {line} ({part['function']})" if line else ""
        took, of = seconds(part["seconds"]), part["seconds"] / total
        told.append(f"  {part['kind']:<12}  {took:>9} a batch {of:>4.0%}{hottest}")
    return told
