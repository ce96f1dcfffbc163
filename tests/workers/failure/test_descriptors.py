"""Few descriptors are enough; where there are none left, the error names ``ulimit -n``."""

from typing import Any

import pytest

LIMIT = """
    import resource
    def limit(number):
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
"""


def test_ten_thousand_kept_batches_at_a_limit_of_256(program: Any) -> None:
    running = program(
        LIMIT
        + """
    limit(256)
    loader = headrace.DataLoader(Numbers(20000), 2, num_workers=2, backend="process")
    kept = list(loader)
    got = indices_of(kept)
    say(right=got == [[i, i + 1] for i in range(0, 20000, 2)], used=len(open_descriptors()))
    """
    )
    said = running.hear(60)
    assert said["right"]
    assert said["used"] < 64
    assert running.wait() == 0
    assert not running.errors()


@pytest.mark.parametrize("left", range(0, 30, 3))
def test_no_descriptor_to_start_workers_is_an_error_that_names_ulimit(
    program: Any, left: int
) -> None:
    running = program(
        LIMIT
        + f"""
    from headrace.errors import WorkerStartError
    limit(256)
    files = []
    while True:
        try:
            files.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            break
    for _ in range({left}):
        os.close(files.pop())
    try:
        got = len(list(headrace.DataLoader(Numbers(40), 2, num_workers=4)))
    except (WorkerStartError, OSError) as error:
        got = str(error)
    for file in files:
        os.close(file)
    say(got=got, children=len(children_of(os.getpid())))
    """
    )
    said = running.hear()
    assert said["got"] == 20 or "ulimit -n" in said["got"]
    assert said["children"] == 0
    assert running.wait() == 0


@pytest.mark.parametrize("left", [0, 1, 2, 4])
def test_no_descriptor_to_receive_a_batch_names_ulimit_and_may_go_on(
    program: Any, left: int
) -> None:
    running = program(
        LIMIT
        + f"""
    limit(256)
    iterator = iter(headrace.DataLoader(Numbers(40), 2, num_workers=2))
    files = []
    while True:
        try:
            files.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            break
    for _ in range({left}):
        os.close(files.pop())
    got, errors = [], []
    while len(errors) < 3:
        try:
            got += indices_of([next(iterator)])
        except StopIteration:
            break
        except Exception as error:
            errors.append(str(error))
    for file in files:
        os.close(file)
    say(got=got, errors=errors)
    """
    )
    said = running.hear()
    whole = [[i, i + 1] for i in range(0, 40, 2)]
    assert bool(said["errors"]) == (left == 0)
    assert said["got"] == whole or all("ulimit -n" in text for text in said["errors"])
    assert said["got"] == whole[: len(said["got"])]
    assert running.wait() == 0


def test_no_descriptor_for_a_large_task_names_ulimit_and_may_go_on(program: Any) -> None:
    running = program(
        LIMIT
        + """
    limit(256)
    batches = [[i] * 60000 for i in range(8)]
    loader = headrace.DataLoader(
        Numbers(40), batch_sampler=batches, num_workers=1, collate_fn=lambda s: s[0][None])
    iterator = iter(loader)
    got = indices_of([next(iterator)])
    files = []
    while True:
        try:
            files.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            break
    errors = []
    while not errors:
        try:
            got += indices_of([next(iterator)])
        except OSError as error:
            errors.append(str(error))
    for file in files:
        os.close(file)
    say(got=got + indices_of(iterator), errors=errors)
    """
    )
    said = running.hear(60)
    assert "ulimit -n" in said["errors"][0]
    assert said["got"] == [[i] for i in range(8)]
    assert running.wait() == 0


def test_a_worker_without_descriptors_raises_an_error_that_names_ulimit(program: Any) -> None:
    running = program(
        LIMIT
        + """
    def use_up(index):
        if index == 4:
            limit(64)
            files = []
            try:
                while True:
                    files.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                globals()["files"] = files
    loader = headrace.DataLoader(Numbers(8, use_up), 2, num_workers=1,
                                 collate_fn=lambda s: torch.stack(s).repeat(int(s[0][0]) + 1, 1))
    try:
        list(loader)
    except OSError as error:
        say(error=str(error))
    """
    )
    said = running.hear()
    assert "ulimit -n" in said["error"]
    assert "worker" in said["error"]
    assert running.wait() == 0
