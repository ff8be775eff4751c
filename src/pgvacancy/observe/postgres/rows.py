"""From rows to the model: the one place that knows the column order of the statements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pgvacancy.model.snapshot import Database, DatabaseCounters, Role, Server, Session

Row = tuple[Any, ...]
HIDDEN = "<insufficient privilege>"


class SessionRows:
    """Turns rows of ``activity`` into sessions, re-using the object of an unchanged row.

    At 5,000 mostly idle sessions a second reading then costs no memory.
    """

    def __init__(self) -> None:
        """Start with nothing remembered."""
        self._known: dict[int, tuple[Row, Session]] = {}

    def read(self, rows: Iterable[Row]) -> tuple[tuple[Session, ...], float | None]:
        """The sessions, and the server's clock at the time of reading."""
        now_at: float | None = None
        sessions: list[Session] = []
        fresh: dict[int, tuple[Row, Session]] = {}
        for row in rows:
            now_at = row[-1]
            identity = row[:-1]
            known = self._known.get(row[0])
            if known is None or known[0] != identity:
                known = (identity, _session(identity))
            fresh[row[0]] = known
            sessions.append(known[1])
        self._known = fresh
        return tuple(sessions), now_at


def _session(row: Row) -> Session:
    return Session(
        pid=row[0],
        backend_start_at=row[1],
        backend_type=row[2],
        user=row[3],
        database=row[4],
        application_name=row[5] or "",
        client_addr=row[6],
        client_port=row[7],
        state=row[8],
        state_change_at=row[9],
        xact_start_at=row[10],
        query_start_at=row[11],
        wait_event_type=row[12],
        wait_event=row[13],
        query=row[14] or "",
        query_id=row[15],
        has_xmin=row[16],
        is_own=row[17],
        hidden=row[14] == HIDDEN,
    )


def counters(rows: Iterable[Row]) -> tuple[DatabaseCounters, ...]:
    """Rows of ``counters``."""
    return tuple(
        DatabaseCounters(
            database=r[0],
            backends=r[1],
            transactions=r[2],
            sessions=r[3],
            sessions_abandoned=r[4],
            sessions_fatal=r[5],
            sessions_killed=r[6],
            session_time_ms=r[7],
            active_time_ms=r[8],
            idle_in_transaction_time_ms=r[9],
        )
        for r in rows
    )


def roles(rows: Iterable[Row]) -> tuple[Role, ...]:
    """Rows of ``roles``."""
    return tuple(
        Role(name=r[0], superuser=r[1], replication=r[2], uses_reserved=r[3], connection_limit=r[4]) for r in rows
    )


def databases(rows: Iterable[Row]) -> tuple[Database, ...]:
    """Rows of ``databases``."""
    return tuple(Database(name=r[0], connection_limit=r[1], allows_connections=r[2]) for r in rows)


def server(  # noqa: PLR0913 - one argument for each statement
    facts: Row,
    settings: Mapping[str, str],
    sources: Mapping[str, str],
    role_rows: Iterable[Row],
    database_rows: Iterable[Row],
    *,
    system_identifier: str | None,
    replay: str | None,
) -> Server:
    """Everything about the server that does not change while we look."""
    all_roles = roles(role_rows)
    return Server(
        version_num=facts[0],
        version=facts[1],
        in_recovery=facts[2],
        postmaster_start_at=facts[3],
        system_identifier=system_identifier,
        managed_by=managed_by(settings, sources, {r.name for r in all_roles}),
        settings=settings,
        setting_sources=sources,
        roles=all_roles,
        databases=databases(database_rows),
        replay_pause_state=replay,
    )


_SETTING_MARKS = (("rds.", "rds"), ("azure.", "azure"), ("cnpg.", "cloudnativepg"), ("cloudsql.", "cloud-sql"))
_ROLE_MARKS = (
    ("rdsadmin", "rds"),
    ("cloudsqladmin", "cloud-sql"),
    ("azuresu", "azure"),
    ("neon_superuser", "neon"),
    ("supabase_admin", "supabase"),
)


def managed_by(settings: Mapping[str, str], sources: Mapping[str, str], role_names: set[str]) -> str | None:
    """Who owns the configuration, by the marks providers and managers leave; None when there is none.

    Patroni passes max_connections and its sister settings on the command line and sets cluster_name.
    Source: https://patroni.readthedocs.io/en/latest/patroni_configuration.html
    """
    for prefix, name in _SETTING_MARKS:
        if any(s.startswith(prefix) for s in settings):
            return name
    for role, name in _ROLE_MARKS:
        if role in role_names:
            return name
    on_command_line = {s for s, source in sources.items() if source == "command line"}
    if (
        settings.get("cluster_name")
        and {"max_connections", "wal_level", "max_locks_per_transaction"} <= on_command_line
    ):
        return "patroni"
    return None
