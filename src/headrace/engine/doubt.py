"""What an interruption does to an epoch, written down once.

Ctrl-C, another signal's handler, or another thread may raise at any bytecode of the user's thread.
No guard stands at each place. Instead, what would be half done says so *before* it begins:
``Counters.doubt`` is set as a step is entered and cleared as its batch, or its error, leaves.
Whoever finds it set later (the next ``next()``, ``iter()`` or ``state_dict()``) knows that a step
did not come to its end.

========  ==========================================================================================
SETTLED   no step is under way, or it waits and has taken nothing: the iterator goes on.
WORKERS   the exchange with the workers is in doubt, the window's books are not: which steps are
          due, which of them are ready and which one leaves. The workers are ended, others begin,
          and what was under way is asked for again, where a batch follows from its task alone.
          Nothing that was lent is lent again: what a batch still holds stays with it
          (:meth:`headrace.engine.shared.Imports.bequeath`).
BOOKS     a step may be lost. The workers are ended and the iterator refuses to go on. The next
          epoch begins with another crew.
========  ==========================================================================================

A backend that only waits says so too (``waiting``): what a ``poll`` or a lock returns may be lost,
for it is there the next time. Ending is written to be done again from wherever it was left. What
is started is on a list, or owned by an object that ends it when it dies, before it runs. Python
forgets what is raised while such an object dies, and while a weak reference's callback runs: what a
batch calls as it dies are methods of C, and a ``__del__`` that waits for something closes with
:func:`close_wholly`.

An ``Exception`` (no ``KeyboardInterrupt``) that comes while code of the dataset, the sampler, the
collation or a copy runs cannot be told from one of theirs, and takes the place of their batch.
"""

from __future__ import annotations

from collections.abc import Callable

SETTLED, WORKERS, BOOKS = 0, 1, 2

REFUSAL = (
    "this iterator was interrupted in the middle of a step and cannot go on: that would lose "
    "samples. Call iter(loader) for a new epoch, or load a state_dict()."
)


def close_wholly(close: Callable[[], object]) -> None:
    """Close what dies, to its end: Python forgets an interruption in a ``__del__``."""
    try:
        close()
    except Exception:
        raise
    except BaseException:
        close()
        raise
