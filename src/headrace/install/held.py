"""Where a class is held besides under a name of a module.

Defaults of functions, attributes of classes and objects, registries (dicts and lists), partials and
closures: found among what Python's garbage collector knows to refer to the class. Annotations,
caches that have it as a key, and what belongs to headrace stay as they are.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import CellType, FunctionType, ModuleType
from typing import Any

_NOT_ASKED = ("typing", "types", "builtins", "functools", "weakref", "_weakref", "inspect")


@dataclass(frozen=True)
class Place:
    """Something that holds a class, and can be given another.

    Attributes:
        name: for people.
        module: the name of the module that it belongs to, where that is known.
        get: returns what it holds now.
        put: gives it something else; None where that cannot be done.
    """

    name: str
    module: str | None
    get: Callable[[], Any]
    put: Callable[[Any], None] | None = None


def places(held: type) -> list[Place]:
    """Return where a class is held, outside of headrace and of the namespaces of modules."""
    found = _Search(held).places()
    return [place for place in found if not _is_ours(place.module)]


def _is_ours(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] == "headrace"


class _Search:
    """Whoever refers to a class, and who owns them."""

    def __init__(self, held: type) -> None:
        self._held = held
        self._modules: dict[int, str] = {}
        for name, module in list(sys.modules.items()):
            if isinstance(module, ModuleType):
                self._modules.setdefault(id(vars(module)), name)
        self._direct = [
            referrer
            for referrer in gc.get_referrers(held)
            if id(referrer) not in self._modules and not isinstance(referrer, type)
        ]
        self._owners = self._owners_of(self._direct)

    def _owners_of(self, things: list[Any]) -> dict[int, list[Any]]:
        """Return who refers to dicts, lists, tuples and cells, by their identity: in one pass."""
        kinds = (dict, list, tuple, CellType)
        owned = [thing for thing in things if isinstance(thing, kinds)]
        owners: dict[int, list[Any]] = {id(thing): [] for thing in owned}
        for owner in gc.get_referrers(*owned):
            if owner is owned or owner is things:
                continue
            for thing in gc.get_referents(owner):
                if id(thing) in owners:
                    owners[id(thing)].append(owner)
        return owners

    def places(self) -> Iterator[Place]:
        cells = []
        for referrer in self._direct:
            if isinstance(referrer, CellType):
                cells.append(referrer)
            elif isinstance(referrer, dict):
                yield from self._in_dict(referrer)
            elif isinstance(referrer, list):
                yield from self._in_list(referrer)
            elif isinstance(referrer, tuple):
                yield from self._in_tuple(referrer)
            elif isinstance(referrer, partial):
                yield from self._in_partial(referrer)
            elif type(referrer).__module__ not in _NOT_ASKED and hasattr(referrer, "__dict__"):
                yield from self._in_object(referrer, vars(referrer))
        yield from self._in_cells(cells)

    def _keys(self, namespace: dict[Any, Any]) -> list[Any]:
        return [key for key, value in list(namespace.items()) if value is self._held]

    def _in_dict(self, namespace: dict[Any, Any]) -> Iterator[Place]:
        owners = self._owners[id(namespace)]
        for owner in owners:
            if isinstance(owner, type):
                yield from self._in_class(owner)
                return
            if isinstance(owner, FunctionType):
                if owner.__kwdefaults__ is namespace:
                    for key in self._keys(namespace):
                        name = f"{_named(owner)}({key}=)"
                        yield _item(name, owner.__module__, namespace, key)
                    return
                if owner.__annotations__ is namespace:
                    return
            elif isinstance(owner, dict) and owner.get("__annotations__") is namespace:
                return
            elif getattr(owner, "__dict__", None) is namespace:
                yield from self._in_object(owner, namespace)
                return
        module, name = self._registry(namespace, owners)
        for key in self._keys(namespace):
            yield _item(f"{name}[{key!r}]", module, namespace, key)

    def _in_class(self, cls: type) -> Iterator[Place]:
        for key in self._keys(dict(vars(cls))):
            if key in ("__origin__", "__orig_class__"):
                continue
            yield Place(
                f"{cls.__module__}.{cls.__qualname__}.{key}",
                cls.__module__,
                partial(getattr, cls, key),
                partial(setattr, cls, key),
            )

    def _in_object(self, owner: Any, namespace: dict[str, Any]) -> Iterator[Place]:
        kind = type(owner)
        if kind.__module__ in _NOT_ASKED:
            return
        for key in self._keys(namespace):
            name = f"an object of {kind.__module__}.{kind.__qualname__}, {key}"
            yield _item(name, kind.__module__, namespace, key)

    def _in_list(self, several: list[Any]) -> Iterator[Place]:
        module, name = self._registry(several, self._owners[id(several)])
        for number, value in enumerate(several):
            if value is self._held:
                yield _item(f"{name}[{number}]", module, several, number)

    def _in_tuple(self, several: tuple[Any, ...]) -> Iterator[Place]:
        owners = self._owners[id(several)]
        for owner in owners:
            if isinstance(owner, FunctionType) and owner.__defaults__ is several:
                yield _Defaults(owner).place(self._held)
                return
        for owner in owners:  # in others it is a class's bases, or the key of a cache
            module = self._modules.get(id(owner))
            if module is not None and type(several) is tuple:
                for key, value in list(owner.items()):
                    if value is several:
                        yield _Constant(owner, key, several.index(self._held)).place(module)

    def _in_partial(self, call: partial[Any]) -> Iterator[Place]:
        def put(value: Any) -> None:
            call.__setstate__((value, call.args, call.keywords, vars(call) or None))  # type: ignore[attr-defined]

        if call.func is self._held:
            yield Place("a functools.partial", None, lambda: call.func, put)

    def _in_cells(self, cells: list[CellType]) -> Iterator[Place]:
        """Yield what functions keep of the function around them; not what ``super()`` needs."""
        closures = [owner for cell in cells for owner in self._owners[id(cell)]]
        functions = self._owners_of(closures)
        for closure in {id(closure): closure for closure in closures}.values():
            for function in functions.get(id(closure), ()):
                if not isinstance(function, FunctionType):
                    continue
                freevars = function.__code__.co_freevars
                for name, cell in zip(freevars, function.__closure__ or (), strict=True):
                    if name != "__class__" and any(cell is one for one in cells):
                        yield Place(
                            f"{_named(function)}, its {name}",
                            function.__module__,
                            partial(getattr, cell, "cell_contents"),
                            partial(setattr, cell, "cell_contents"),
                        )

    def _registry(self, things: Any, owners: list[Any]) -> tuple[str | None, str]:
        """Return the module and the name of something that stands in a module's namespace."""
        for owner in owners:
            module = self._modules.get(id(owner))
            if module is not None:
                for key, value in owner.items():
                    if value is things:
                        return module, f"{module}.{key}"
            if isinstance(owner, type):
                for key, value in vars(owner).items():
                    if value is things:
                        return owner.__module__, f"{owner.__module__}.{owner.__qualname__}.{key}"
        return None, f"a {type(things).__name__}"


