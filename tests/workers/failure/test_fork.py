"""A fork of the user's process while it iterates: neither side disturbs the other."""

from typing import Any

import pytest

from workers.failure.processes import SOON

WHOLE = [[i, i + 1] for i in range(0, 40, 2)]
BEGIN = """
    loader = headrace.DataLoader(Numbers(40), 2, num_workers=2, backend="process",
                                 worker_restarts=0, persistent_workers={})
    iterator = iter(loader)
    held = [next(iterator) for _ in range(3)]
    got = indices_of(held)

    def in_child(work, leave):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(write)
                work(read)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(9)
            leave(7)
        os.close(read)
        return pid, write

    def code_of(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.mark.parametrize("leave", ["sys.exit", "os._exit"])
@pytest.mark.parametrize("persistent", [False, True])
def test_the_child_ends_and_the_parent_goes_on(program: Any, leave: str, persistent: bool) -> None:
    running = program(
        BEGIN.format(persistent)
        + f"""
    pid, _ = in_child(lambda read: None, {leave})
    assert code_of(pid) == 7
    say(got=got + indices_of(iterator))
    """
    )
    assert running.hear()["got"] == WHOLE
    assert running.wait() == 0
    assert not running.errors()


def test_the_child_reads_the_batches_it_holds_while_the_parent_goes_on(program: Any) -> None:
    running = program(
        BEGIN.format(False)
        + """
    def look(read):
        os.read(read, 1)  # the parent has let go of them and made all the others
        assert indices_of(held) == [[0, 1], [2, 3], [4, 5]]
    pid, write = in_child(look, os._exit)
    held.clear()
    for batch in iterator:
        got += indices_of([batch])
    got2 = indices_of(loader)
    os.write(write, b"x")
    say(code=code_of(pid), got=got, again=got2)
    """
    )
    said = running.hear()
    assert said["code"] == 7
    assert said["got"] == said["again"] == WHOLE
    assert running.wait() == 0


def test_next_in_the_child_is_an_error_that_says_what_to_do(program: Any) -> None:
    running = program(
        BEGIN.format(False)
        + """
    wait_until(lambda: iterator._batches._backend._poll.poll(0), "a batch has come")
    def ask(read):
        for _ in range(2):
            try:
                next(iterator)
            except RuntimeError as error:
                assert "is a fork of it" in str(error) and "iter(loader)" in str(error)
            else:
                raise AssertionError("no error")
    pid, _ = in_child(ask, os._exit)
    assert code_of(pid) == 7
    say(got=got + indices_of(iterator))
    """
    )
    assert running.hear()["got"] == WHOLE
    assert running.wait() == 0
    assert not running.errors()


def test_the_child_may_iterate_on_its_own(program: Any) -> None:
    running = program(
        BEGIN.format(False)
        + f"""
    def iterate(read):
        assert indices_of(loader) == {WHOLE}
    pid, _ = in_child(iterate, sys.exit)
    assert code_of(pid) == 7
    say(got=got + indices_of(iterator))
    """
    )
    assert running.hear()["got"] == WHOLE
    assert running.wait() == 0


def test_the_child_drops_the_iterator_and_the_parent_goes_on(program: Any) -> None:
    running = program(
        BEGIN.format(False)
        + """
    def drop(read):
        global iterator, loader, held
        del iterator, loader, held
        gc.collect()
    pid, _ = in_child(drop, sys.exit)
    assert code_of(pid) == 7
    say(got=got + indices_of(iterator))
    """
    )
    assert running.hear()["got"] == WHOLE
    assert running.wait() == 0
    assert not running.errors()


def test_the_parent_ends_its_workers_though_the_child_lives_on(program: Any) -> None:
    running = program(
        BEGIN.format(False)
        + """
    pid, write = in_child(lambda read: os.read(read, 1), os._exit)
    workers = list(iterator._workers)
    headrace.engine.backends.ending.GRACE_S = 3.0
    started = time.monotonic()
    del iterator
    took = time.monotonic() - started
    codes = [w.exitcode for w in workers]
    os.write(write, b"x")
    say(codes=codes, took=took, child=code_of(pid))
    """
    )
    said = running.hear()
    assert said["codes"] == [0, 0]
    assert said["took"] < SOON
    assert running.wait() == 0


def test_a_process_of_multiprocessing_may_be_made_while_iterating(program: Any) -> None:
    running = program(
        BEGIN.format(False)
        + """
    import multiprocessing
    child = multiprocessing.get_context("fork").Process(target=print, args=('{"child": 1}',))
    child.start()
    child.join()
    say(got=got + indices_of(iterator), code=child.exitcode)
    """
    )
    running.hear()
    assert running.hear() == {"got": WHOLE, "code": 0}
    assert running.wait() == 0
