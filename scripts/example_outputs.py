"""Run the examples and keep what they print, and the pictures they draw, for their pages.

    .venv/bin/python scripts/example_outputs.py            # all
    .venv/bin/python scripts/example_outputs.py 04 12      # some

Look at `git diff docs/examples` afterwards: what changed there changed for users too.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "examples"


def command(program: Path) -> list[str]:
    """Return how to run an example: by torchrun, if that is what its first lines say."""
    how = re.search(r"^torchrun (.*) examples/", program.read_text(encoding="utf-8"), re.MULTILINE)
    launcher = ["-m", "torch.distributed.run", "--standalone", *how[1].split()] if how else []
    return [sys.executable, *launcher, str(program)]


def keep(program: Path) -> None:
    """Run one example in a scratch directory, with one thread, as its test does."""
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            command(program),
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
