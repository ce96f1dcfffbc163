"""Every Python block in README.md and docs/ runs, each as a program of its own.

A block marked ```python runs in a fresh `__main__`-like namespace with a scratch directory as
its working directory. `<!-- skip-test: reason -->` on the line before a block is the only way
out, and it needs a reason. Lines of shell blocks that start with `headrace` are checked against
the program's own help.

Blocks that start worker processes work as written: they run with fork, as a script on Linux
would, and no thread or state of one block reaches the next.
"""

import gc
import itertools
import random
import re
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.cli.app import run
from headrace.cli.program import split

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<indent>[ ]*)```(?P<language>[a-z]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
SKIP = re.compile(r"<!-- skip-test:(?P<reason>[^>]*)-->[ ]*\n\s*\Z")


@dataclass(frozen=True)
class Snippet:
    page: str
    line: int
    language: str
    code: str
    skip: str | None

    def __str__(self):
        return f"{self.page}:{self.line}"


def snippets_in(page, text):
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        skip = SKIP.search(before)
        indent = len(match["indent"])
        code = "".join(line[indent:] or "\n" for line in match["code"].splitlines(keepends=True))
        yield Snippet(
            page=page,
            line=before.count("\n") + 2,  # of the first line inside the fence
            language=match["language"],
            code=code,
            skip=skip["reason"].strip() if skip else None,
        )


SNIPPETS = [
    snippet
    for page in PAGES
    for snippet in snippets_in(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8"))
]
PYTHON = [snippet for snippet in SNIPPETS if snippet.language == "python"]
COMMANDS = sorted(
    {
        line.removeprefix("$ ").strip()
        for snippet in SNIPPETS
        if snippet.language in {"sh", "bash", "shell", "console"}
        for line in snippet.code.splitlines()
        if line.removeprefix("$ ").startswith("headrace")
    }
)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A scratch directory and the process's random state as it was, afterwards."""
    monkeypatch.chdir(tmp_path)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    threads = torch.get_num_threads()
    yield
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    torch.set_num_threads(threads)
    gc.collect()


@pytest.mark.parametrize("snippet", PYTHON, ids=str)
def test_snippet_runs(snippet, alone, monkeypatch):
    if snippet.skip is not None:
        assert snippet.skip, f"{snippet}: a skipped snippet says why"
        pytest.skip(snippet.skip)
    # A module of its own, registered: classes and functions of the block can be pickled.
    module = types.ModuleType("__snippet__")
    module.__dict__["__name__"] = "__main__"  # so that a main guard runs
    monkeypatch.setitem(sys.modules, "__main__", module)
    path = ROOT / snippet.page
    code = "\n" * (snippet.line - 1) + snippet.code  # tracebacks name the page's own lines
    exec(compile(code, str(path), "exec"), module.__dict__)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command, monkeypatch, capsys):
    """`headrace bench workers --json` in a page: the command is there and knows the option."""
    words = shlex.split(command, comments=True)[1:]
    if words[0] in ("run", "profile"):  # what stands behind the program is the program's
        own = split(words[1:], ("--seed", "--workers", "--backend", "--device", "--json"))
        words = [words[0], *itertools.takewhile(lambda word: word != "--", own)]
    names = []
    for word in words:
        if word.startswith("-"):
            break
        names.append(word)
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    monkeypatch.setenv("COLUMNS", "200")  # no option is cut short
    code = run([*names, "--help"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    missing = [option for option in options if option not in shown.out]
    assert missing == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_within_the_repository_lead_somewhere(page):
    """`make docs` checks the pages in docs/; these stand outside."""
    links = re.findall(r"\]\(([^)#:]+)[^):]*\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_pages_have_snippets_and_few_are_skipped():
    assert len(PYTHON) >= 5
    assert len([snippet for snippet in PYTHON if snippet.skip is not None]) <= 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a\n\n```python\nx = 1\n```\n", ("x = 1\n", 4, None)),
        ("- item\n\n    ```python\n    if x:\n        y\n    ```\n", ("if x:\n    y\n", 4, None)),
        ("<!-- skip-test: needs a GPU -->\n\n```python\nx\n```\n", ("x\n", 4, "needs a GPU")),
        ('```python title="a.py"\nx\n\ny\n```\n', ("x\n\ny\n", 2, None)),
    ],
)
def test_blocks_are_found(text, found):
    (snippet,) = snippets_in("page.md", text)
    assert (snippet.code, snippet.line, snippet.skip) == found
