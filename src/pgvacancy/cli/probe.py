"""Is a slot free right now, and which limit refuses? Asks with the start-up packet alone, no password."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from typing import TYPE_CHECKING

import click

from pgvacancy.cli._options import format_option

if TYPE_CHECKING:
    from pgvacancy.observe.postgres.conninfo import Target
    from pgvacancy.observe.postgres.verdict import ProbeResult

SCHEMA = "pgvacancy.probe/1"

EXIT_STATUS = {"free": 0, "refused": 1, "starting-up": 1, "not-postgres": 3, "unreachable": 3, "tls-failed": 3}

MEANING = {
    "slots-full": "every slot is taken, the reserves included: not even a superuser gets in",
    "reserved-for-superuser": "ordinary slots are used up; a superuser still gets in",
    "reserved-for-role": "ordinary slots are used up; superusers and pg_use_reserved_connections still get in",
    "role-limit": "this role's CONNECTION LIMIT is reached; the server itself has room",
    "database-limit": "this database's CONNECTION LIMIT is reached; the server itself has room",
    "walsender-limit": "max_wal_senders is reached; ordinary slots are counted apart from it",
    "starting-up": "the server runs but admits nobody yet, or no longer; slots are not the matter",
    "pooler-client-limit": "PgBouncer's max_client_conn is reached; PostgreSQL behind it was not asked",
    "pooler-client-cap": "PgBouncer's client limit of this user or database is reached",
    "pooler-wait-timeout": "a client waited in PgBouncer for a server connection until query_wait_timeout",
    "pooler-login-failing": "PgBouncer cannot log in to PostgreSQL and answers from memory for a while",
    "fork-failed": "the machine let the server start no process: pids.max, ulimit -u, TasksMax or memory",
    "other": "a refusal that names no limit we know",
}

MEANING_OF_OUTCOME = {
    "not-postgres": "something else than PostgreSQL or PgBouncer answers at this address",
    "unreachable": "no answer was had: whether a slot is free is unknown",
    "tls-failed": "no TLS connection came about: whether a slot is free is unknown",
}


@click.command("probe")
@click.argument("dsn", required=False)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.05, max=600),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for each address.",
)
@click.option("--count", type=click.IntRange(1, 100_000), default=1, show_default=True, help="How many probes.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1, max=86_400),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Pause between two probes. Every probe costs the server a process.",
)
@click.option("--replication", is_flag=True, help="Ask for a walsender instead of a client slot.")
@format_option
def command(  # noqa: PLR0913 - click hands over one argument for each option
    dsn: str | None, *, timeout_s: float, count: int, interval_s: float, replication: bool, output_format: str
) -> int:
    """Ask with the start-up packet alone whether a slot is free, and which limit refuses.

    DSN is a conninfo string or URI; without it the PG* environment and the service file decide, as for libpq. Sends
    no password and keeps no session. With --count JSON is one object a line.

    Exit status: 0 free, 1 refused or starting up, 2 wrong usage, 3 unreachable, not PostgreSQL, or no TLS. With
    --count: 1 when any probe was refused, else 3 when any had no answer.
    """
    from pgvacancy.observe.postgres.conninfo import read_target  # noqa: PLC0415 - keeps --help quick
    from pgvacancy.observe.postgres.probe import probe  # noqa: PLC0415 - as above

    target = read_target(dsn)
    outcomes: Counter[str] = Counter()
    statuses: set[int] = set()
    for number in range(count):
        if number:
            time.sleep(interval_s)
        result = probe(target, timeout_s=timeout_s, replication=replication)
        outcomes[_name(result)] += 1
        statuses.add(EXIT_STATUS[result.outcome])
        if output_format == "json":
            click.echo(json.dumps(to_json(result), ensure_ascii=False))
        elif count > 1:
            click.echo(verdict(result))
        else:
            click.echo("\n".join([verdict(result), *advice(result, target, dsn)]))
    if count > 1 and output_format == "text":
        click.echo(f"{count} probes: " + ", ".join(f"{n} {name}" for name, n in outcomes.most_common()))
    # A refusal outranks silence: it was seen.
    return next((status for status in (1, 3) if status in statuses), 0)


def to_json(result: ProbeResult) -> dict[str, object]:
    """The one JSON form of a result."""
    refusal = result.refusal
    return {
        "schema": SCHEMA,
        "outcome": result.outcome,
        "admitted": result.admitted,
        "refusal": refusal and {"sqlstate": refusal.sqlstate, "kind": refusal.kind, "message": refusal.message},
        "detail": result.detail,
        "elapsed_ms": round(result.elapsed_ms, 2),
        "tls": result.tls,
        "server": {"address": result.server_address, "looks_like_pooler": result.looks_like_pooler},
    }


def verdict(result: ProbeResult) -> str:
    """The verdict in one line."""
    state = f" [{result.refusal.sqlstate}]" if result.refusal and result.refusal.sqlstate else ""
    where = f"{result.server_address}, {result.elapsed_ms:.1f} ms{', TLS' if result.tls else ''}"
    return f"{_name(result)}{state}: {result.detail} ({where})"


def advice(result: ProbeResult, target: Target, dsn: str | None) -> list[str]:
    """What the verdict means, and the next command."""
    kind = result.refusal.kind if result.refusal else None
    if kind:
        means = MEANING[kind]
    elif result.outcome == "free":
        means = (
            "an ordinary log-in succeeds right now"
            if result.admitted
            else "the server, or the pooler that answers for it, is not full"
        )
        if result.admitted and "superuser" in result.detail:
            means = "a superuser gets in; ask again as the application's role"
        if result.looks_like_pooler:
            means = "the pooler is not full"
    else:
        means = MEANING_OF_OUTCOME[result.outcome]
    if result.looks_like_pooler:
        means += "; a pooler answered, not PostgreSQL itself"
    place = f" {shlex.quote(target.shareable)}" if dsn else ""
    return [f"  means: {means}", f"  next:  {_next(result, kind, place)}"]


def _next(result: ProbeResult, kind: str | None, place: str) -> str:
    if result.looks_like_pooler and result.outcome == "free":
        return f"pgvacancy doctor --pgbouncer{place or ' DSN_OF_THE_POOLER'} DSN_OF_THE_SERVER"
    if kind in {"reserved-for-superuser", "reserved-for-role"}:
        return f"pgvacancy doctor --door 'DSN of a superuser'{place}   (this role does not get in)"
    if result.outcome == "free":
        return f"pgvacancy doctor{place}   (who holds the slots, and how many are left)"
    if result.outcome == "starting-up":
        return f"pgvacancy probe --count 30{place}"
    if result.outcome == "not-postgres":
        return "pgvacancy probe 'host=... port=...'   with the server's own port"
    if result.outcome == "tls-failed":
        return "pgvacancy probe '... sslmode=require'   or, if the server has no TLS,   'sslmode=disable'"
    if result.outcome == "unreachable":
        return f"pgvacancy probe --timeout 10{place}   then, on the server's machine:  pgvacancy doctor --host-only"
    if kind and kind.startswith("pooler-"):
        return "pgvacancy explain pooler-misfit"
    if kind in {"fork-failed", "other"}:
        return f"pgvacancy explain {result.refusal.sqlstate if result.refusal and result.refusal.sqlstate else kind}"
    return f"pgvacancy doctor{place}"


def _name(result: ProbeResult) -> str:
    if result.refusal is not None and result.outcome == "refused":
        return f"refused by {result.refusal.kind}"
    return result.outcome
