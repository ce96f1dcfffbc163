"""A PostgreSQL of the tests' own: in a directory, on a socket, gone with the tests that made it."""

import os
import shutil
import subprocess
import tempfile
from glob import glob
from pathlib import Path

USER, PASSWORD = "reader", "p@ss/w:rd?"
QUOTED = "p%40ss%2Fw%3Ard%3F"

# Ends with the tests, also where they are killed: the pipe that it reads from ends then.
_KEEPER = """
cat >/dev/null
"$1/pg_ctl" -D "$2/data" -m immediate stop >/dev/null 2>&1
rm -rf "$2"
"""


def programs() -> Path | None:
    """Where PostgreSQL's programs are; None where it is not installed."""
    found = sorted(glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda p: int(p.split("/")[4]))
    initdb = found[-1] if found else shutil.which("initdb")
    return None if initdb is None else Path(os.path.realpath(initdb)).parent


class Server:
    """A cluster with one user, who has a password.

    The programs refuse to be root: where the tests are, these are nobody.
    """

    def __init__(self) -> None:
        found = programs()
        assert found is not None
        self.programs = found
        self._user = {"user": "nobody", "extra_groups": []} if os.geteuid() == 0 else {}
        # Not below pytest's directory, which is closed to others and long for a socket's name.
        self.folder = Path(tempfile.mkdtemp(prefix="hr-pg-"))
        if self._user:
            shutil.chown(self.folder, "nobody")
        keeper = ["sh", "-c", _KEEPER, "sh", str(self.programs), str(self.folder)]
        self._keeper = subprocess.Popen(
            keeper, stdin=subprocess.PIPE, start_new_session=True, **self._user
        )
        try:
            self._make()
            self.start()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        secret = self.folder / "secret"
        secret.write_text(PASSWORD)
        if self._user:
            shutil.chown(secret, "nobody")
        options = ["-U", USER, f"--pwfile={secret}", "-A", "scram-sha-256"]
        self._run(
            "initdb", "-D", f"{self.folder}/data", *options, "--no-sync", "--no-locale", "-EUTF8"
        )
        with open(self.folder / "data/postgresql.conf", "a") as file:
            file.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.folder}'\n"
                "fsync = off\nshared_buffers = 4MB\nautovacuum = off\n"
            )

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.programs / program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd=self.folder,
            **self._user,
        )
        assert done.returncode == 0, done.stdout

    def start(self) -> None:
        log = f"{self.folder}/log"
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-l", log, "start")

    def stop(self) -> None:
        """End it as a power cut would: no connection is told, nothing is written down."""
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "stop")

    def close(self) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()

    def sql(self, *statements: str) -> list[str]:
        """Run statements; return the lines of the answers."""
        done = subprocess.run(
            [
                *(self.programs / "psql", "-qAtv", "ON_ERROR_STOP=1", "-h", self.folder),
                *("-U", USER, "-d", "postgres", "-c", "; ".join(statements)),
            ],
            env={**os.environ, "PGPASSWORD": PASSWORD},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]

    @property
    def uri(self) -> str:
        return f"postgresql://{USER}:{QUOTED}@/postgres?host={self.folder}"
