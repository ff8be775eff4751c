"""A private PostgreSQL to try all of this on, and faults to switch on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgvacancy.cli._options import format_option

if TYPE_CHECKING:
    from pgvacancy.lab.state import LabState

PG_BIN = click.option(
    "--pg-bin", type=click.Path(path_type=Path), metavar="DIR", help="Use the server in this directory."
)


@click.group()
def command() -> None:
    """A private PostgreSQL on loopback to try all of this on, and faults with real clients to switch on."""
    from pgvacancy.lab.binaries import require_extra  # noqa: PLC0415 - only when the lab is wanted

    require_extra()


@command.command("up")
@PG_BIN
@click.option("--max-connections", type=click.IntRange(8, 1000), default=20, show_default=True)
@format_option
def up_command(pg_bin: Path | None, max_connections: int, output_format: str) -> int:
    """Start the private server and print its DSN. As root it runs as an unprivileged user."""
    from pgvacancy.lab import state as labs  # noqa: PLC0415 - needs the lab's dependencies

    state = labs.read_state()
    if state is None or not state.running:
        labs.down()
        state = _up(pg_bin, {"max_connections": str(max_connections)}, ())
    else:
        click.echo("the lab is up already", err=True)
    _show(state, output_format)
    return 0


@command.command("run")
@click.argument("cause")
@PG_BIN
@click.option("--look-alike", is_flag=True, help="Make what looks like the cause, and is not.")
@format_option
def run_command(cause: str, pg_bin: Path | None, *, look_alike: bool, output_format: str) -> int:
    """Make CAUSE happen with real clients, until ordinary clients are refused. They stay until 'lab down'.

    Starts the server when none is up, and anew when the one that is up has not the settings this fault needs.
    """
    from pgvacancy.lab import state as labs  # noqa: PLC0415 - needs the lab's dependencies
    from pgvacancy.lab.scenario import load_scenario  # noqa: PLC0415 - likewise

    scenario = load_scenario(cause)
    state = labs.read_state()
    wanted = scenario.cluster(pg_bin)
    needs = getattr(scenario.module, "SERVER", {})
    fits = (
        state is not None
        and state.running
        and all(state.settings.get(name) == value for name, value in needs.items())
        and tuple(state.hba) == wanted.hba
        and (pg_bin is None or state.pg_bin == str(wanted.bin))
    )
    if state is None or not fits:
        kept = {"max_connections": state.settings["max_connections"]} if state is not None and state.running else {}
        labs.down()
        state = _up(
            pg_bin or (Path(state.pg_bin) if state is not None else None),
            {**wanted.settings, **kept, **needs},
            wanted.hba,
        )
    click.echo(f"making {'the look-alike of ' if look_alike else ''}{cause} ...", err=True)
    state = labs.run(state, scenario, look_alike=look_alike)
    _show(state, output_format)
    return 0


@command.command("down")
def down_command() -> int:
    """Stop the server and every client, and remove all of it, also what a crash left."""
    from pgvacancy.lab import state as labs  # noqa: PLC0415 - needs the lab's dependencies

    for line in labs.down() or ["no lab was up"]:
        click.echo(line, err=True)
    return 0


@command.command("trial")
@click.argument("cause")
@PG_BIN
def trial_command(cause: str, pg_bin: Path | None) -> int:
    """Prove on a fresh private server that CAUSE is recognised, and its look-alike is not."""
    from pgvacancy.cli._trial import laboratory, trial  # noqa: PLC0415 - imports the driver
    from pgvacancy.lab.scenario import load_scenario  # noqa: PLC0415 - likewise

    scenario = load_scenario(cause)
    with laboratory(scenario, pg_bin) as lab:
        stages = trial(scenario, lab, lambda stage: click.echo(stage.describe()))
    return 0 if all(s.passed for s in stages) else 1


def _up(pg_bin: Path | None, settings: dict[str, str], hba: tuple[str, ...]) -> LabState:
    from pgvacancy.lab import state as labs  # noqa: PLC0415 - needs the lab's dependencies
    from pgvacancy.lab.cluster import Cluster  # noqa: PLC0415 - likewise
    from pgvacancy.lab.lab import Lab  # noqa: PLC0415 - likewise

    cluster = Cluster(settings, pg_bin=pg_bin, hba=hba, keep=True)
    click.echo(
        f"starting PostgreSQL {cluster.major} with max_connections = {cluster.settings['max_connections']} ...",
        err=True,
    )
    state = labs.up(cluster)
    Lab(cluster).furnish()
    return state


def _show(state: LabState, output_format: str) -> None:
    doctor = shlex.join(["pgvacancy", "doctor", *(state.doctor or [state.url])])
    if output_format == "json":
        click.echo(
            json.dumps(
                {"schema": "pgvacancy.lab/1", "dsn": state.url, "cause": state.cause or None, "doctor": state.doctor}
            )
        )
        return
    click.echo(state.url)
    if state.cause:
        click.echo(f"now look at it:  {doctor}", err=True)
    else:
        click.echo("make something happen:  pgvacancy lab run idle-sessions", err=True)
