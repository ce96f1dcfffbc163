"""headrace's loader in the place of torch's, for programs and libraries that build their own.

What is replaced: every name in a loaded module that *is* torch's class, whatever else holds it
(:mod:`headrace.install.held`), and the bases of the classes that were derived from it before. What
is imported later takes ours from ``torch.utils.data`` by itself, and so do processes that are
started by spawn or forkserver. A class that makes its iterators itself (it defines
``_get_iterator``) is left alone: ours would only be in its way.

While it is installed, loaders of torch's own class count as instances of ours too, so that no check
of a library's fails for a loader that was there before.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from multiprocessing import spawn
from types import ModuleType
from typing import Any

from torch.utils.data import IterableDataset, dataloader

from headrace.errors import OptionError
from headrace.install import dispatcher
from headrace.install.held import Place, places
from headrace.loader import STOCK, DataLoader, LoaderType

# What a program that knows only torch's loader cannot ask for; num_workers replaces what it asks.
OPTIONS = (
    "num_workers",
    "seed",
    "backend",
    "device",
    "rng",
    "worker_restarts",
    "prefetch_bytes",
    "on_error",
    "max_errors",
)
_OF_WORKERS = ("persistent_workers", "prefetch_factor", "multiprocessing_context", "timeout")
_PRIVATE_ITERATORS = ("_MultiProcessingDataLoaderIter", "_SingleProcessDataLoaderIter")


@dataclass(frozen=True)
class Installation:
    """What :func:`install` replaced; printed, one line.

    Attributes:
        names: where torch's class stood, as "module.name".
        held: what else held it: defaults, attributes, registries, partials, closures.
        unreached: what holds it still, as it cannot be given another.
        classes: those that were derived from it, and are derived from headrace's now.
        left_alone: those that make their iterators themselves, and stay with torch.
        private: modules that name torch's own iterators, and may not know headrace's.
        options: what each loader that is built gets.
    """

    names: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    left_alone: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """Return what was replaced and what was not, in one line."""
        parts = [_count(self.names, "name")]
        if self.held:
            parts.append(_count(self.held, "other place"))
        if self.classes:
            parts.append(_count(self.classes, "derived class", "derived classes"))
        listed = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
        said = f"DataLoader is headrace's: {listed} replaced"
        if self.options:
            said += "; with " + ", ".join(f"{name}={value!r}" for name, value in self.options)
        if self.left_alone:
            said += f"; left with torch: {', '.join(self.left_alone)}"
        if self.unreached:
            said += f"; not reached: {', '.join(self.unreached)}"
        return said

    def details(self) -> str:
        """Return the same in full, a line each."""
        rows = [(name, "replaced") for name in (*self.names, *self.held)]
        rows += [(name, "derived from headrace's loader now") for name in self.classes]
        rows += [
            (name, "left with torch: it makes its iterators itself") for name in self.left_alone
        ]
        rows += [
            (name, "holds torch's class, and cannot be given another: make it behind install()")
            for name in self.unreached
        ]
        rows += [
            (name, "names torch's private iterators: what it does with them is not reached")
            for name in self.private
        ]
        return "\n".join([str(self), *(f"  {name}: {what}" for name, what in rows)])


class _Installed:
    """What has to be put back."""

    def __init__(self) -> None:
        self.names: list[tuple[dict[str, Any], str]] = []
        self.held: list[Place] = []
        self.bases: list[tuple[type, tuple[type, ...]]] = []
        self.modules = set(sys.modules)  # those that were there before


_installed: _Installed | None = None
_own_init = DataLoader.__init__
_own_preparation = spawn.get_preparation_data


def install(*, verbose: bool = False, quiet: bool = False, **options: Any) -> Installation:
    """Put headrace's ``DataLoader`` in the place of torch's, in all that is and will be loaded.

    Called again, it reaches what was loaded meanwhile, and its options replace the former ones.

    Args:
        verbose: print everything that was replaced and what was not; one line otherwise.
        quiet: print nothing.
        options: for every loader that is built from now on: ``seed``, ``backend``, ``device``,
            ``rng``, ``worker_restarts``, ``prefetch_bytes``, ``on_error`` and ``max_errors``, where
            the program gives none; ``num_workers`` in the place of what it gives.

    Raises:
        OptionError: there is no such option, or it cannot be.
    """
    global _installed
    _check(options)
    if _installed is None:
        _installed = _Installed()
    LoaderType.in_place = True
    DataLoader.__init__ = _init_with(options)  # type: ignore[method-assign]
    dispatcher.correct()
    spawn.get_preparation_data = _preparation_with(options)
    classes, left_alone = _rebase(_installed)
    names = tuple(_rename(_installed))
    held, unreached = _replace_held(_installed)
    found = Installation(
        names=names,
        held=held,
        unreached=unreached,
        classes=classes,
        left_alone=left_alone,
        private=tuple(_private_users()),
        options=tuple(options.items()),
    )
    if not quiet:
        text = found.details() if verbose else str(found)
        print("\n".join(f"headrace: {line}" for line in text.splitlines()), file=sys.stderr)
    return found


def uninstall() -> None:
    """Put torch's ``DataLoader`` back, everywhere; loaders that were built go on as they are."""
    global _installed
    if _installed is None:
        return
    installed, _installed = _installed, None
    LoaderType.in_place = False
    DataLoader.__init__ = _own_init  # type: ignore[method-assign]
    spawn.get_preparation_data = _own_preparation
    dispatcher.undo()
    since = set(_loaded_since(installed))
    taken = [place for place in places(DataLoader) if place.module in since] if since else []
    for place in [*installed.held, *taken]:
        if place.put is not None and place.get() is DataLoader:
            place.put(STOCK)
    for namespace, name in [*installed.names, *_taken(since)]:
        if namespace.get(name) is DataLoader:
            namespace[name] = STOCK
    for cls, bases in installed.bases:
        cls.__bases__ = bases


