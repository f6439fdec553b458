"""``jaxsmooth merge``: results folders of one sweep, joined."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxsmooth.sweep import records


@dataclasses.dataclass(frozen=True)
class Merge:
    """Join results folders of the same certificates (the shards of a job array) into a new one.

    Folders whose manifests differ in anything that determines a certificate are refused. Runs that wrote into one
    folder need no merging.

    Example: jaxsmooth merge shard-0 shard-1 --out all
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER...")]
    """Results folders."""
    out: Path
    """New results folder to write."""


def run(options: Merge) -> None:
    """Merges, and says how many examples there are."""
    count = records.merge(options.folders, options.out)
    print(f"merged {len(options.folders)} folders: {count} examples in {options.out}")