@dataclass(frozen=True)
class _Defaults:
    """The defaults of a function."""

    function: FunctionType

    def place(self, held: type) -> Place:
        """Return the places of a class among them as one."""
        function = self.function
        numbers = [n for n, value in enumerate(function.__defaults__ or ()) if value is held]

        def get() -> Any:
            return (function.__defaults__ or ())[numbers[0]]

        def put(value: Any) -> None:
            values = list(function.__defaults__ or ())
            for number in numbers:
                values[number] = value
            function.__defaults__ = tuple(values)

        code = function.__code__
        positional = code.co_varnames[: code.co_argcount]
        names = positional[len(positional) - len(function.__defaults__ or ()) :]
        listed = ", ".join(f"{names[number]}=" for number in numbers)
        return Place(f"{_named(function)}({listed})", function.__module__, get, put)


@dataclass(frozen=True)
class _Constant:
    """A tuple under a name of a module, with a class at one place."""

    namespace: dict[str, Any]
    key: str
    number: int

    def place(self, module: str) -> Place:
        """Return it as a place."""
        return Place(f"{module}.{self.key}[{self.number}]", module, self._get, self._put)

    def _get(self) -> Any:
        return self.namespace[self.key][self.number]

    def _put(self, value: Any) -> None:
        before = self.namespace[self.key]
        old = before[self.number]
        self.namespace[self.key] = tuple([value if one is old else one for one in before])


def _named(function: FunctionType) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _item(name: str, module: str | None, things: Any, key: Any) -> Place:
    return Place(name, module, partial(things.__getitem__, key), partial(things.__setitem__, key))
