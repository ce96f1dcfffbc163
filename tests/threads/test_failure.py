"""What goes wrong in threads, and how they end."""

import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import headrace
from headrace import DataLoader


def ours():
    return [t for t in threading.enumerate() if t.name.startswith("headrace-worker")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    for thread in ours():
        thread.join(2)
    assert ours() == []


class Failing(headrace.Dataset):
    def __init__(self, bad=5, error=KeyError):
        self.bad, self.error = bad, error

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == self.bad:
            raise self.error("no such thing")
        return index


class Held(headrace.Dataset):
    """Waits in one sample until it is let go."""

    def __init__(self, at=4):
        self.at, self.reached, self.go = at, threading.Event(), threading.Event()

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == self.at:
            self.reached.set()
            self.go.wait(60)
        return index


def threads(dataset, **options):
    return DataLoader(dataset, batch_size=2, num_workers=2, backend="thread", **options)


def test_an_exception_keeps_type_traceback_and_index_and_the_epoch_goes_on():
    iterator = iter(threads(Failing()))
    assert [next(iterator).tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(KeyError, match="no such thing") as caught:
        next(iterator)
    notes = "\n".join(caught.value.__notes__)
    assert "dataset index 5" in notes
    assert "worker thread 0" in notes
    assert any(entry.name == "__getitem__" for entry in caught.traceback)
    assert [batch.tolist() for batch in iterator] == [[6, 7], [8, 9], [10, 11]]


def test_sys_exit_in_a_dataset_ends_the_program_not_the_thread():
    with pytest.raises(SystemExit):
        list(threads(Failing(error=SystemExit)))


def test_stop_iteration_is_an_error():
    with pytest.raises(headrace.DatasetStoppedError):
        list(threads(Failing(error=StopIteration)))


def test_worker_init_fn_that_raises_fails_the_first_batch():
    def init(worker):
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        next(iter(threads(Failing(bad=99), worker_init_fn=init)))


def test_a_timeout_shows_where_the_thread_stands():
    dataset = Held()
    iterator = iter(threads(dataset, timeout=0.3))
    with pytest.raises(headrace.WorkerTimeoutError, match=r"timed out after 0\.3 s") as caught:
        for _ in range(4):
            next(iterator)
    assert "self.go.wait(60)" in str(caught.value)
    assert "engine" not in str(caught.value)
    dataset.go.set()


def test_one_that_is_stuck_is_named_and_left_behind():
    dataset = Held(at=0)
    iterator = iter(threads(dataset))
    assert dataset.reached.wait(30)
    with pytest.warns(RuntimeWarning, match="A thread cannot be killed") as caught:
        iterator._shutdown_workers()
    assert "self.go.wait(60)" in str(caught[0].message)
    dataset.go.set()


def test_leaving_the_loop_ends_the_threads():
    for batch in threads(Failing(bad=99)):
        assert batch.tolist() == [0, 1]
        break
    gc.collect()
    assert ours() == []


def test_persistent_threads_are_the_same_in_the_next_epoch():
    loader = threads(Failing(bad=99), persistent_workers=True)
    list(loader)
    before = {thread.ident for thread in ours()}
    list(loader)
    assert {thread.ident for thread in ours()} == before
    assert len(before) == 2
    del loader


def test_another_epoch_of_persistent_threads_drops_what_was_under_way():
    loader = threads(Failing(bad=99), persistent_workers=True)
    next(iter(loader))
    assert [batch.tolist() for batch in loader] == [[n, n + 1] for n in range(0, 12, 2)]
    del loader


def test_a_fork_says_whose_the_iterator_is():
    iterator = iter(threads(Failing(bad=99)))
    next(iterator)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            next(iterator)
        except RuntimeError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"this is a fork of it" in os.read(read, 1000)
    for end in (read, write):
        os.close(end)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_of_a_program_with_persistent_threads_has_its_own():
    loader = threads(Failing(bad=99), persistent_workers=True)
    list(loader)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = len(list(loader)) - 6
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    del loader


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(("does", "code"), [(lambda: 0, 0), (lambda: sys.exit(3), 3)])
def test_a_fork_in_a_dataset_that_comes_back_ends(does, code):
    class Forking(Failing):
        def __getitem__(self, index):
            if index:
                return index
            child = os.fork()
            if child == 0:
                return does()
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert next(iter(threads(Forking()))).tolist() == [code, 1]


def test_after_an_exception_no_circle_keeps_the_threads():
    def fail():
        with contextlib.suppress(KeyError):
            next(iter(threads(Failing(bad=0))))

    gc.collect()
    gc.disable()
    try:
        fail()
        assert ours() == []
    finally:
        gc.enable()


def test_who_waits_while_another_ends_the_threads_is_told():
    dataset = Held(at=0)
    iterator = iter(threads(dataset))
    told = []

    def wait():
        try:
            next(iterator)
        except RuntimeError as error:
            told.append(str(error))

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert dataset.reached.wait(30)
    with pytest.warns(RuntimeWarning, match="A thread cannot be killed"):
        iterator._shutdown_workers()
    waiting.join(30)
    assert "the workers of this iterator have been ended" in told[0]
    dataset.go.set()


@pytest.mark.parametrize("stuck", [False, True])
def test_the_process_exits_with_a_loader_in_a_global_variable(stuck):
    program = textwrap.dedent(
        f"""
        import threading, warnings
        warnings.simplefilter("ignore")
        from headrace import DataLoader

        class Data:
            def __len__(self):
                return 100
            def __getitem__(self, index):
                if {stuck} and index == 10:
                    threading.Event().wait()
                return index

        iterator = iter(DataLoader(Data(), num_workers=2, backend="thread"))
        print(next(iterator).item())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


def test_batches_that_are_kept_are_never_written_again():
    class Images(headrace.Dataset):
        def __len__(self):
            return 60

        def __getitem__(self, index):
            return torch.full((64, 1024), float(index))

    kept = list(
        DataLoader(Images(), batch_size=4, num_workers=2, backend="thread", prefetch_factor=4)
    )
    for number, batch in enumerate(kept):
        wanted = torch.arange(4 * number, 4 * number + 4, dtype=torch.float32)
        assert torch.equal(batch, wanted[:, None, None].expand_as(batch))
