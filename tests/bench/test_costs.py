"""The measure of memory and CPU time: what it sees, and what it leaves out."""

import subprocess
import sys
import time

from headrace.bench.costs import TreeMemory, tree_cpu_seconds

MIB = 2**20
BLOCK = 256 * MIB
ABOUT_A_BLOCK = range(200, 320)  # the system may take other memory of this process meanwhile


def test_a_peak_is_seen_though_it_has_passed():
    with TreeMemory() as memory:
        block = bytearray(b"x") * BLOCK
        until = time.process_time() + 0.3  # long enough that one of its looks falls within
        while time.process_time() < until:
            block.count(b"y")
        del block
    assert int(memory.added_mib) in ABOUT_A_BLOCK


def test_a_look_that_was_asked_for_sees_what_is_there_now():
    with TreeMemory() as memory:
        block = bytearray(b"x") * BLOCK
        memory.look()
        del block
    assert int(memory.added_mib) in ABOUT_A_BLOCK


def test_memory_of_children_counts():
    program = f"import sys; block = bytearray(b'x') * {BLOCK}; print(flush=True); sys.stdin.read()"
    with (
        TreeMemory() as memory,
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child,
    ):
        child.stdout.readline()
        memory.look()
        child.stdin.close()
    assert int(memory.added_mib) in ABOUT_A_BLOCK


def test_cpu_time_of_ended_children_counts():
    program = "import time\nwhile time.process_time() < 0.3: pass"
    before = tree_cpu_seconds()
    subprocess.run([sys.executable, "-c", program], check=True)
    assert tree_cpu_seconds() - before > 0.25


def test_cpu_time_of_the_watcher_does_not_count():
    with TreeMemory() as memory:
        before = tree_cpu_seconds()
        while memory._watcher.poll() is None and _cpu_seconds(memory._watcher.pid) < 0.5:
            memory.look()
        assert tree_cpu_seconds() - before < 0.4


def _cpu_seconds(pid: int) -> float:
    import psutil

    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
