"""``headrace shards``: write shards of a folder, and indexes beside shards."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.problems import CannotGoOn, WrongUse, one_line_errors
from headrace.cli.values import number_option

shards = typer.Typer(rich_markup_mode="rich")

_MIB = 1 << 20


@shards.callback(
    invoke_without_command=True,
    epilog="Examples:  [bold]headrace shards pack photographs out[/]   "
    "[bold]headrace shards index 'out/*.tar'[/]",
)
def _root(context: typer.Context) -> None:
    """Write tar shards, which TarDataset and WebDataset read, and their indexes."""
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")


@shards.command(
    epilog="Example:  [bold]headrace shards pack photographs out --classes --shuffle 0[/]"
)
def pack(  # noqa: PLR0917 - typer's
    folder: Annotated[Path, typer.Argument(help="The files, in folders or not.")],
    out: Annotated[
        str, typer.Argument(help="A directory, out/train-{:05d}.tar, or s3://bucket/train.")
    ],
    shard_mib: Annotated[int, number_option("At most so many MiB in a shard.")] = 256,
    classes: Annotated[
        bool, typer.Option("--classes", help="Add .cls: the number of the first folder.")
    ] = False,
    shuffle: Annotated[int | None, number_option("Put samples in an order of this seed.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the shards that are there, write the others.")
    ] = False,
) -> None:
    """Write the files of a folder to tar shards, with their indexes."""
    with one_line_errors("headrace shards pack"):
        from headrace.data.shards.addresses import find_shards
        from headrace.data.shards.write import pack_folder
        from headrace.data.stores.remote import Stores
        from headrace.errors import HeadraceError

        if shard_mib < 1:
            raise WrongUse(f"--shard-mib must be at least 1, not {shard_mib}")
        if not folder.is_dir():
            raise WrongUse(f"{folder} is no directory")
        try:
            paths = pack_folder(
                folder,
                out,
                shard_bytes=shard_mib * _MIB,
                classes=classes,
                shuffle=shuffle,
                resume=resume,
            )
        except (HeadraceError, OSError) as error:
            raise CannotGoOn(str(error).replace("resume=True", "--resume")) from error
        size = sum(place.stamp.size_bytes for place in find_shards(paths, ".tar", Stores()))
        many = "" if len(paths) == 1 else f" ... {paths[-1]}"
        print(f"{len(paths):,} shards, {size:,} bytes: {paths[0]}{many}")


@shards.command(epilog="Example:  [bold]headrace shards index 'train/{000..146}.tar'[/]")
def index(
    addresses: Annotated[
        list[str], typer.Argument(help="Shards: paths, addresses, patterns, braces, directories.")
    ],
) -> None:
    """Write the index of each shard beside it, so that no program has to look for samples."""
    with one_line_errors("headrace shards index"):
        from headrace.data.progress import Progress
        from headrace.data.shards.addresses import find_shards
        from headrace.data.shards.index import make_beside
        from headrace.data.stores.remote import Stores
        from headrace.errors import HeadraceError

        made, stores = 0, Stores()
        try:
            found = find_shards(addresses, ".tar", stores)
            with Progress("indexing shards", len(found), "shards") as progress:
                for shard in found:
                    made += make_beside(shard, stores)
                    progress.advance()
        except (HeadraceError, OSError) as error:
            raise CannotGoOn(str(error)) from error
        print(f"{made:,} indexes written, {len(found) - made:,} were there")
