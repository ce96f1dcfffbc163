"""Programs that start at once: forks of one process that has imported what they need."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
SCRIPT = TESTS / "workers" / "failure" / "zygote.py"


class Zygote:
    """The process that is forked; ``imported`` are the modules that programs find loaded."""

    def __init__(self, *imported: str) -> None:
        self._end, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(its.fileno()), *imported],
            pass_fds=[its.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        )
        its.close()

    def run(self, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, with nothing to read, in a directory; return what it said."""
        code = f"import os\nos.chdir({str(cwd)!r})\n{code}"
        with (
            open(os.devnull) as nothing,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            streams = [stream.fileno() for stream in (nothing, out, err)]
            socket.send_fds(self._end, [json.dumps({"run": code}).encode()], streams)
            pid = int(self._end.recv(64))
            self._end.send(json.dumps({"reap": pid}).encode())
            exit_code = int(self._end.recv(64))
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(code, exit_code, out.read(), err.read())

    def close(self) -> None:
        """End it."""
        self._end.close()
        self._process.wait(20)


def command_line(*arguments: str) -> str:
    """Return the program that is the command ``headrace`` with these arguments."""
    return (
        f"import sys\nos.environ['COLUMNS'] = '100'\nsys.argv = {['headrace', *arguments]!r}\n"
        "from headrace.cli import main\nmain()\n"
    )
