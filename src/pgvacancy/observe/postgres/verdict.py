"""What one reply to a start-up packet proves, and what it does not.

An authentication request, a wrong password or a missing ``pg_hba.conf`` line all come from a process that holds a
slot: they prove that one was free at that instant. The limits of roles and databases and the reserves are checked
only after authentication, so that only ReadyForQuery proves that an ordinary client gets in.

Source: https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pgvacancy.model.refusals import classify
from pgvacancy.model.snapshot import Refusal
from pgvacancy.observe.postgres.wire import ErrorFields, Reply, readable

Outcome = Literal["free", "refused", "starting-up", "not-postgres", "unreachable", "tls-failed"]

HIGHEST_PID = 4_194_304
"""Linux's ceiling for process ids. A pooler invents its keys, nearly all of them above it."""

_CHILD_CAP_ROUTINES = frozenset({"ProcessStartupPacket", "BackendInitialize"})
"""Where the cap on child processes refuses: the former up to 16, the latter from 17."""

_LIMITS_AFTER = "role, database and reserve limits show only after it"
_TLS_REQUIRED = re.compile(r"\b(SSL|TLS)\b.*\brequired\b|\brequires? (SSL|TLS)\b|connection is insecure", re.IGNORECASE)
_SLOT_CLASSES_BEFORE_LOGIN = frozenset({"28"})
_SLOT_CLASSES_AFTER_LOGIN = frozenset({"28", "3D", "42", "55"})
"""SQLSTATE classes that speak of the role, the database or their privileges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a probe found. ``admitted`` only when the server said ReadyForQuery."""

    outcome: Outcome
    admitted: bool = False
    refusal: Refusal | None = None
    detail: str = ""
    elapsed_ms: float = 0.0
    server_address: str = ""
    looks_like_pooler: bool = False
    tls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the start-up packet asked for, and how long we waited for the reply."""

    user: str
    database: str
    replication: bool = False
    timeout_s: float = 3.0


def judge(reply: Reply, asked: Asked, *, tls: bool = False) -> ProbeResult:
    """Turn a reply into a result, address and time left to the caller."""
    if reply.kind == "ready":
        return _ready(reply, asked, tls=tls)
    if reply.kind == "authentication":
        what = "walsender slot" if asked.replication else "slot"
        return ProbeResult(
            outcome="free",
            detail=f"a {what} was free before authentication ({reply.method}); {_LIMITS_AFTER}",
            # Every PostgreSQL binds SCRAM to the TLS channel where there is one; PgBouncer does not.
            looks_like_pooler=tls
            and {"SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"}.intersection(reply.mechanisms) == {"SCRAM-SHA-256"},
            tls=tls,
        )
    if reply.error is not None:
        return _error(reply, reply.error, asked, tls=tls)
    if reply.kind == "foreign":
        return ProbeResult(outcome="not-postgres", detail=f"{recognise(reply.seen)}: {reply.why}", tls=tls)
    return ProbeResult(outcome="unreachable", detail=_no_answer(reply, asked.timeout_s), tls=tls)


def _ready(reply: Reply, asked: Asked, *, tls: bool) -> ProbeResult:
    who = f"user {asked.user!r}, database {asked.database!r}, no password asked"
    pooler = _pooler_speaks(reply)
    if _is_console(reply):
        detail = "PgBouncer's console answered; it is exempt from max_client_conn and says nothing of slots"
    elif pooler:
        detail = f"a pooler let a client in ({who}); a slot of the server is needed only with the first query"
    elif asked.replication:
        detail = f"a replication client got in ({who}): a walsender slot was free"
    elif reply.parameters.get("is_superuser") == "on":
        detail = f"a superuser got in ({who}); superusers may use the reserve, so this does not prove an ordinary slot"
    else:
        detail = f"a client got in ({who})"
    return ProbeResult(outcome="free", admitted=True, detail=detail, looks_like_pooler=pooler, tls=tls)


def _error(reply: Reply, error: ErrorFields, asked: Asked, *, tls: bool) -> ProbeResult:
    kind = (
        "fork-failed"
        if error.old_style
        else classify(error.sqlstate, error.message, error.routine, asked_walsender=asked.replication)
    )
    pooler = not error.old_style and not error.has_source
    refusal = Refusal(
        sqlstate=error.sqlstate, kind=kind, message=error.message, user=asked.user, database=asked.database
    )
    said = f"{error.message}" + (f" ({error.detail})" if error.detail else "")
    if kind == "starting-up":
        return ProbeResult(outcome="starting-up", refusal=refusal, detail=said, looks_like_pooler=pooler, tls=tls)
    if kind == "other" and error.sqlstate:
        if pooler and not tls and _TLS_REQUIRED.search(error.message):
            return ProbeResult(outcome="tls-failed", detail=f"TLS is required: {said}", looks_like_pooler=True)
        if _slot_proved(error.sqlstate, logged_in=reply.logged_in):
            seen = f"{error.sqlstate} {said}"
            detail = (
                f"a slot was free: the log-in failed after one was taken ({seen}); limits checked later did not show"
                if reply.logged_in
                else f"a slot was free before authentication, which failed ({seen}); {_LIMITS_AFTER}"
            )
            return ProbeResult(outcome="free", detail=detail, looks_like_pooler=pooler, tls=tls)
    if kind == "slots-full" and error.routine in _CHILD_CAP_ROUTINES:
        said += " (raised by the cap on server processes: most of them are log-ins that do not finish)"
    return ProbeResult(outcome="refused", refusal=refusal, detail=said, looks_like_pooler=pooler, tls=tls)


def _slot_proved(sqlstate: str, *, logged_in: bool) -> bool:
    return sqlstate[:2] in (_SLOT_CLASSES_AFTER_LOGIN if logged_in else _SLOT_CLASSES_BEFORE_LOGIN)


def _is_console(reply: Reply) -> bool:
    return "bouncer" in reply.parameters.get("server_version", "").lower()


def _pooler_speaks(reply: Reply) -> bool:
    """PgBouncer's console names itself; in front of a server its cancel keys are no process ids.

    Source: https://www.pgbouncer.org/usage.html
    """
    return _is_console(reply) or (reply.backend_pid is not None and not 0 < reply.backend_pid <= HIGHEST_PID)


def _no_answer(reply: Reply, timeout_s: float) -> str:
    if reply.kind == "closed":
        if reply.logged_in:
            return "the connection was closed after the log-in, without a word"
        return "accepted, then closed without a word: a proxy with no server behind it, or not PostgreSQL"
    if reply.logged_in:
        return (
            f"logged in, then silence for {timeout_s:g} s: a pooler that waits for a free server connection does this, "
            "or a server that hardly runs"
        )
    if reply.why.startswith("in the middle"):
        return f"silence for {timeout_s:g} s {reply.why}"
    return (
        f"the connection was accepted, then silence for {timeout_s:g} s: a server that is stopped or hardly runs, "
        "a full accept queue, or a service that waits for the client to speak another protocol"
    )


_SIGNS: tuple[tuple[bytes, str], ...] = (
    (b"HTTP/", "an HTTP server"),
    (b"SSH-", "an SSH server"),
    (b"-ERR", "a Redis server"),
    (b"-DENIED", "a Redis server"),
    (b"220 ", "an SMTP or FTP server"),
    (b"+OK", "a POP3 server"),
    (b"* OK", "an IMAP server"),
    (b"\x15\x03", "a TLS server that knows no PostgreSQL"),
)


def recognise(seen: bytes) -> str:
    """A name for whoever sent these first bytes."""
    for sign, name in _SIGNS:
        if seen.startswith(sign):
            return f"{name} (it said {readable(seen, 40)!r})"
    if len(seen) > 5 and seen[3] == 0 and seen[4] in {9, 10, 255}:
        return "a MySQL or MariaDB server"
    return f"not PostgreSQL (it said {readable(seen, 40)!r})" if seen else "not PostgreSQL"
