"""The measure of memory and CPU time: what it sees, and what it leaves out."""

import subprocess
import sys
import time

from headrace.bench.costs import tree_cpu_seconds, tree_peak

MIB = 2**20


def hold_for_a_while(block: bytearray) -> None:
    """Work long enough that a watcher which looks every 20 ms cannot miss the block."""
    until = time.process_time() + 0.3
    while time.process_time() < until:
        block.count(b"y")


def test_the_peak_is_seen_though_it_has_passed():
    def work():
        hold_for_a_while(bytearray(b"x") * (64 * MIB))

    assert 60 < tree_peak(work).added_mib < 100


def test_memory_of_children_counts():
    program = (
        "import sys; block = bytearray(b'x') * (64 << 20); print(flush=True); sys.stdin.read()"
    )

    def work():
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            child.stdout.readline()
            hold_for_a_while(bytearray(b"x"))
            child.stdin.close()

    assert tree_peak(work).added_mib > 60


def test_cpu_time_of_ended_children_counts_and_the_watchers_does_not():
    program = "import time\nwhile time.process_time() < 0.3: pass"
    before = tree_cpu_seconds()
    subprocess.run([sys.executable, "-c", program], check=True)
    assert tree_cpu_seconds() - before > 0.25

    spent = []

    def work():
        started = tree_cpu_seconds()
        spent.append(tree_cpu_seconds() - started)

    tree_peak(work)
    assert spent[0] < 0.25
