"""Options that several sub-commands share, so that they are spelled and explained once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pgvacancy.cli._settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


def format_option(function: F) -> F:
    """``--format text|json``; the command gets it as ``output_format``."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Lines for people or JSON for programs.",
    )(function)


def settings_option(function: F) -> F:
    """``--set NAME=VALUE``, repeatable; the command gets all settings in force as ``settings``.

    Reads the settings file and the environment as well. Raises ConfigError with every mistake in them.
    """
    return click.option(
        "--set",
        "settings",
        metavar="NAME=VALUE",
        multiple=True,
        callback=_load,
        help="Change a threshold, for instance idle-sessions.min_idle_s=600. Repeatable; see 'pgvacancy config'.",
    )(function)


def _load(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> Settings | None:  # noqa: ARG001 - click's signature
    if ctx.resilient_parsing:  # the shell asks for completions: nothing is to be judged
        return None
    from pgvacancy.cli._settings import load  # noqa: PLC0415 - imports every cause

    return load(given)
