"""PgBouncer's own log: ``time [pid] LEVEL who: database/user@host:port message``.

Client-facing refusals stand on ``pooler error:`` lines, the server's refusals of the pooler on ``login failed:`` lines
(``ERROR S: login failed:`` up to 1.18, ``server login failed:`` with the connection's name in later releases).
Source: https://www.pgbouncer.org/config.html#log-settings
"""

from __future__ import annotations

import re

from pgvacancy.model.refusals import classify
from pgvacancy.observe.logs.clock import Clock
from pgvacancy.observe.logs.record import Record, host_of, known, text
from pgvacancy.observe.logs.texts import Event, refusal_kind

_LEVELS = rb"(?:NOISE|DEBUG|LOG|INFO|WARNING|ERROR|FATAL)"
HEAD = re.compile(rb"^[^\n]{0,120}?\[\d{1,10}\] " + _LEVELS + rb" (?!:)", re.MULTILINE)
"""How a line looks: enough to tell the format."""

_LINE = re.compile(
    rb"([^\n]{0,120}?)\[(\d{1,10})\] (" + _LEVELS + rb") "
    rb"(?:([CS])(?:-(?:0x)?[0-9a-fA-F]+)?: )?"
    rb"(?:(\(?[^\s/@]*\)?)/(\S*?)@(\S+) )?"
    rb"([^\n]*)"
)
_AGE = re.compile(r"\s*\(age=[^)]*\)\s*$")
_LOGIN_FAILED = re.compile(r"^(?:server )?login failed: (?:FATAL:?|ERROR:?)?\s*(.*)", re.DOTALL)

_LOGIN = re.compile(r"login attempt: db=")
_FAILED = re.compile(r"authentication failed|no such user|client_login_timeout|password required")


class Pooler:
    """Reads the lines of a PgBouncer log."""

    name = "pgbouncer"
    needles: tuple[bytes, ...] = (b"login failed", b"closing because", b"pooler error", b"login attempt", b"process up")
    old_needles: tuple[bytes, ...] = (b"login failed", b"pooler error", b"process up")

    def __init__(self, clock: Clock) -> None:
        """A reader whose timestamps are read by ``clock``."""
        self._clock = clock

    def parse(self, block: bytes, start: int, end: int) -> Record | None:
        """Read one line."""
        found = _LINE.match(block, start, end)
        if found is None:
            return None
        # Of a server connection the address is the server's, which is no client.
        client = host_of(text(found[7])) if found[7] and found[4] == b"C" else None
        return Record(
            at=self._clock.read(found[1]),
            session="",
            severity=text(found[3]),
            sqlstate=None,
            message=text(found[8]),
            user=known(text(found[6])) if found[6] else None,
            database=known(text(found[5])) if found[5] else None,
            client=client,
        )

    def line_at(self, line: bytes) -> float | None:
        """The time of a line."""
        return self._clock.read(line, 0, 120) if HEAD.match(line) else None

    def looks_relevant(self, line: bytes) -> bool:
        """Lines are read one by one: one that is not readable is not ours."""
        return HEAD.match(line) is not None


def pooler_event(record: Record) -> tuple[Event, str] | None:
    """What a line counts as, with the text that says so."""
    message = record.message
    if message.startswith("closing because: "):
        reason = _AGE.sub("", message[len("closing because: ") :])
        return Event("closing", reason), reason
    failed = _LOGIN_FAILED.match(message)
    if failed:
        kind = refusal_kind(None, failed[1])
        return (Event("refusal", kind), failed[1]) if kind else (Event("failure", "other"), failed[1])
    if message.startswith("pooler error: "):
        return _client_refusal(message[len("pooler error: ") :])
    if _LOGIN.match(message):
        return Event("received"), message
    return (Event("start"), message) if message.startswith("process up: ") else None


def _client_refusal(message: str) -> tuple[Event, str] | None:
    kind = classify(None, message)
    if kind != "other":
        return Event("refusal", kind), message
    return (Event("failure", "other"), message) if _FAILED.search(message) else None
