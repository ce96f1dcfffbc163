"""``headrace tokenize``: files of texts made into a corpus of tokens."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.problems import CannotGoOn, WrongUse, one_line_errors
from headrace.cli.values import number_option

EXAMPLES = """
Examples:

  [bold]headrace tokenize books/*.txt --tokenizer tokenizer.json -o books.bin[/]

  [bold]headrace tokenize part-*.jsonl.zst --field body --tokenizer gpt2/ -o web.bin[/]

  [bold]headrace tokenize notes.txt --tokenizer my_module:encode --end-token 0 -o notes.bin[/]
"""


def tokenize(  # noqa: PLR0917 - typer's
    inputs: Annotated[
        list[str],
        typer.Argument(help="Text (a document a line), .jsonl, these .gz or .zst, .parquet."),
    ],
    tokenizer: Annotated[
        str, typer.Option(help="A tokenizer.json, a directory with one, or module:function.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="NAME.bin; the index is written to NAME.idx.")
    ],
    field: Annotated[str, typer.Option(help="The field or column that holds the text.")] = "text",
    end_token: Annotated[
        str | None,
        typer.Option(help="Written behind each document; default: the tokenizer's own, if any."),
    ] = None,
    workers: Annotated[int | None, number_option("Processes; default: one for each core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the tokens of texts to one file that TokenFile, nanoGPT and Megatron-LM read.

    The same texts give the same bytes for any number of workers. After a kill the same command goes
    on.
    """
    with one_line_errors("headrace tokenize"):
        from headrace.apply.tokens import tokenize_files
        from headrace.errors import HeadraceError, OptionError

        if workers is not None and workers < 0:
            raise WrongUse(f"--workers must be at least 0, not {workers}")
        try:
            made = tokenize_files(
                inputs, out, tokenizer, field=field, end_token=end_token, num_workers=workers
            )
        except OptionError as error:
            raise WrongUse(str(error)) from error
        except (HeadraceError, OSError) as error:
            raise CannotGoOn(str(error)) from error
        if as_json:
            print(json.dumps({**asdict(made), "path": str(made.path)}))
            return
        end = "no token behind documents" if made.end_token is None else f"end {made.end_token}"
        print(
            f"{made.path}: {made.documents:,} documents, {made.tokens:,} tokens of {made.dtype}, "
            f"{end}, checksum {made.checksum:08x} ({made.tokens_per_s:,.0f} tokens/s)"
        )
