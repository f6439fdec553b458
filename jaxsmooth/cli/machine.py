"""Set-up of JAX that the commands share."""

import os
from pathlib import Path

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
