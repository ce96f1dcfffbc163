"""Programs with a known answer: the verdict names the right cause."""

from pathlib import Path

import pytest

from forks import Zygote
from headrace.profile import gather, report

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
