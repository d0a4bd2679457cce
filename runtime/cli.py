"""The `enginewright` command: finds the subcommand, and turns errors into messages and exit codes.

Exit codes: 0 done, 1 the command's own finding (a check that fails), 2 an error the user can mend, 130 interrupted,
141 the reader of the output went away, 143 terminated.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Protocol, cast

from enginewright.runtime.artifact.extension import extend
from enginewright.runtime.artifact.version import package_version
from enginewright.runtime.errors import EnginewrightError, UnsupportedError

EXTENSIONS = "--extensions"


class Command(Protocol):
    """A module that holds one subcommand; imported only when it is chosen."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the work and return the exit code."""
        ...


COMMANDS = {
    "build": ("enginewright.exporters.commands.build", "write an engine directory from a checkpoint"),
    "export-checkpoint": (
        "enginewright.exporters.commands.export_checkpoint",
        "write a checkpoint with methods applied, for other servers",
    ),
    "methods": ("enginewright.exporters.commands.methods", "list the inference methods and their options"),
    "compile": ("enginewright.builders.commands.compile", "build a backend's engine on the machine that will run it"),
    "tune": ("enginewright.exporters.commands.tune", "train the extra weights that a method needs"),
    "check": ("enginewright.exporters.commands.check", "compare an engine with its PyTorch model"),
    "run": ("enginewright.runtime.commands.run", "answer prompts"),
    "inspect": ("enginewright.runtime.commands.inspect", "describe an engine directory"),
    "bench": ("enginewright.runtime.commands.bench", "measure an engine's speed and memory"),
    "triton": ("enginewright.builders.commands.triton", "write an engine into a Triton model repository"),
    "eval": ("enginewright.runtime.commands.eval", "measure the quality of one or several engines"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of this process) and return the exit code."""
    arguments, folders = _split_extensions(list(sys.argv[1:] if argv is None else argv))
    name = _parse_name(arguments[:1])
    if any(argument.partition("=")[0] == EXTENSIONS for argument in arguments):
        print(
            f"enginewright {name}: error: {EXTENSIONS} stands before the command: enginewright {EXTENSIONS} DIR {name} ...",
            file=sys.stderr,
        )
        return 2
    _clean_up_on_sigterm()
    try:
        for folder in folders:
            extend(folder)
        command = _open(name)
        parser = argparse.ArgumentParser(prog=f"enginewright {name}", description=_sentence(COMMANDS[name][1]))
        command.add_arguments(parser)
        code = command.run(parser.parse_args(arguments[1:]))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit does not fail again
        return 141
    except (EnginewrightError, OSError) as error:
        print(f"enginewright {name}: error: {error}", file=sys.stderr)
        return 2


def _split_extensions(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments from the command's name on, and the folders that `--extensions` before it gives."""
    folders = []
    while arguments and arguments[0].partition("=")[0] == EXTENSIONS:
        _, equals, folder = arguments.pop(0).partition("=")
        if not equals:
            folder = arguments.pop(0) if arguments else ""
        folders.append(folder)
    return arguments, folders


def _clean_up_on_sigterm() -> None:
    """Make SIGTERM unwind the stack, as Ctrl-C does, so that nothing half-written stays; the exit code is 143."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _parse_name(arguments: Sequence[str]) -> str:
    """Return the subcommand's name; prints help, or the known names, and exits where there is none."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}} {summary}" for name, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="enginewright",
        description="Build and run LLM inference engines.",
        epilog=f"commands:\n{listing}\n\n`enginewright COMMAND --help` shows a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        EXTENSIONS, metavar="DIR", help="folder of modules of your own that add methods and the like; comes first"
    )
    parser.add_argument("--version", action="version", version=f"enginewright {package_version()}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    return cast(str, parser.parse_args(arguments).command)


def _open(name: str) -> Command:
    """Import and return the command; what it needs beyond the runtime may not be installed."""
    try:
        return cast(Command, importlib.import_module(COMMANDS[name][0]))
    except ModuleNotFoundError as error:
        if (error.name or "enginewright").startswith("enginewright"):
            raise
        raise UnsupportedError(
            f"got no Python package {error.name!r}, which this command needs; pip install 'enginewright[build]'"
        ) from error


def _sentence(summary: str) -> str:
    return summary[0].upper() + summary[1:] + "."


if __name__ == "__main__":
    sys.exit(main())
