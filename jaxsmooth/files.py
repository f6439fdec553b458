"""Files and folders that a reader may trust: written whole or not at all, gone on with only when they match."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from etils import epath

from jaxsmooth.validation import InputError


def write_atomically(path: epath.PathLike, text: str) -> None:
    """Puts a complete file in place, or none: written under another name, flushed, then renamed."""
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            _flush_to_disk(file)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"could not write {path}: {error.strerror or error}; what was there before is intact"
        ) from None


def _flush_to_disk(file: IO[str]) -> None:
    try:
        descriptor = file.fileno()
    except (OSError, AttributeError):  # a bucket's file has none; it is whole once it is closed
        return
    os.fsync(descriptor)


@contextmanager
def exclusive(path: epath.PathLike, used: str, *, remove: bool = False) -> Iterator[None]:
    """Refuses a second run on the same files; the lock goes when the process does.

    File systems without locks (buckets) are not protected.

    Args:
        path: of the lock, a file.
        used: for the message, what is in use, such as "got runs/a: another run is writing there".
        remove: whether to leave no file behind. Two runs that start just as a third one ends may then both go on.

    Raises:
        InputError: when another process holds it.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"out must not be in use, {used}") from None
        except (OSError, AttributeError):
            pass
        try:
            yield
        finally:
            if remove:
                path.unlink(missing_ok=True)


def check_same(
    folder: epath.PathLike, existing: dict[str, Any], wanted: dict[str, Any], other: str | None = None
) -> None:
    """Refuses to go on with, or to merge, folders that depend on other things, listing the differences.

    Args:
        folder: whose settings are ``existing``.
        existing: nested settings.
        wanted: those of this run, or of the folder ``other``.
        other: name of the second folder when merging.
    """
    old, new = dict(_flat(existing)), dict(_flat(wanted))
    differing = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    if not differing:
        return
    listing = "; ".join(
        f"{key}: {old.get(key)} there, {new.get(key)} {f'in {other}' if other else 'now'}"
        for key in differing
    )
    remedy = "they cannot be merged" if other else "choose another folder for this one"
    raise InputError(f"{folder} holds results of another run ({listing}); {remedy}")


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
