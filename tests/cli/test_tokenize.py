"""``headrace tokenize``: what it prints, and its exit codes."""

import json
from pathlib import Path
from typing import Any

from apply.tokens.test_tokenize import TEXTS, tokenizer, write_inputs

__all__ = ["tokenizer"]  # a fixture


def test_the_command(headrace: Any, tmp_path: Path, tokenizer: Path) -> None:
    path, out = write_inputs(tmp_path, "jsonl"), tmp_path / "c.bin"
    command = ["tokenize", str(path), "--tokenizer", str(tokenizer), "-o", str(out)]
    outcome = headrace(*command, "--workers", "0", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["documents"] == len(TEXTS)
    again = headrace(*command)
    assert again.code == 1
    assert "there already" in again.err
    out.unlink()
    out.with_suffix(".idx").unlink()
    outcome = headrace(*command, "--workers", "0")
    assert f"{len(TEXTS)} documents" in outcome.out
    assert headrace(*command[:-1], "x.npy").code == 2
    assert headrace(*command, "--workers=-1").code == 2
