"""Finding a door: the way in that still works when slots are scarce.

Ordinary, reserved and superuser are not three log-ins but three classes of one: which slots a role may take is
decided by the server after authentication. So we log in once as who we are; when that is refused for lack of a
slot we try the door that needs none: a walsender connection (``replication=database``) has its own pool, skips
the reserve check and takes plain SQL by the simple protocol. It needs a role with REPLICATION or SUPERUSER.
Source: https://www.postgresql.org/docs/current/protocol-replication.html

Each attempt costs the server a fork, so there is one attempt for each door and never a retry.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg.rows import tuple_row

from pgvacancy.model.errors import (
    AccessError,
    ConninfoError,
    LoginError,
    NoFreeSlotError,
    NotPostgresError,
    PoolerError,
    StartingUpError,
    TlsError,
    UnreachableError,
)
from pgvacancy.model.refusals import classify
from pgvacancy.model.snapshot import Attempt, Door, Refusal
from pgvacancy.observe.postgres.conninfo import Target, read_target
from pgvacancy.observe.postgres.probe import ProbeResult, probe

CONNECT_TIMEOUT_S = 5
SLOT_KINDS = frozenset(
    {"slots-full", "reserved-for-superuser", "reserved-for-role", "role-limit", "database-limit", "walsender-limit"}
)

Connection = psycopg.Connection[tuple[object, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How we got in: the connection, or None, and everything that was tried on the way."""

    target: Target
    connection: Connection | None = None
    replication: bool = False
    attempts: tuple[Attempt, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def enter(dsn: str, other_dsns: Sequence[str] = ()) -> Entry:
    """Open one session through the first door that opens.

    ``other_dsns`` are further log-ins the user offered, tried after the first. Raises an :class:`AccessError`
    when the trouble is not a lack of slots; when it is, the result has no connection.
    """
    attempts: list[Attempt] = []
    refusals: list[Refusal] = []
    target = read_target(dsn)
    for number, candidate in enumerate((dsn, *other_dsns)):
        target = read_target(candidate)
        started = time.monotonic()
        seen = probe(target, timeout_s=CONNECT_TIMEOUT_S)
        _note(attempts, "ordinary", _outcome(seen), started)
        if seen.outcome == "refused" and seen.refusal is not None and seen.refusal.kind in SLOT_KINDS:
            refusals.append(seen.refusal)
        elif seen.outcome != "free":
            if number == 0:
                raise _error(seen, target)
            continue
        else:
            opened = _login(candidate, target, attempts, refusals, replication=False)
            if opened is not None:
                return Entry(target=target, connection=opened, attempts=tuple(attempts), refusals=tuple(refusals))
        opened = _login(candidate, target, attempts, refusals, replication=True)
        if opened is not None:
            return Entry(
                target=target,
                connection=opened,
                replication=True,
                attempts=tuple(attempts),
                refusals=tuple(refusals),
            )
    return Entry(target=read_target(dsn), attempts=tuple(attempts), refusals=tuple(refusals))


def door_of(  # noqa: PLR0913 - the whole rule of who may take which slot
    *, replication: bool, superuser: bool, uses_reserved: bool, free_after_us: int, reserve: int, su: int
) -> Door:
    """The class of slot we sit in.

    ``free_after_us`` counts free slots with our own taken, ``reserve`` the slots of reserved_connections, ``su``
    those of superuser_reserved_connections.
    """
    if replication:
        return "replication"
    if free_after_us >= su + reserve or not (superuser or uses_reserved):
        return "ordinary"
    if superuser and not (uses_reserved and free_after_us >= su and reserve):
        return "superuser"
    return "reserved"


def no_free_slot(entry: Entry) -> NoFreeSlotError:
    """The error for when not even the replication door opened."""
    tried = ", ".join(f"{a.door}: {a.outcome}" for a in entry.attempts)
    total_s = sum(a.elapsed_ms for a in entry.attempts) / 1000
    message = entry.refusals[0].message if entry.refusals else "refused"
    return NoFreeSlotError(
        f"no free connection slot on {entry.target.display}",
        seen=f"SQLSTATE {entry.refusals[0].sqlstate if entry.refusals else '?'}, {message}",
        tried=f"{tried}; in {total_s:.1f} s",
        next="pgvacancy doctor --host-only on the server's machine   or   --door DSN of a superuser",
    )


def _login(
    dsn: str, target: Target, attempts: list[Attempt], refusals: list[Refusal], *, replication: bool
) -> Connection | None:
    extra = {"replication": "database"} if replication else {}
    started = time.monotonic()
    door: Door = "replication" if replication else "ordinary"
    try:
        connection = psycopg.connect(
            dsn,
            autocommit=True,
            # The walsender takes the simple protocol only: no server-side parameters, no prepared statements.
            prepare_threshold=None,
            cursor_factory=psycopg.ClientCursor,
            row_factory=tuple_row,
            application_name="pgvacancy",
            connect_timeout=CONNECT_TIMEOUT_S,
            **extra,  # type: ignore[arg-type]
        )
    except psycopg.ProgrammingError as error:
        raise ConninfoError("the connection string cannot be read", seen=_first_line(error)) from None
    except psycopg.OperationalError as error:
        text = _first_line(error)
        kind = classify(None, text, None, asked_walsender=replication)
        _note(attempts, door, text, started)
        if kind in SLOT_KINDS:
            refusals.append(
                Refusal(
                    sqlstate="53300",
                    kind=kind,
                    message=text,
                    user=target.user,
                    database=target.database,
                    source="login",
                )
            )
            return None
        if replication:
            return None
        raise _login_error(text, target) from None
    _note(attempts, door, "open", started)
    return connection


def _note(attempts: list[Attempt], door: Door, outcome: str, started: float) -> None:
    attempts.append(Attempt(door=door, outcome=outcome, elapsed_ms=round((time.monotonic() - started) * 1000, 1)))


def _outcome(seen: ProbeResult) -> str:
    return seen.refusal.kind if seen.refusal is not None else seen.outcome


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    line = text[0] if text else type(error).__name__
    return line.split("FATAL:", 1)[-1].strip()


def _login_error(text: str, target: Target) -> AccessError:
    lower = text.lower()
    if "ssl" in lower or "tls" in lower or "certificate" in lower:
        return TlsError(
            f"no TLS connection to {target.display}", seen=text, next="pgvacancy probe, with another sslmode"
        )
    if "starting up" in lower or "shutting down" in lower or "recovery" in lower:
        return StartingUpError(
            f"{target.display} does not accept connections yet", seen=text, next="try again in a moment"
        )
    return LoginError(
        f"{target.display} refused the log-in", seen=text, next=f"psql with the same parameters, user {target.user}"
    )


def _error(seen: ProbeResult, target: Target) -> AccessError:
    where = target.display
    if seen.looks_like_pooler and seen.refusal is not None:
        return PoolerError(
            f"{where} is a PgBouncer, not a PostgreSQL server, and it refuses",
            seen=f"{seen.refusal.kind}: {seen.refusal.message}",
            next=f"pgvacancy doctor --pgbouncer {shlex.quote(target.shareable)} DSN_OF_THE_SERVER",
        )
    match seen.outcome:
        case "starting-up":
            return StartingUpError(
                f"{where} does not accept connections yet", seen=seen.detail, next="try again in a moment"
            )
        case "not-postgres":
            return NotPostgresError(f"{where} is not a PostgreSQL server", seen=seen.detail, next="check host and port")
        case "tls-failed":
            return TlsError(f"no TLS connection to {where}", seen=seen.detail, next="check sslmode and sslrootcert")
        case "refused":
            return LoginError(
                f"{where} refused the log-in", seen=seen.detail, next="check user, database and pg_hba.conf"
            )
        case _:
            return UnreachableError(
                f"{where} cannot be reached", seen=seen.detail, next="check host and port, and that the server runs"
            )
