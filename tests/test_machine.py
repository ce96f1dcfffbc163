"""What a process may use, read from /proc and control groups as kernels write them."""

import os

import pytest

from headrace import machine

GIB = 1 << 30


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of 8 cores and 64 GiB, of which 32 are free; files are added by path."""

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    write("proc/meminfo", f"MemTotal: {64 << 20} kB\nMemAvailable: {32 << 20} kB\n")
    return write


def test_without_control_groups_it_is_the_machine(system):
    assert machine.available_cores() == 8
    assert machine.available_memory_bytes() == 32 * GIB


def test_second_version(system):
    system("proc/self/cgroup", "0::/app\n")
    system("sys/fs/cgroup/app/cpu.max", "150000 100000\n")
    system("sys/fs/cgroup/app/memory.max", f"{4 * GIB}\n")
    system("sys/fs/cgroup/app/memory.current", f"{3 * GIB}\n")
    system("sys/fs/cgroup/app/memory.stat", f"anon 5\ninactive_file {GIB}\n")
    assert machine.available_cores() == 1.5
    assert machine.available_memory_bytes() == 2 * GIB


def test_second_version_without_limits(system):
    system("proc/self/cgroup", "0::/app\n")
    system("sys/fs/cgroup/app/cpu.max", "max 100000\n")
    system("sys/fs/cgroup/app/memory.max", "max\n")
    system("sys/fs/cgroup/app/memory.current", f"{3 * GIB}\n")
    assert machine.available_cores() == 8
    assert machine.available_memory_bytes() == 32 * GIB


def test_first_version(system):
    system("proc/self/cgroup", "4:memory:/app\n3:cpuset:/app\n1:cpu,cpuacct:/app\n0::/\n")
    system("sys/fs/cgroup/cpu/app/cpu.cfs_quota_us", "200000\n")
    system("sys/fs/cgroup/cpu/app/cpu.cfs_period_us", "100000\n")
    system("sys/fs/cgroup/memory/app/memory.limit_in_bytes", f"{8 * GIB}\n")
    system("sys/fs/cgroup/memory/app/memory.usage_in_bytes", f"{3 * GIB}\n")
    system("sys/fs/cgroup/memory/app/memory.stat", f"total_inactive_file {GIB}\n")
    assert machine.available_cores() == 2
    assert machine.available_memory_bytes() == 6 * GIB


def test_first_version_without_limits(system):
    system("proc/self/cgroup", "4:memory:/\n1:cpu:/\n0::/\n")
    system("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    system("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    system("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    system("sys/fs/cgroup/memory/memory.usage_in_bytes", f"{3 * GIB}\n")
    assert machine.available_cores() == 8
    assert machine.available_memory_bytes() == 32 * GIB


def test_limits_of_groups_above_hold_too(system):
    system("proc/self/cgroup", "0::/pod/app\n")
    system("sys/fs/cgroup/pod/app/cpu.max", "400000 100000\n")
    system("sys/fs/cgroup/pod/cpu.max", "300000 100000\n")
    assert machine.available_cores() == 3


def test_the_path_of_the_host_is_passed_over_in_a_container(system):
    system("proc/self/cgroup", "4:memory:/docker/0123abcd\n")
    system("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2 * GIB}\n")
    system("sys/fs/cgroup/memory/memory.usage_in_bytes", f"{GIB}\n")
    assert machine.available_memory_bytes() == GIB


def test_more_used_than_allowed_leaves_nothing(system):
    system("proc/self/cgroup", "0::/\n")
    system("sys/fs/cgroup/memory.max", f"{GIB}\n")
    system("sys/fs/cgroup/memory.current", f"{2 * GIB}\n")
    assert machine.available_memory_bytes() == 0


def test_bound_to_fewer_cores(system, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert machine.available_cores() == 2


def test_a_system_that_tells_neither(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert machine.available_cores() == os.cpu_count()
    assert machine.available_memory_bytes() > 0


def test_this_machine():
    assert 0 < machine.available_cores() <= os.cpu_count()
    assert 0 < machine.available_memory_bytes() < 1 << 50


@pytest.mark.parametrize(
    ("caches", "wanted"),
    [
        ([("1", "48K"), ("2", "2048K"), ("3", "32M")], 2 << 20),
        ([("1", "48K"), ("2", "1M")], 1 << 20),
        ([("1", "48K")], 0),
        ([("2", "")], 0),
        ([], 0),
    ],
)
def test_the_second_level_cache_is_what_the_system_says(tmp_path, monkeypatch, caches, wanted):
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    for number, (level, size) in enumerate(caches):
        cache = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{number}"
        cache.mkdir(parents=True)
        (cache / "level").write_text(f"{level}\n")
        (cache / "size").write_text(f"{size}\n")
    assert machine.second_level_cache_bytes() == wanted
