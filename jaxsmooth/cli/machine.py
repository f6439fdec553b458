"""Set-up of JAX that the commands share."""

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import jax

from jaxsmooth import devices, validation


def prepare(compilation_cache: str) -> None:
    """One XLA device per CPU core, and compiled programs kept between runs.

    Args:
        compilation_cache: "auto" for a folder in the user's cache, "off", or a folder.
    """
    devices.use_every_core()
    if compilation_cache == "off":
        return
    if compilation_cache == "auto":
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        compilation_cache = str(Path(base) / "jaxsmooth" / "compiled")
    jax.config.update("jax_compilation_cache_dir", compilation_cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def parse_batch_size(text: str) -> int | None:
    """A number of rows, or None for "auto"."""
    if text == "auto":
        return None
    try:
        value: float = float(text)
    except ValueError:
        raise validation.InputError(f"batch_size must be a whole number or 'auto', got {text!r}") from None
    return validation.check_integer("batch_size", value, at_least=1)


def parse_shard(text: str) -> tuple[int, int]:
    """``i/n`` as two numbers.

    Example:
        >>> parse_shard("3/8")
        (3, 8)
    """
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise validation.InputError(f"shard must be i/n, such as 0/4, got {text!r}") from None
    if not 0 <= index < count:
        raise validation.InputError(f"shard must be i/n with 0 <= i < n, got {text}")
    return index, count


def leave_interrupted(signal_number: int, standing: str, *, in_job: bool) -> NoReturn:
    """Exits after SIGINT or SIGTERM, with the code that shells expect, and says how to go on.

    Args:
        signal_number: which signal.
        standing: what has been done and where it is.
        in_job: leave at once; an ordinary exit would wait for the other processes of a job.
    """
    name = signal.Signals(signal_number).name
    print(f"stopped by {name}: {standing}; start the same command again to go on", file=sys.stderr)
    sys.stderr.flush()
    sys.stdout.flush()
    if in_job:
        os._exit(128 + signal_number)
    sys.exit(128 + signal_number)
