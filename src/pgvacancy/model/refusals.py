"""Which limit refused? Decided by what a server does not translate.

A refusal's text is translated when ``lc_messages`` says so. Not translated are the SQLSTATE (field ``C``), the name
of the C function that raised the error (field ``R``), and words inside the text that are names rather than prose:
``SUPERUSER``, ``pg_use_reserved_connections``, ``max_wal_senders``. How far these separate the limits on each
major is measured in docs/explanation/refusals.md. Only where a server or pooler sends no routine is its English
text looked at: PgBouncer never translates, and a log line carries no routine by default.

Source: https://www.postgresql.org/docs/current/protocol-error-fields.html
"""

from __future__ import annotations

import re

from pgvacancy.model.snapshot import RefusalKind

TOO_MANY_CONNECTIONS = "53300"
CANNOT_CONNECT_NOW = "57P03"

_BY_ROUTINE: dict[str, RefusalKind] = {
    "InitializeSessionUserId": "role-limit",
    "CheckMyDatabase": "database-limit",
    # The cap on child processes, answered by a child that exists only to say no; 13 to 18.
    "ProcessStartupPacket": "slots-full",
    "BackendInitialize": "slots-full",
    # Places that should not be reached before InitProcess has refused.
    "ProcArrayAdd": "slots-full",
    "SharedInvalBackendInit": "slots-full",
}

# PgBouncer prefixes a text it cached or relays; its own wording is looked for before PostgreSQL's.
_POOLER_TEXTS: tuple[tuple[re.Pattern[str], RefusalKind], ...] = (
    (re.compile(r"server login has been failing"), "pooler-login-failing"),
    (re.compile(r"no more connections allowed"), "pooler-client-limit"),
    (re.compile(r"client connections exceeded|max_(db|user)_client_connections"), "pooler-client-cap"),
    (re.compile(r"\bquery_wait_timeout\b"), "pooler-wait-timeout"),
)
_POOLER_STATES = frozenset({"08P01", TOO_MANY_CONNECTIONS, "53000", "57P03"})

_SERVER_TEXTS: tuple[tuple[re.Pattern[str], RefusalKind], ...] = (
    (re.compile(r"too many clients already"), "slots-full"),
    (re.compile(r"too many connections for role"), "role-limit"),
    (re.compile(r"too many connections for database"), "database-limit"),
)
_FORK_TEXT = re.compile(r"could not fork new process for connection")
_STARTING_TEXTS = re.compile(r"the database system is (starting|shutting|in recovery|not (yet )?accepting)")
_RESERVE = "remaining connection slots are reserved for"
_ROLE_OF_RESERVE = re.compile(r"pg_use_reserved_connections|\b\w+_reserved\b")


def classify(
    sqlstate: str | None,
    message: str,
    routine: str | None = None,
    asked_walsender: bool = False,  # noqa: FBT001, FBT002 - a fourth fact about the refusal, named by most callers
) -> RefusalKind:
    """The limit behind one refusal.

    ``sqlstate`` is None where none was given: an old-style packet, or a log line without ``%e``. ``routine`` is
    None where none was given: a pooler, or a log. ``asked_walsender`` says that the start-up packet asked for
    replication. Anything that is no refusal for want of room gives ``other``.

    Source: https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    if sqlstate == CANNOT_CONNECT_NOW and routine:
        return "starting-up"
    if not routine and (sqlstate is None or sqlstate in _POOLER_STATES):
        for pattern, kind in _POOLER_TEXTS:
            if pattern.search(message):
                return kind
    if sqlstate == CANNOT_CONNECT_NOW:
        return "starting-up"
    if sqlstate == TOO_MANY_CONNECTIONS:
        return _limit(message, routine, asked_walsender)
    if sqlstate == "08P01" and not routine:
        # Up to 1.19 PgBouncer relays a server's refusal under its own SQLSTATE.
        return _by_words(message)
    if sqlstate is None:
        return _without_state(message, routine)
    return "other"


def _limit(message: str, routine: str | None, asked_walsender: bool) -> RefusalKind:  # noqa: FBT001 - passed on
    """A 53300, by routine first, by words second."""
    if routine == "InitProcess":
        # Walsenders have a list of their own: asked for one, this routine can only have missed one of those.
        return "walsender-limit" if asked_walsender or "max_wal_senders" in message else "slots-full"
    if routine == "InitPostgres":
        return _reserve(message)
    if routine in _BY_ROUTINE:
        return _BY_ROUTINE[routine]
    return _by_words(message)


def _reserve(message: str) -> RefusalKind:
    """One of the reserves. Up to 15 there is only that of superusers, and its text names no attribute."""
    return "reserved-for-role" if _ROLE_OF_RESERVE.search(message) else "reserved-for-superuser"


def _by_words(message: str) -> RefusalKind:
    """By names that stay as they are in every language, then by PostgreSQL's English text."""
    if "max_wal_senders" in message:
        return "walsender-limit"
    if "pg_use_reserved_connections" in message:
        return "reserved-for-role"
    if _RESERVE in message:
        return _reserve(message)
    for pattern, kind in _SERVER_TEXTS:
        if pattern.search(message):
            return kind
    return "reserved-for-superuser" if "SUPERUSER" in message else "other"


def _without_state(message: str, routine: str | None) -> RefusalKind:
    if _FORK_TEXT.search(message):
        return "fork-failed"
    if _STARTING_TEXTS.search(message):
        return "starting-up"
    kind = _by_words(message)
    # "SUPERUSER" alone says little when nothing else marks the text as a refusal.
    return kind if routine or kind != "reserved-for-superuser" or _RESERVE in message else "other"
