"""The exceptions: each derives from the builtin that a user would catch."""

import inspect
import pickle
import re

import pytest

from headrace import errors
from headrace.errors import CollateError, HeadraceError, format_path

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, HeadraceError)
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_stand_in_the_drawing_with_their_builtin(cls: type) -> None:
    drawn = re.search(rf"[─ ]{cls.__name__}\b(?: +\((\w+)\))?", f" {errors.__doc__}")
    assert drawn or cls is HeadraceError, f"{cls.__name__} is missing in the docstring"
    if drawn and drawn[1]:
        assert drawn[1] in [base.__name__ for base in cls.__mro__]
    if cls not in (HeadraceError, CollateError):
        builtin = [b for b in cls.__mro__ if b.__module__ == "builtins"]
        assert builtin[0] not in (Exception, BaseException, object)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_have_a_docstring(cls: type) -> None:
    assert cls.__doc__


def test_key_paths_read_as_python_would_index_them() -> None:
    assert format_path(("image", 0, "left")) == "sample['image'][0]['left']"
    assert format_path(()) == "sample"


def test_a_collate_error_says_where() -> None:
    error = CollateError("they differ", "Pad them.", (0, 2))
    assert str(error) == "they differ. Pad them."
    error.path, error.indices = ("x",), (7, 9)
    assert str(error) == "they differ at sample['x'] (dataset indices 7 and 9). Pad them."
    error.indices = (7,)
    assert "(dataset index 7)" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
