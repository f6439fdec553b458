"""Options of the commands: dataclasses, filled from a TOML file and then from the command line."""

import contextlib
import dataclasses
import io
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from jaxsmooth.validation import InputError

Options = TypeVar("Options")


def parse(options: type[Options], arguments: Sequence[str], program: str) -> Options:
    """Options from ``[CONFIG.toml] [--option value ...]``; what is on the command line wins.

    The file has a table per command, such as ``[train]`` and ``[certify]``, with the options' names as keys.

    Args:
        options: dataclass of the command's options.
        arguments: the command line after the command's name.
        program: for messages, such as ``jaxsmooth train``.

    Raises:
        InputError: for a file that cannot be read, unknown keys, or wrong values.
    """
    arguments = list(arguments)
    if arguments and arguments[0].endswith(".toml"):
        arguments = _arguments_of(options, Path(arguments[0]), program.split()[-1]) + arguments[1:]
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                options,
                args=arguments,
                prog=program,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(f"{_one_line(messages.getvalue())} (see {program} --help)") from None


def _arguments_of(options: Any, path: Path, command: str) -> list[str]:
    """A file's table for one command, as command-line arguments."""
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"config must be a file that can be read, got {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} is not valid TOML: {error}") from None
    from jaxsmooth.cli.main import COMMANDS

    for table, values in tables.items():
        if table not in COMMANDS or not isinstance(values, dict):
            raise InputError(
                f"config {path} has an unknown key {table!r}; its tables are named after commands"
            )
    if command not in tables:
        raise InputError(
            f"config {path} has no table [{command}]; it has {', '.join(f'[{t}]' for t in tables)}"
        )
    names = [field.name for field in dataclasses.fields(options)]
    arguments: list[str] = []
    for key, value in tables[command].items():
        if key not in names:
            raise InputError(
                f"config {path} has an unknown key {key!r} in [{command}]; known: {', '.join(names)}"
            )
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            arguments += [option] if value else []
        else:
            arguments += [option, *map(str, value if isinstance(value, list) else [value])]
    return arguments


def _one_line(box: str) -> str:
    """The message inside the box that tyro draws, before its rule and hints."""
    lines = [re.sub(r"^[│\s]+|[│\s]+$", "", line) for line in box.splitlines()]
    words = []
    for line in lines:
        if line.startswith("─"):
            break
        if line and not line.startswith(("╭", "╰")):
            words.append(line)
    return " ".join(words)
