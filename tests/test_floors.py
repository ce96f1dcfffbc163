"""The house keeps its shape: a file imports only floors below its own.

The table is drawn in CONTRIBUTING.md ("The house"). Imports are read from the source with
``ast``, so nothing is executed and imports inside functions are seen too. Each rule is also
shown to fire, on a small house built wrongly on purpose.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src" / "headrace"

# Lowest first. A room is a module or a package directly under headrace/. Rooms of one floor
# may use each other, as long as no cycle arises. A room that does not exist yet is fine.
FLOORS = [
    (
        "ground",
        {
            "errors",
            "extras",
            "tree",
            "rng",
            "mersenne",
            "memory",
            "traffic",
            "notices",
            "oom",
            "machine",
            "sized",
            "spelling",
            "locks",
            "written",
        },
    ),
    ("first", {"data", "sampling", "collate"}),
    ("second: movement", {"engine"}),
    ("third: the face", {"loader", "iterator", "wiring", "checks", "carried", "testing"}),
    ("fourth", {"train", "tune", "apply", "install", "profile"}),
    ("fifth", {"bench"}),
    ("top", {"cli", "__main__"}),
]
FLOOR_OF = {room: number for number, (_, rooms) in enumerate(FLOORS) for room in rooms}
OUTSIDE = FLOOR_OF["bench"]  # from here on up, the house is used by its public names

# Inside the engine, lowest first: modules directly under engine/ are its hall, which every room
# uses; the rooms are packages, and stand in the order in which a batch goes through them.
ENGINE = [{"hall"}, {"order"}, {"making"}, {"ahead", "backends"}, {"epoch"}]
ENGINE_FLOOR_OF = {room: number for number, rooms in enumerate(ENGINE) for room in rooms}

# These use DataLoader as anybody would, never the machinery under it.
FACE_ONLY = {"train": {"engine"}, "tune": {"engine"}, "apply": {"engine"}, "cli": {"engine"}}

# Rooms whose modules may import other modules of headrace inside a function: a command loads
# what it runs, so that `headrace --help` does not wait for torch.
LAZY_ROOMS = {"cli", "bench"}

BASE_DEPENDENCIES = {"torch", "numpy", "headrace"} | set(sys.stdlib_module_names)
MAX_LINES = 400


@dataclass(frozen=True)
class Import:
    """One imported module, as seen in one file."""

    importer: str  # "headrace.engine.making.fetch"
    target: str  # "headrace.data.gather", or "torch"
    line: int
    in_function: bool
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def module_name(path: Path, root: Path) -> str:
    parts = ["headrace", *path.relative_to(root).with_suffix("").parts]
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def modules_of(root: Path) -> dict[str, Path]:
    return {module_name(path, root): path for path in sorted(root.rglob("*.py"))}


def room_of(module: str) -> str:
    """The room a module stands in; the package itself, headrace/__init__.py, is ''."""
    return module.split(".")[1] if "." in module else ""


def engine_room_of(module: str, packages: set[str]) -> str | None:
    """The room of the engine that a module stands in, "hall" for those directly under engine/."""
    parts = module.split(".")
    if parts[1:2] != ["engine"] or len(parts) < 3:
        return None
    return parts[2] if ".".join(parts[:3]) in packages else "hall"


def imports_of(module: str, path: Path, modules: dict[str, Path]) -> Iterator[Import]:
    def walk(node, in_function, typing_only):
        for child in ast.iter_child_nodes(node):
            function = in_function or isinstance(
                child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
            )
            typing = typing_only or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            )
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, in_function, typing_only)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    is_package = path.name == "__init__.py"
                    parents = module.split(".")
                    keep = len(parents) - child.level + (1 if is_package else 0)
                    base = ".".join([*parents[:keep], *([base] if base else [])])
                for alias in child.names:
                    # `from headrace.data import gather` names a module, not a member.
                    inner = f"{base}.{alias.name}"
                    target = inner if inner in modules else base
                    yield Import(module, target, child.lineno, in_function, typing_only)
            yield from walk(child, function, typing)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False, False)


def all_imports(root: Path) -> list[Import]:
    modules = modules_of(root)
    return [found for name, path in modules.items() for found in imports_of(name, path, modules)]


def is_ours(module: str) -> bool:
    return module == "headrace" or module.startswith("headrace.")


def unknown_rooms(root: Path) -> list[str]:
    rooms = {room_of(module) for module in modules_of(root)} - {""}
    return sorted(rooms - set(FLOOR_OF))


def floor_violations(root: Path) -> list[str]:
    wrong = []
    for found in all_imports(root):
        if not is_ours(found.target):
            continue
        here, there = room_of(found.importer), room_of(found.target)
        if here == "":
            if FLOOR_OF.get(there, 0) >= OUTSIDE:
                wrong.append(f"{found}: the package's own names never need the top floor")
        elif there == "":
            if FLOOR_OF.get(here, 0) < OUTSIDE:
                wrong.append(f"{found}: import the module that defines the name instead")
        elif FLOOR_OF.get(there, 0) > FLOOR_OF.get(here, 0):
            wrong.append(f"{found}: from the floor '{FLOORS[FLOOR_OF[there]][0]}' above its own")
        elif there in FACE_ONLY.get(here, set()):
            wrong.append(f"{found}: {here} uses the face only")
    return wrong


def engine_violations(root: Path) -> list[str]:
    modules = modules_of(root)
    packages = {name for name, path in modules.items() if path.name == "__init__.py"}
    wrong = []
    for module in modules:
        room = engine_room_of(module, packages)
        if room is not None and room not in ENGINE_FLOOR_OF:
            wrong.append(f"{module}: engine/{room} has no floor in ENGINE")
    for found in all_imports(root):
        here = engine_room_of(found.importer, packages)
        there = engine_room_of(found.target, packages)
        if here == there or here not in ENGINE_FLOOR_OF or there not in ENGINE_FLOOR_OF:
            continue
        if ENGINE_FLOOR_OF[there] >= ENGINE_FLOOR_OF[here]:
            wrong.append(f"{found}: engine/{here} stands below engine/{there}, or beside it")
    return wrong


def hidden_imports(root: Path) -> list[str]:
    return [
        str(found)
        for found in all_imports(root)
        if found.in_function
        and is_ours(found.target)
        and room_of(found.importer) not in LAZY_ROOMS | {""}
    ]


def cycles(root: Path) -> list[str]:
    """Import cycles between modules; an import for type checkers is one to a reader too."""
    graph: dict[str, set[str]] = {}
    for found in all_imports(root):
        if is_ours(found.target) and not found.in_function:
            graph.setdefault(found.importer, set()).add(found.target)
    seen, stack, result = set(), [], []

    def visit(module):
        if module in stack:
            result.append(" -> ".join([*stack[stack.index(module) :], module]))
            return
        if module in seen:
            return
        stack.append(module)
        for target in sorted(graph.get(module, ())):
            visit(target)
        stack.pop()
        seen.add(module)

    for module in sorted(graph):
        visit(module)
    return result


def eager_extras(root: Path) -> list[str]:
    """What `import headrace` would load beyond torch and NumPy."""
    modules = modules_of(root)
    wrong, seen, todo = [], set(), ["headrace"]
    while todo:
        module = todo.pop()
        if module in seen or module not in modules:
            continue
        seen.add(module)
        todo += [".".join(module.split(".")[:n]) for n in range(1, module.count(".") + 1)]
        for found in imports_of(module, modules[module], modules):
            if found.in_function or found.typing_only:
                continue
            if is_ours(found.target):
                todo.append(found.target)
            elif found.target.split(".")[0] not in BASE_DEPENDENCIES:
                wrong.append(str(found))
    return wrong


def long_files(root: Path) -> list[str]:
    lengths = {path: path.read_text(encoding="utf-8").count("\n") for path in root.rglob("*.py")}
    return [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > MAX_LINES]


RULES = {
    "every room has its floor": unknown_rooms,
    "a file imports only floors below it": floor_violations,
    "the engine's rooms are a staircase": engine_violations,
    "no import of headrace hides in a function": hidden_imports,
    "no import cycles": cycles,
    "importing headrace needs torch and NumPy only": eager_extras,
    f"files of at most {MAX_LINES} lines": long_files,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps(rule):
    wrong = RULES[rule](SRC)
    assert not wrong, f"{rule}:\n" + "\n".join(wrong)


def rooms_drawn(text: str) -> dict[str, set[str]]:
    """The rooms that the tables of CONTRIBUTING.md name, by floor."""
    table = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    return {
        cells[1].strip(): {
            room.strip("/").removesuffix(".py") for room in re.findall(r"`([^`]+)`", cells[2])
        }
        for cells in table
        if len(cells) > 3
    }


def test_the_house_is_drawn_as_it_is():
    contributing = (SRC.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = rooms_drawn(contributing)
    there = {room_of(module) for module in modules_of(SRC)} - {""}
    for name, rooms in FLOORS:
        assert drawn[name] == rooms & there - {"__main__"}
    for rooms in ENGINE:
        for room in rooms - {"hall"}:
            assert f"`engine/{room}/`" in contributing, f"CONTRIBUTING.md draws no engine/{room}/"


# Each rule on a house built wrongly: rule, its files, what the report must mention (None: the
# house is fine).
HOUSES = [
    ("every room has its floor", {"attic.py": ""}, "attic"),
    ("every room has its floor", {"errors.py": "", "engine/task.py": ""}, None),
    (
        "a file imports only floors below it",
        {"tree.py": "from headrace.engine.task import Task", "engine/task.py": ""},
        "headrace.tree:1 imports headrace.engine.task",
    ),
    (
        "a file imports only floors below it",
        {"engine/task.py": "from ..loader import DataLoader", "loader.py": ""},
        "headrace.engine.task:1 imports headrace.loader",
    ),
    (
        "a file imports only floors below it",
        {"data/gather.py": "def f():\n    import headrace.loader", "loader.py": ""},
        "headrace.data.gather:2 imports headrace.loader",
    ),
    (
        "a file imports only floors below it",
        {"data/gather.py": "from headrace import DataLoader"},
        "import the module that defines the name",
    ),
    (
        "a file imports only floors below it",
        {"train/loop.py": "from headrace.engine import window", "engine/epoch/window.py": ""},
        "face only",
    ),
    (
        "a file imports only floors below it",
        {"__init__.py": "from headrace.cli import main", "cli/__init__.py": ""},
        "top floor",
    ),
    (
        "a file imports only floors below it",
        {"bench/device.py": "from headrace.cli.problems import WrongUse", "cli/problems.py": ""},
        "headrace.bench.device:1 imports headrace.cli.problems",
    ),
    (
        "a file imports only floors below it",
        {
            "__init__.py": "from headrace.loader import DataLoader",
            "loader.py": "from headrace.engine.epoch.window import Window",
            "engine/epoch/window.py": "from .task import Task\nfrom headrace import errors",
            "engine/task.py": "import headrace.errors",
            "errors.py": "",
            "cli/demo.py": "from headrace import DataLoader",
        },
        None,
    ),
    (
        "the engine's rooms are a staircase",
        {
            "engine/task.py": "",
            "engine/order/__init__.py": "",
            "engine/order/ranks.py": "from headrace.engine.epoch.window import Window",
            "engine/epoch/__init__.py": "",
            "engine/epoch/window.py": "from headrace.engine.task import Task",
        },
        "headrace.engine.order.ranks:1 imports headrace.engine.epoch.window",
    ),
    (
        "the engine's rooms are a staircase",
        {
            "engine/ahead/__init__.py": "",
            "engine/ahead/transfer.py": "import headrace.engine.backends.base",
            "engine/backends/__init__.py": "",
            "engine/backends/base.py": "",
        },
        "or beside it",
    ),
    (
        "the engine's rooms are a staircase",
        {"engine/cellar/__init__.py": "", "engine/cellar/wine.py": ""},
        "engine/cellar has no floor",
    ),
    (
        "the engine's rooms are a staircase",
        {
            "engine/task.py": "",
            "engine/epoch/__init__.py": "",
            "engine/epoch/window.py": "from headrace.engine import task",
        },
        None,
    ),
    (
        "no import of headrace hides in a function",
        {"loader.py": "def f():\n    from headrace.errors import E", "errors.py": ""},
        "headrace.loader:2",
    ),
    (
        "no import of headrace hides in a function",
        {"cli/app.py": "def f():\n    import headrace", "data/x.py": "def f():\n    import PIL"},
        None,
    ),
    (
        "no import cycles",
        {
            "engine/a.py": "from headrace.engine.b import B",
            "engine/b.py": "from . import c",
            "engine/c.py": "import headrace.engine.a",
        },
        "headrace.engine.a -> headrace.engine.b -> headrace.engine.c -> headrace.engine.a",
    ),
    (
        "no import cycles",
        {
            "train/loop.py": "if TYPE_CHECKING:\n    from headrace.train.trainer import Trainer",
            "train/trainer.py": "from headrace.train.loop import Fit",
        },
        "headrace.train.loop -> headrace.train.trainer -> headrace.train.loop",
    ),
    (
        "no import cycles",
        {"engine/a.py": "import headrace.engine.b", "engine/b.py": "import headrace.errors"},
        None,
    ),
    (
        "importing headrace needs torch and NumPy only",
        {
            "__init__.py": "from headrace.data.tables import CSVDataset",
            "data/__init__.py": "",
            "data/tables.py": "import polars as pl",
        },
        "headrace.data.tables:1 imports polars",
    ),
    (
        "importing headrace needs torch and NumPy only",
        {
            "__init__.py": "from headrace.data.tables import CSVDataset",
            "data/tables.py": "def read():\n    import polars",
            "cli/app.py": "import typer",
        },
        None,
    ),
    (f"files of at most {MAX_LINES} lines", {"tree.py": "x = 1\n" * 451}, "451 lines"),
]


@pytest.mark.parametrize(("rule", "files", "report"), HOUSES)
def test_the_rule_sees_what_is_wrong(tmp_path, rule, files, report):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    wrong = RULES[rule](tmp_path)
    if report is None:
        assert wrong == []
    else:
        assert report in "\n".join(wrong)
