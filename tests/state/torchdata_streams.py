"""Iterable datasets that know where they stand, as programs for torchdata's loader have them."""

from torch.utils.data import IterableDataset, get_worker_info


def share(n):
    info = get_worker_info()
    if info is None:
        return 0, n
    return info.id * n // info.num_workers, (info.id + 1) * n // info.num_workers


class Counted(IterableDataset):
    """Counts its ``iter()`` calls, all objects of a process together."""

    iters = 0

    def __init__(self, n):
        self.n = n


class PlaceFromIter(Counted):
    """Its own iterator, whose place exists from ``iter()`` on."""

    def __iter__(self):
        Counted.iters += 1
        self.at, self.end = share(self.n)
        return self

    def __next__(self):
        if self.at >= self.end:
            raise StopIteration
        self.at += 1
        return self.at - 1

    def state_dict(self):
        return {"at": self.at, "end": self.end}

    def load_state_dict(self, state):
        assert hasattr(self, "at")
        self.at, self.end = state["at"], state["end"]


class GoesOn(Counted):
    """Its own iterator, which ``iter()`` does not bring back to the start; a pass is ``n`` long."""

    def __init__(self, n):
        super().__init__(n)
        self.at = 0

    def __iter__(self):
        Counted.iters += 1
        return self

    def __next__(self):
        self.at += 1
        if self.at % (self.n + 1) == 0:
            raise StopIteration
        return self.at

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class CountsPasses(Counted):
    """A generator function; each pass gives other numbers, and goes on where it was told to."""

    def __init__(self, n):
        super().__init__(n)
        self.passes, self.at = 0, None

    def __iter__(self):
        Counted.iters += 1
        begin, end = share(self.n)
        for i in range(begin if self.at is None else self.at, end):
            self.at = i + 1
            yield self.passes * 1000 + i
        self.passes += 1
        self.at = None

    def state_dict(self):
        return {"passes": self.passes, "at": self.at}

    def load_state_dict(self, state):
        self.passes, self.at = state["passes"], state["at"]


class Position:
    """An iterator that knows where it stands."""

    def __init__(self, first, begin, end):
        self.first, self.at, self.end = first, begin, end

    def __iter__(self):
        return self

    def __next__(self):
        if self.at >= self.end:
            raise StopIteration
        self.at += 1
        return self.first + self.at - 1

    def state_dict(self):
        return {"at": self.at, "first": self.first}

    def load_state_dict(self, state):
        self.at, self.first = state["at"], state["first"]


class ByIterator(Counted):
    """Its iterator says where it stands."""

    def __iter__(self):
        Counted.iters += 1
        return Position(0, *share(self.n))


class ByBoth(Counted):
    """Both say something: the dataset its passes, the iterator its place."""

    def __init__(self, n):
        super().__init__(n)
        self.passes = 0

    def __iter__(self):
        Counted.iters += 1
        return Pass(self)

    def state_dict(self):
        return {"passes": self.passes}

    def load_state_dict(self, state):
        self.passes = state["passes"]


class Pass(Position):
    """An iterator that tells its dataset when a pass is over."""

    def __init__(self, dataset):
        super().__init__(dataset.passes * 1000, *share(dataset.n))
        self.dataset, self.over = dataset, False

    def __next__(self):
        if self.at >= self.end and not self.over:
            self.dataset.passes, self.over = self.dataset.passes + 1, True
        return super().__next__()

    def state_dict(self):
        return {**super().state_dict(), "over": self.over}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.over = state["over"]


KINDS = [PlaceFromIter, GoesOn, CountsPasses, ByIterator, ByBoth]
