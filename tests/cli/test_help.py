"""Help and version: what a newcomer types first."""

import pytest

import headrace as package


def test_version_is_the_package_version(headrace):
    outcome = headrace("--version")
    assert outcome.code == 0
    assert outcome.out.startswith(f"headrace {package.__version__} ")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_bare_command_and_help_show_the_commands(headrace, arguments):
    outcome = headrace(*arguments)
    assert outcome.code == 0
    assert "demo" in outcome.out
    assert "bench" in outcome.out
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("arguments", "examples"),
    [
        (["--help"], ["headrace demo"]),
        (["demo", "--help"], ["headrace demo --epochs 3 --batch-size 128 --out pictures"]),
        (["tokenize", "--help"], ["headrace tokenize books/*.txt --tokenizer tokenizer.json"]),
        (["bench", "--help"], ["headrace bench inmemory --quick"]),
        (["bench", "inmemory", "--help"], ["headrace bench inmemory --json > inmemory.json"]),
    ],
)
def test_help_gives_examples(headrace, arguments, examples):
    outcome = headrace(*arguments)
    assert outcome.code == 0
    for example in examples:
        assert example in " ".join(outcome.out.split())
