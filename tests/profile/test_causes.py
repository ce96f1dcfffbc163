"""Programs with a known answer: the verdict names the right cause."""

from pathlib import Path

import pytest

from forks import Zygote
from headrace.profile import gather, report
from headrace.profile.causes import find
from headrace.profile.gathered import Epoch, Gathered, Usage, Watched, Worker

PROGRAMS = Path(__file__).with_name("programs.py")
CAUSES = (
    "decode",
    "transform",
    "collate",
    "hand over",
    "read",
    "start",
    "step",
    "workers",
    "imbalance",
    "memory",
)
_OF_PROCESSES = ("hand over", "start", "workers")  # there is none of it without workers
_SET_UP = {"workers": 8}
SETTINGS = [
    (cause, library, workers, context)
    for cause in CAUSES
    for library in ("torch", "ours")
    for workers, context in ((0, "none"), (2, "fork"), (2, "spawn"))
    if workers or cause not in _OF_PROCESSES
]
# One of each, in turn; the others are `stress`.
SHORT = {
    ("decode", "torch", 2, "fork"),
    ("transform", "ours", 2, "fork"),
    ("collate", "torch", 0, "none"),
    ("hand over", "torch", 2, "fork"),
    ("read", "ours", 0, "none"),
    ("start", "torch", 2, "fork"),
    ("step", "ours", 2, "fork"),
    ("workers", "torch", 2, "fork"),
    ("imbalance", "torch", 2, "fork"),
    ("memory", "torch", 0, "none"),
}


@pytest.fixture(scope="module")
def zygote():
    zygote = Zygote("headrace.cli.watched", "PIL.Image", "numpy")
    yield zygote
    zygote.close()


@pytest.fixture
def watched(zygote, tmp_path):
    """Run a program of these, watched; return its report and what it printed."""

    def run(*arguments):
        seen = tmp_path / "seen"
        seen.mkdir()
        words = ["watched", str(seen), "script", str(PROGRAMS), *map(str, arguments)]
        done = zygote.run(
            f"import sys\nsys.argv = {words!r}\n"
            "from headrace.cli.watched import main\nsys.exit(main())",
            tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return report(gather(str(seen)), words, ""), done.stdout

    return run


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(
            one, marks=() if one in SHORT else pytest.mark.stress, id="-".join(map(str, one))
        )
        for one in SETTINGS
    ],
)
def test_the_verdict_names_the_cause(watched, setting):
    cause, library, workers, context = setting
    found, _ = watched(cause, library, _SET_UP.get(cause, workers), context)
    assert found["verdict"]["cause"] == cause, found
    assert found["loaders"][0]["ours"] == (library == "ours")


def of_batches(took_s, usage):
    """A loader whose batches took so long, each of them waited for."""
    ends = [sum(took_s[: n + 1]) for n in range(len(took_s))]
    spans = list(zip([0.0, *ends], ends, strict=False))
    worker = Worker(1, 0.0, usage, [(began, ended, ended, ended - began) for began, ended in spans])
    loader = Watched("1-0", {"num_workers": 0}, batch_bytes=1 << 20, workers=[worker])
    loader.epochs.append(Epoch(0.0, 0.0, [], spans, ends[-1]))
    return Gathered([loader], cores=2)


def test_a_batch_that_the_kernel_kept_waiting_is_no_imbalance():
    """Where memory is asked for again and again, some of the asking takes long."""
    took_s = [0.03] * 20 + [1.0] + [0.03] * 20
    thrash = Usage(user_s=0.5, system_s=1.5, minor_faults=41 * 2000)
    assert find(of_batches(took_s, thrash))[0].cause == "memory"
    work = Usage(user_s=1.9, system_s=0.1, minor_faults=41)
    assert find(of_batches(took_s, work))[0].cause == "imbalance"
