"""List every setting, its value and where it came from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from pgvacancy.cli._options import format_option, settings_option

if TYPE_CHECKING:
    from pgvacancy.cli._settings import Settings


@click.command("config")
@settings_option
@format_option
def command(settings: Settings, output_format: str) -> None:
    """List every setting, its value and where it came from.

    A setting is named <cause or remedy>.<name>; the unit is at the end of the name. It is given by --set, by
    pgvacancy.toml (in the current directory, or named by PGVACANCY_CONFIG, or in ~/.config/pgvacancy), or by the
    environment (PGVACANCY_IDLE_SESSIONS__MIN_IDLE_S=600), in that order of precedence.
    """
    if output_format == "json":
        listed = [
            {"name": name, "value": v.value, "origin": v.origin, "default": v.default, "why": v.why}
            for name, v in settings.values.items()
        ]
        click.echo(json.dumps({"schema": "pgvacancy.config/1", "settings": listed}, indent=1))
        return
    name_width = max(len(name) for name in settings.values)
    for name, v in settings.values.items():
        click.echo(f"{name:<{name_width}}  {shown(v.value):>8}  {v.origin}")


def shown(value: float) -> str:
    """A number as people write it: no exponent, no trailing zeros."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