@contextmanager
def installed(*, verbose: bool = False, quiet: bool = True, **options: Any) -> Iterator[None]:
    """Have headrace's ``DataLoader`` in the place of torch's for the length of a block.

    Args:
        verbose: see :func:`install`.
        quiet: print nothing, unless ``verbose``.
        options: see :func:`install`.
    """
    outer, init, preparation = _installed, DataLoader.__init__, spawn.get_preparation_data
    install(verbose=verbose, quiet=quiet and not verbose, **options)
    try:
        yield
    finally:
        if outer is None:
            uninstall()
        elif _installed is not None:  # the outer one stays, with its own options
            DataLoader.__init__ = init  # type: ignore[method-assign]
            spawn.get_preparation_data = preparation


def _check(options: dict[str, Any]) -> None:
    for name in options:
        if name not in OPTIONS:
            raise OptionError(
                f"install() knows no option {name}=. There are: {', '.join(OPTIONS)}. Write "
                f"headrace.install(seed=0)."
            )
    given = dict(options)
    if given.get("num_workers") in (None, 0):
        given.pop("backend", None)  # it is for the loaders that have workers
    _own_init(DataLoader.__new__(DataLoader), range(1), **given)  # type: ignore[arg-type]


def _init_with(options: dict[str, Any]) -> Callable[..., None]:
    signature = inspect.signature(_own_init)

    @wraps(_own_init)
    def __init__(self: DataLoader[Any], *args: Any, **kwargs: Any) -> None:
        dispatcher.correct()  # a library that was loaded since
        if not options:
            _own_init(self, *args, **kwargs)
            return
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            _own_init(self, *args, **kwargs)  # says what is wrong
            return
        given: dict[str, Any] = bound.arguments
        for name, value in options.items():
            if name == "num_workers" or name not in given:
                given[name] = value
        workers = given.get("num_workers", 0)
        if workers == 0:
            for name in (*_OF_WORKERS, "backend"):
                given.pop(name, None)
        elif given.get("backend") == "thread" and "backend" not in kwargs and workers != 1:
            dataset = given.get("dataset")
            if isinstance(dataset, IterableDataset) and not hasattr(dataset, "shard"):
                del given["backend"]  # threads cannot divide it: processes, as the program has it
        _own_init(*bound.args, **bound.kwargs)

    return __init__


