"""Observe a server, name the cause, say what to do. Read-only."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgvacancy.cli._options import format_option, settings_option
from pgvacancy.model.diagnosis import SEVERITIES, Diagnosis

if TYPE_CHECKING:
    from pgvacancy.cli._settings import Settings
    from pgvacancy.model.snapshot import Snapshot
    from pgvacancy.observe.observation import Progress, Request

EXISTING = click.Path(exists=False, path_type=Path)


@click.command(short_help="Name the cause.")
@click.argument("dsn", default="", metavar="[DSN]")
@click.option("--observe", "observe_s", type=click.FloatRange(0, 3600), default=3.0, show_default=True, help="Seconds.")
@click.option("--pgbouncer", "poolers", multiple=True, metavar="DSN", help="A pooler in front. Repeatable.")
@click.option("--log", "logs", multiple=True, type=EXISTING, metavar="FILE", help="A server log. Repeatable.")
@click.option("--door", "doors", multiple=True, metavar="DSN", help="Another log-in to try when the first is refused.")
@click.option("--host/--no-host", default=True, help="Look at /proc and sockets when the server runs here.")
@click.option("--host-only", is_flag=True, help="Do not log in: look at the server's machine only.")
@click.option("--save", type=EXISTING, metavar="FILE", help="Save what was observed, without secrets.")
@click.option("--snapshot", type=EXISTING, metavar="FILE", help="Diagnose a saved observation.")
@click.option(
    "--fail-on",
    type=click.Choice(["warning", "critical", "never"]),
    default="critical",
    show_default=True,
    help="The severity from which the exit status is 1.",
)
@settings_option
@format_option
def command(  # noqa: PLR0913 - click hands over one argument for each option
    *,
    dsn: str,
    observe_s: float,
    poolers: tuple[str, ...],
    logs: tuple[Path, ...],
    doors: tuple[str, ...],
    host: bool,
    host_only: bool,
    save: Path | None,
    snapshot: Path | None,
    fail_on: str,
    settings: Settings,
    output_format: str,
) -> int:
    """Observe a server for a few seconds and say why it has no free slot, who holds them, and what to do first.

    DSN is a conninfo string or URI; without one the PG* environment, service and password file are used, as by
    psql. The doctor takes one session and writes nothing.
    """
    if snapshot is not None and (dsn or poolers or logs or doors or host_only):
        raise click.UsageError(
            "--snapshot replays a saved observation: give no DSN, --log, --pgbouncer, --door with it"
        )
    from pgvacancy.causes import diagnose  # noqa: PLC0415 - only when asked

    if snapshot is not None:
        from pgvacancy.observe.archive import load  # noqa: PLC0415 - only when asked

        seen = load(snapshot)
    else:
        from pgvacancy.observe.observation import Request  # noqa: PLC0415 - imports the driver

        seen = _observe(
            Request(
                dsn=dsn,
                other_dsns=doors,
                observe_s=observe_s,
                poolers=poolers,
                logs=logs,
                host=host or host_only,
                host_only=host_only,
            )
        )
    if save is not None:
        from pgvacancy.observe.archive import save as write  # noqa: PLC0415 - only when asked

        write(seen, save)
    diagnosis = diagnose(seen, settings.numbers)
    show(diagnosis, output_format)
    return status(diagnosis, fail_on)


def show(diagnosis: Diagnosis, output_format: str) -> None:
    """Print the answer to standard output."""
    if output_format == "json":
        from pgvacancy.model.report import to_json  # noqa: PLC0415 - only when asked

        click.echo(json.dumps(to_json(diagnosis), indent=2, ensure_ascii=False))
    else:
        from pgvacancy.cli._report import print_report  # noqa: PLC0415 - imports rich

        print_report(diagnosis)


def status(diagnosis: Diagnosis, fail_on: str) -> int:
    """The exit status: 1 when the severity reaches ``fail_on``, 3 when nothing could be looked at, else 0."""
    if fail_on != "never" and SEVERITIES.index(diagnosis.severity) >= SEVERITIES.index(
        "warning" if fail_on == "warning" else "critical"
    ):
        return 1
    snapshot = diagnosis.snapshot
    looked = snapshot.samples or snapshot.log or any(p.reachable for p in snapshot.poolers)
    return 0 if looked else 3


def _observe(request: Request) -> Snapshot:
    from dataclasses import replace  # noqa: PLC0415 - beside the import it belongs to

    from pgvacancy.observe.observation import observe  # noqa: PLC0415 - imports the driver

    with _progress() as (progress, log_progress):
        return observe(replace(request, log_progress=log_progress), progress)


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Progress, Callable[[int, int], None] | None]]:
    """A bar on standard error when that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield (lambda _share, _word: None), None
        return
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415 - likewise

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("looking for a door", total=1.0)

        def observing(share: float, word: str) -> None:
            bar.update(task, completed=share, description=word)

        def reading(done: int, total: int) -> None:
            bar.update(task, completed=done / total if total else 1.0, description="reading the log")

        yield observing, reading
