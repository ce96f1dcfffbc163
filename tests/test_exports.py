"""The public names: all there, all documented, and importing them costs torch and NumPy only."""

import builtins
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import pytest
import torch.utils.data

import headrace

# What a user of datasets and loaders takes from torch.utils.data. The rest of its names are
# data pipes, their helpers and functions for torch's own workers.
FROM_TORCH = [
    "BatchSampler",
    "ChainDataset",
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "DistributedSampler",
    "IterableDataset",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "StackDataset",
    "Subset",
    "SubsetRandomSampler",
    "TensorDataset",
    "WeightedRandomSampler",
    "default_collate",
    "default_convert",
    "get_worker_info",
    "random_split",
]
REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
# The modules whose names a version keeps: "Versions" in CONTRIBUTING.md.
PUBLIC_MODULES = ["headrace", "headrace.data", "headrace.train", "headrace.tune"]
WHOLE_MODULES = {"headrace.errors", "headrace.testing"}  # in the reference with all that they hold
EXTRAS = [
    "rich",
    "typer",
    "matplotlib",
    "sklearn",
    "pyarrow",
    "polars",
    "PIL",
    "lightning",
    "lightning_fabric",
    "torchmetrics",
    "safetensors",
    "simplejpeg",
    "backports",
    "pandas",
    "datasets",
]


def public_errors():
    members = (getattr(headrace, name) for name in headrace.__all__)
    return [member for member in members if inspect.isclass(member) and is_exception(member)]


def is_exception(member):
    return issubclass(member, BaseException) and not issubclass(member, Warning)


def test_all_names_exist_once():
    assert len(set(headrace.__all__)) == len(headrace.__all__)
    missing = [name for name in headrace.__all__ if not hasattr(headrace, name)]
    assert missing == []


def test_all_is_what_a_star_import_gives():
    namespace = {}
    exec("from headrace import *", namespace)
    assert set(headrace.__all__) <= set(namespace)


@pytest.mark.parametrize("name", headrace.__all__)
def test_public_name_is_documented(name):
    member = getattr(headrace, name)
    if inspect.ismodule(member) or inspect.isclass(member) or callable(member):
        # The class's own words: a docstring inherited from torch would describe torch's.
        own = vars(member).get("__doc__") if inspect.isclass(member) else member.__doc__
        assert own, f"headrace.{name} has no docstring"


def own_classes():
    members = {name: getattr(headrace, name) for name in headrace.__all__}
    return [
        name
        for name, member in members.items()
        if inspect.isclass(member) and member.__module__.startswith("headrace")
    ]


@pytest.mark.parametrize("name", own_classes())
def test_public_methods_are_documented(name):
    member = getattr(headrace, name)
    undocumented = [
        method
        for method, value in vars(member).items()
        if not method.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
        and not inspect.getdoc(value)
    ]
    assert undocumented == []


@pytest.mark.parametrize("name", FROM_TORCH)
def test_names_of_torch_are_here(name):
    assert hasattr(torch.utils.data, name)
    assert name in headrace.__all__
    theirs, ours = getattr(torch.utils.data, name), getattr(headrace, name)
    if inspect.isclass(theirs):
        assert issubclass(ours, theirs), f"isinstance checks against torch's {name} would fail"


def test_no_name_of_torch_was_missed():
    """A name that a newer torch adds fails here, and is then sorted into a list on purpose."""
    known = {
        *FROM_TORCH,
        "DFIterDataPipe",
        "DataChunk",
        "IterDataPipe",
        "MapDataPipe",
        "_DatasetKind",
        "argument_validation",
        "functional_datapipe",
        "guaranteed_datapipes_determinism",
        "non_deterministic",
        "runtime_validation",
        "runtime_validation_disabled",
    }
    assert set(torch.utils.data.__all__) - known == set()


def test_errors_derive_from_the_builtin_that_a_user_would_catch():
    errors = public_errors()
    for error in errors:
        if any(issubclass(other, error) for other in errors if other is not error):
            continue  # a family of errors: its members say which builtin
        mro = [base for base in error.__mro__ if base.__module__ == builtins.__name__]
        specific = [base for base in mro if base not in (Exception, BaseException, object)]
        assert specific, f"{error.__name__} derives from Exception only"


def test_errors_share_one_root():
    import headrace.errors as errors

    ours = [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and value.__module__ == errors.__name__ and is_exception(value)
    ]
    roots = [error for error in ours if all(issubclass(other, error) for other in ours)]
    assert not ours or len(roots) == 1


def test_importing_headrace_loads_no_extra_and_starts_nothing():
    code = textwrap.dedent(
        f"""
        import json, sys, threading, multiprocessing
        import torch, numpy
        before = set(sys.modules)
        import headrace
        new = {{name.split(".")[0] for name in set(sys.modules) - before}}
        print(json.dumps({{
            "extras": sorted(new & set({EXTRAS!r})),
            "threads": threading.active_count(),
            "children": len(multiprocessing.active_children()),
        }}))
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"extras": [], "threads": 1, "children": 0}


def test_version_is_the_distributions():
    assert headrace.__version__ == importlib.metadata.version("headrace")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", headrace.__version__)


def reference_pages():
    return "\n".join(page.read_text(encoding="utf-8") for page in sorted(REFERENCE.glob("*.md")))


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_every_public_name_is_in_the_reference(module):
    pages = reference_pages()
    described = set(re.findall(r"^::: (\S+)$", pages, re.M)) | set(re.findall(r"`(\w+)`", pages))
    names = {target.rpartition(".")[2] for target in described}
    errors = {name for name, member in vars(headrace).items() if is_of_errors(member)}
    assert set(import_module(module).__all__) - names - errors == set()


def is_of_errors(member):
    return inspect.isclass(member) and member.__module__ == "headrace.errors"


def test_the_reference_describes_public_names_only():
    public = {name for module in PUBLIC_MODULES for name in import_module(module).__all__}
    targets = set(re.findall(r"^::: (\S+)$", reference_pages(), re.M)) - WHOLE_MODULES
    assert {t for t in targets if t.rpartition(".")[2] not in public} == set()
