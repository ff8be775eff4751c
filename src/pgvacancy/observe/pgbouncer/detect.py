"""Whether a pooler stands between us and the server.

An ordinary database behind PgBouncer looks like the server itself: PgBouncer hands on the server's version and every
other parameter it reports. What it cannot hand on is the backend's pid: the pid for cancel requests is the pooler's
own invention, for one session may meet many backends.
Source: https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
"""

from __future__ import annotations

from typing import Literal

import psycopg

from pgvacancy.observe.pgbouncer.console import ConsoleError, connect, is_console

Behind = Literal["server", "pooler", "console"]


def detect(connection: psycopg.Connection[tuple[object, ...]]) -> Behind:
    """What an open connection leads to.

    ``console``: PgBouncer's own database. ``pooler``: a server through a pooler of any make (the backend's pid is
    not the one the connection was given). ``server``: directly. Sends one statement, except to a console.
    Raises :class:`psycopg.Error` when the connection fails.
    """
    if is_console(connection):
        return "console"
    # A client-side cursor: the simple protocol, which a replication connection needs as well.
    with psycopg.ClientCursor(connection) as cursor:
        row = cursor.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    return "server" if row is None or row[0] == connection.info.backend_pid else "pooler"


def is_pgbouncer(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Whether a PgBouncer, or another pooler that behaves like it, stands between us and the server."""
    return detect(connection) != "server"


def has_console(dsn: str) -> bool:
    """Whether a PgBouncer console opens where a DSN leads: tells PgBouncer from other poolers."""
    try:
        connect(dsn).close()
    except ConsoleError:
        return False
    return True
