"""PgBouncer's administration console: a database called ``pgbouncer`` that knows SHOW and little else.

It understands the simple protocol only, knows no BEGIN, and may hang like any other program, so statements are sent
and awaited here with a deadline each.
Source: https://www.pgbouncer.org/usage.html#admin-console
"""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from pgvacancy.model.errors import ConninfoError

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

DATABASE = "pgbouncer"
MARK = "/bouncer"
"""The console reports a ``server_version`` such as ``1.18.0/bouncer``."""
CONNECT_TIMEOUT_S = 3
ANSWER_TIMEOUT_S = 2.0

Row = Mapping[str, str | None]
"""A row by column name: the columns differ between versions."""

_UNSENT = ("options", "replication", "client_encoding", "fallback_application_name")
"""Parameters of a given DSN that the console refuses or that make libpq ask what it cannot answer."""
_OK = frozenset({pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK})


class ConsoleError(Exception):
    """The console cannot be used any more; the text is one line without secrets."""


class NotShownError(ConsoleError):
    """One SHOW was refused; the session goes on."""


class Console:
    """One session on the console."""

    def __init__(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        """Wrap an open session; use :func:`connect`."""
        self._connection = connection

    def show(self, what: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> list[Row]:
        """The rows of ``SHOW what``.

        Raises :class:`NotShownError` when this one is refused, :class:`ConsoleError` when the session is lost.
        """
        pgconn = self._connection.pgconn
        result: PGresult | None = None
        deadline = time.monotonic() + timeout_s
        try:
            pgconn.send_query(f"SHOW {what}".encode())
            while True:
                if pgconn.is_busy():
                    self._await_bytes(deadline, what, timeout_s)
                    pgconn.consume_input()
                    continue
                answer = pgconn.get_result()
                if answer is None:
                    break
                result = answer
        except psycopg.Error as e:
            self.close()
            raise ConsoleError(f"the console went away at SHOW {what}: {one_line(e)}") from e
        if result is None or result.status not in _OK:
            text = one_line(result.error_message.decode("utf-8", "replace")) if result is not None else "no answer"
            if pgconn.status != pq.ConnStatus.OK:
                self.close()
                raise ConsoleError(f"the console went away at SHOW {what}: {text}")
            raise NotShownError(f"SHOW {what}: {text}")
        return _rows(result)

    def close(self) -> None:
        """End the session. May be called again."""
        self._connection.close()

    def _await_bytes(self, deadline: float, what: str, timeout_s: float) -> None:
        poll = select.poll()
        poll.register(self._connection.pgconn.socket, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            self.close()
            raise ConsoleError(f"no answer to SHOW {what} within {timeout_s:g} s")


def parameters_of(dsn: str) -> dict[str, str]:
    """The connection parameters of a DSN.

    Raises :class:`~pgvacancy.model.errors.ConninfoError`; libpq's own words are left out, for they may quote a
    password.
    """
    try:
        return {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    except psycopg.Error:
        raise ConninfoError(
            "the pooler's connection string cannot be read",
            seen="neither name=value pairs nor a postgresql:// URI",
            next="--pgbouncer 'host=127.0.0.1 port=6432 user=stats'",
        ) from None


def connect(dsn: str, *, timeout_s: int = CONNECT_TIMEOUT_S) -> Console:
    """Open the console of the pooler a DSN leads to, whatever database it names.

    ``timeout_s``: whole seconds, at least 2. Raises :class:`ConsoleError` with the reason.
    """
    given = {name: value for name, value in parameters_of(dsn).items() if name not in _UNSENT}
    wanted = {
        **given,
        "dbname": DATABASE,
        "connect_timeout": str(timeout_s),
        "application_name": "pgvacancy",
        "options": "",  # PGOPTIONS must not get in either
        "target_session_attrs": "any",
        "gssencmode": "disable",
    }
    try:
        connection = psycopg.connect(autocommit=True, prepare_threshold=None, **wanted)  # type: ignore[arg-type]
    except psycopg.errors.ConnectionTimeout as e:
        raise ConsoleError(f"no answer within {timeout_s} s") from e
    except (psycopg.Error, UnicodeError, OSError) as e:
        raise ConsoleError(_reason(one_line(e))) from e
    if not is_console(connection):
        connection.close()
        raise ConsoleError("a PostgreSQL server answers there, not a PgBouncer")
    return Console(connection)


def is_console(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Whether an open connection is PgBouncer's console itself. Sends nothing."""
    return (connection.info.parameter_status("server_version") or "").endswith(MARK)


def one_line(error: BaseException | str) -> str:
    """The last words of an error: what the other side said, without libpq's preface."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if "FATAL:" in line or "ERROR:" in line] or lines[:1]
    text = said[-1] if said else type(error).__name__
    for mark in ("FATAL:", "ERROR:", " failed: "):
        if mark in text:
            return text.rpartition(mark)[2].strip()
    return text


def _reason(text: str) -> str:
    """Say what a refusal means. PgBouncer's texts are never translated.

    Source: https://www.pgbouncer.org/config.html#admin_users
    """
    lowered = text.lower()
    if "not allowed" in lowered or "no such user" in lowered:
        return f"console access denied ({text}): the user must be in admin_users or stats_users of PgBouncer"
    if "no such database" not in lowered and DATABASE in lowered:
        return f"a PostgreSQL server answers there, not a PgBouncer ({text})"
    return text


def _rows(result: PGresult) -> list[Row]:
    names = [(result.fname(i) or b"").decode("utf-8", "replace") for i in range(result.nfields)]
    rows: list[Row] = []
    for r in range(result.ntuples):
        values = (result.get_value(r, i) for i in range(result.nfields))
        rows.append(
            {n: None if v is None else v.decode("utf-8", "replace") for n, v in zip(names, values, strict=True)}
        )
    return rows