def _rename(installed: _Installed) -> Iterator[str]:
    """Put our class under every name of torch's in the modules there are; yield the names."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "headrace" or not isinstance(module, ModuleType):
            continue
        namespace = vars(module)
        for name, value in list(namespace.items()):
            if value is STOCK:
                namespace[name] = DataLoader
                installed.names.append((namespace, name))
                yield f"{module_name}.{name}"


def _replace_held(installed: _Installed) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put our class wherever else torch's is held; return where, and where it cannot be done."""
    replaced, unreached = [], []
    for place in places(STOCK):
        try:
            if place.put is None:
                raise TypeError(place.name)
            place.put(DataLoader)
        except (TypeError, AttributeError, ValueError):
            unreached.append(place.name)
            continue
        installed.held.append(place)
        replaced.append(place.name)
    return tuple(replaced), tuple(unreached)


def _rebase(installed: _Installed) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Derive from our class what was derived from torch's; return those that are, and the rest."""
    replaced, left_alone = [], []
    for cls in STOCK.__subclasses__():
        if cls is DataLoader:
            continue
        name = f"{cls.__module__}.{cls.__qualname__}"
        if "_get_iterator" in vars(cls):
            left_alone.append(name)
            continue
        bases = cls.__bases__
        try:
            cls.__bases__ = tuple(DataLoader if base is STOCK else base for base in bases)
        except TypeError:  # bases that do not go together with ours
            left_alone.append(name)
            continue
        installed.bases.append((cls, bases))
        replaced.append(name)
    return tuple(replaced), tuple(left_alone)


def _private_users() -> Iterator[str]:
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in ("torch", "headrace"):
            continue
        if isinstance(module, ModuleType) and any(
            vars(module).get(name) is getattr(dataloader, name) for name in _PRIVATE_ITERATORS
        ):
            yield module_name


def _loaded_since(installed: _Installed) -> Iterator[str]:
    """Yield the modules that were loaded since, and may have taken ours for torch's.

    A module that names headrace in its source meant ours.
    """
    for module_name, module in list(sys.modules.items()):
        if module_name in installed.modules or not isinstance(module, ModuleType):
            continue
        if module_name.partition(".")[0] == "headrace":
            continue
        try:
            source = inspect.getsource(module)
        except (OSError, TypeError):
            continue
        if "DataLoader" in source and "headrace" not in source:
            yield module_name


def _taken(modules: set[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the names under which modules have our class."""
    for module in modules:
        namespace = vars(sys.modules[module])
        yield from (
            (namespace, name) for name, value in list(namespace.items()) if value is DataLoader
        )


class _Begin:
    """Unpickled, it installs: what a spawned process reads before it imports the main module."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._names = {"options": options, "path": sys.path}

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (_BEGIN, self._names)


# Code, not a function by reference: the path on which headrace is found is not set yet.
_BEGIN = """
import sys
sys.path[:] = path
from headrace.install import install
install(quiet=True, **options)
"""


def _preparation_with(options: dict[str, Any]) -> Any:
    """Return what makes the data that children by spawn and forkserver begin with."""

    @wraps(_own_preparation)
    def get_preparation_data(name: str) -> dict[str, Any]:
        return {**_own_preparation(name), "headrace": _Begin(options)}

    return get_preparation_data


def _count(things: tuple[str, ...], one: str, many: str | None = None) -> str:
    return f"{len(things)} {one if len(things) == 1 else many or one + 's'}"
