"""Write docs/works-with.md from what the tests of other libraries saw: works_with.py SEEN PAGE."""

import json
import sys
from datetime import date
from pathlib import Path

HEAD = """# Works with

Programs as the users of these libraries write them, run with torch's loader and with headrace's in
its place: the batches, and what is learnt from them, are the same. `make test-libraries` runs them
all and writes this page; it was last run on {day}, with torch {torch}.

| Library | Version | What was run | |
|---|---|---|---|
"""

TAIL = """
How to have headrace's loader there: [Under other libraries](guides/other-libraries.md).
"""


def main(seen: str, page: str) -> None:
    """Write the page; a row holds when each of its tests passed."""
    from torch import __version__ as torch_version

    rows: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for line in Path(seen).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        key = (row["library"], row["version"], row["what"])
        rows.setdefault(key, []).append((row["outcome"], row["remark"]))
    lines = [
        f"| {library} | {version} | {what} | {_mark(found)} |"
        for (library, version, what), found in sorted(rows.items(), key=lambda r: r[0])
    ]
    head = HEAD.format(day=date.today().isoformat(), torch=torch_version.partition("+")[0])
    Path(page).write_text(head + "\n".join(lines) + "\n" + TAIL, encoding="utf-8")


def _mark(found: list[tuple[str, str]]) -> str:
    outcomes = {outcome for outcome, _ in found}
    remark = next((remark for _, remark in found if remark), "")
    word = "yes" if outcomes == {"passed"} else "**no**" if "failed" in outcomes else "not run"
    return f"{word}; {remark}" if remark else word


if __name__ == "__main__":
    main(*sys.argv[1:])
