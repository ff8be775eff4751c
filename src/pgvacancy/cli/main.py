"""The ``pgvacancy`` command: finds its sub-commands by their files and imports one only when it is called.

A module of this package without a leading underscore is a sub-command named after its file, underscores turned
into dashes. It holds an attribute ``command`` (a :class:`click.Command`); the first line of its docstring is the
help shown in the overview, read as text so that the overview imports neither a driver nor anything else.

A command returns its exit status (None for 0) and raises the errors of :mod:`pgvacancy.model.errors`.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgvacancy import __version__

if TYPE_CHECKING:
    from pgvacancy.model.errors import PgvacancyError

PROGRAM = "pgvacancy"
HERE = Path(__file__).parent
WRONG_USAGE = 2
NOT_CARRIED_OUT = 3
INTERRUPTED = 128 + signal.SIGINT
PIPE_CLOSED = 128 + signal.SIGPIPE
"""What a shell reports of a program that ended by that signal: neither is one of our own four statuses."""


class Commands(click.Group):
    """A group whose sub-commands are the modules of a directory."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names of all sub-commands, sorted."""
        modules = (p.stem for p in HERE.glob("*.py"))
        return sorted(m.replace("_", "-") for m in modules if not m.startswith("_") and m != "main")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one sub-command; None when there is none of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"pgvacancy.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a name that is nearly one of ours."""
        name = args[0]
        known = self.list_commands(ctx)
        if name in known or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise click.UsageError(f"no such command {name!r}; {hint}", ctx=ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, from the text of the files alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, first_line(name)) for name in self.list_commands(ctx)])


def first_line(name: str) -> str:
    """The first line of a sub-command's docstring, without its full stop, read without importing it."""
    with (HERE / f"{name.replace('-', '_')}.py").open(encoding="utf-8") as source:
        for line in source:
            if line.startswith('"""'):
                return line.strip().strip('"').rstrip(".")
    return ""


@click.group(cls=Commands, name=PROGRAM, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name=PROGRAM)
def cli() -> None:
    """Find out why PostgreSQL has no free connection slot (SQLSTATE 53300), and what to do about it.

    Exit status: 0 nothing found, 1 something found, 2 wrong usage, configuration or input file, 3 could not be
    checked or carried out.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. No error a user can meet ends in a traceback."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left (``| head``). Nothing may be written any more, not even by the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        # Output that cannot be written (a full disk); what could not be read has errors of its own.
        click.echo(f"error: the output cannot be written: {error.strerror}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOT_CARRIED_OUT
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    return status


def _run(args: list[str]) -> int:
    """Call the sub-command and turn known errors into output."""
    if f"_{PROGRAM.upper()}_COMPLETE" in os.environ:
        cli.main(args, prog_name=PROGRAM)
    try:
        # Not click's own main(): that turns a closed pipe into status 1, which here means "something found".
        with cli.make_context(PROGRAM, list(args)) as ctx:  # a copy: parsing empties it
            result = cli.invoke(ctx)
    except click.exceptions.Exit as left:
        return left.exit_code
    except click.ClickException as wrong:
        return _usage(wrong, args)
    except _root_error() as error:
        _report(error, args)
        return error.exit_status
    return result if isinstance(result, int) else 0


def _root_error() -> type[PgvacancyError]:
    """The root of our errors, imported only when something was raised."""
    from pgvacancy.model.errors import PgvacancyError  # noqa: PLC0415 - only when something was raised

    return PgvacancyError


def _usage(wrong: click.ClickException, args: list[str]) -> int:
    """Show a usage error as click does, or in our JSON form. Always status 2, files that cannot be opened too."""
    if wants_json(args):
        from pgvacancy.model.errors import InputError  # noqa: PLC0415 - only when something was raised

        _report(InputError(wrong.format_message(), next=f"{PROGRAM} --help"), args)
    else:
        wrong.show()
    return WRONG_USAGE


def wants_json(args: Sequence[str]) -> bool:
    """Whether ``--format json`` is among the arguments, also when the rest of them cannot be understood."""
    return "--format=json" in args or ("--format", "json") in pairwise(args)


def _report(error: PgvacancyError, args: list[str]) -> None:
    """Print an error: lines for people to standard error, JSON for programs to standard output."""
    if wants_json(args):
        import json  # noqa: PLC0415 - only for errors of a program's call

        click.echo(json.dumps(error.to_json()))
    else:
        click.echo(str(error), err=True)


if __name__ == "__main__":
    sys.exit(main())
