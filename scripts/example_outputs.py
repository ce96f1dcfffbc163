"""Run the examples and keep what they print, and the pictures they draw, for their pages.

    .venv/bin/python scripts/example_outputs.py            # all
    .venv/bin/python scripts/example_outputs.py 04 12      # some

Look at `git diff docs/examples` afterwards: what changed there changed for users too.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "examples"


def keep(program: Path) -> None:
    """Run one example in a scratch directory, with one thread, as its test does."""
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [sys.executable, program],
            cwd=scratch,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        (PAGES / "outputs" / f"{program.stem}.txt").write_text(done.stdout, encoding="utf-8")
        for picture in Path(scratch).glob("*.png"):
            shutil.copy(picture, PAGES / "pictures" / picture.name)


if __name__ == "__main__":
    wanted = sys.argv[1:]
    for found in sorted((ROOT / "examples").glob("[0-9][0-9]_*.py")):
        if not wanted or found.stem[:2] in wanted:
            print(found.name, flush=True)
            keep(found)
