"""The console command ``jaxsmooth``: finds the sub-command, runs it, and turns mistakes into one line."""

import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from jaxsmooth.cli import configuration
from jaxsmooth.validation import InputError

# One file per command, with a dataclass of its options (named after it: ImportTorch in import_torch.py) and
# run(options).
COMMANDS = {
    "demo": "train, certify and report on handwritten digits, in about half a minute",
    "prepare": "download a data set of tensorflow-datasets, once",
    "train": "train a network with Gaussian noise",
    "import-torch": "turn a published PyTorch checkpoint into a checkpoint folder",
    "models": "list the networks, with what they cost",
    "certify": "certify the examples of a data set into a results folder",
    "predict": "predict with the smoothed classifier, or abstain",
    "merge": "join the results folders of a sweep",
    "report": "certified-accuracy tables and curves of results folders and published logs",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``jaxsmooth COMMAND ...`` and exits.

    Exit codes: 0, 2 for a mistake in the call or its inputs (one line on stderr), 130 and 143 after SIGINT
    and SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        sys.exit(0)
    name = arguments[0]
    if name not in COMMANDS:
        _fail("jaxsmooth", f"command must be one of {', '.join(COMMANDS)}, got {name!r}")
    program = f"jaxsmooth {name}"
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(
            f"{program}: warning: {message}", file=sys.stderr
        )
        _run(name, program, arguments[1:])


def _run(name: str, program: str, arguments: Sequence[str]) -> None:
    command = importlib.import_module(f"jaxsmooth.cli.{name.replace('-', '_')}")
    options = getattr(command, "".join(map(str.capitalize, name.split("-"))))
    try:
        command.run(configuration.parse(options, arguments, program))
    except InputError as error:
        _fail(program, str(error))
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of a pipe (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(program: str, message: str) -> None:
    print(f"{program}: error: {message}", file=sys.stderr)
    sys.exit(2)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    return (
        "usage: jaxsmooth COMMAND [CONFIG.toml] [--option value ...]\n\n"
        "Certified radii for any JAX classifier by randomized smoothing.\n\n"
        f"commands:\n{commands}\n\n"
        "`jaxsmooth COMMAND --help` explains a command; `jaxsmooth demo` is the place to start."
    )
