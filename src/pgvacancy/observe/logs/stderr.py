"""stderr logs (also through syslog, journald or a container's log): whatever ``log_line_prefix`` makes of them.

With the prefix given, each line is read by it. Without, the parts are recognised by their look: a timestamp, a pid in
brackets, ``user=``, ``user@database``, a client address, and a SQLSTATE when the sample shows that there is one.
Continuation lines begin with a tab, and DETAIL, STATEMENT and the like repeat the prefix.
Source: https://www.postgresql.org/docs/current/runtime-config-logging.html#GUC-LOG-LINE-PREFIX
"""

from __future__ import annotations

import re

from pgvacancy.observe.logs.clock import Clock
from pgvacancy.observe.logs.prefix import Parts, compile_prefix, infer_parts, parts_of
from pgvacancy.observe.logs.record import Record, known, text
from pgvacancy.observe.logs.texts import OLD_NEEDLES, SERVER_NEEDLES

_WORDS = (
    rb"DEBUG[1-5]?|LOG|INFO|NOTICE|WARNING|ERROR|FATAL|PANIC|DETAIL|HINT|QUERY|CONTEXT|LOCATION|STATEMENT|BACKTRACE"
)
SEVERITY = re.compile(rb"(?<![A-Za-z])(" + _WORDS + rb"):  ")
_ANY_SEVERITY = re.compile(rb"(?<!\S)((?:[^\W\d_]|[\x80-\xff]){1,40}) ?:  ")
HEAD = re.compile(rb"^(?!\t)[^\n]{0,400}?(?<![A-Za-z])(?:" + _WORDS + rb"):  ", re.MULTILINE)
"""How a line looks: enough to tell the format."""
FOREIGN_HEAD = re.compile(rb"^\d{4}-\d\d-\d\d [^\n\t]{0,200}?(?<!\S)[^\s\d:]{2,60} ?:  ", re.MULTILINE)
"""The same with a severity of another language; only behind a date, since anything could look like that."""

_DETAIL = re.compile(rb"\n[^\n]*?DETAIL:  ([^\n]*)")

_RECEIVED = re.compile(rb":  connection received: host=(\[local\]|\S+)")
_AUTHORIZED = re.compile(rb":  (?:replication )?connection authorized: user=(.*?)(?: database=(\S+).*)?$")
_EARLIER_LINES = 8
_EARLIER_BYTES = 65536

_PREFIX_LIMIT_BYTES = 1000
_MESSAGE_LIMIT_BYTES = 4096


class Stderr:
    """Reads lines with a prefix."""

    name = "stderr"

    def __init__(
        self,
        clock: Clock,
        needles: tuple[bytes, ...] = SERVER_NEEDLES,
        old_needles: tuple[bytes, ...] = OLD_NEEDLES,
        *,
        log_line_prefix: str | None = None,
        has_sqlstate: bool = False,
    ) -> None:
        """A reader for a known prefix, or one that recognises the parts.

        ``has_sqlstate`` says whether an unknown prefix was seen to carry ``%e``.
        """
        self._clock = clock
        self.needles = needles
        self.old_needles = old_needles
        self._prefix = compile_prefix(log_line_prefix) if log_line_prefix is not None else None
        self.has_sqlstate = "%e" in log_line_prefix if log_line_prefix is not None else has_sqlstate

    def parse(self, block: bytes, start: int, end: int) -> Record | None:
        """Read one line; the message only as far as its first line goes."""
        if end <= start or block[start : start + 1] in {b"\t", b"\n"}:
            return None
        limit = min(end, start + _PREFIX_LIMIT_BYTES)
        parts, severity = self._split(block, start, limit)
        if severity is None:
            return None
        if severity[1] == b"FATAL" and parts.client in {"", "[unknown]"}:
            parts = _with_earlier_lines(block, start, parts)
        message = text(block[severity.end() : min(end, severity.end() + _MESSAGE_LIMIT_BYTES)])
        return Record(
            at=self._clock.read(block, start, severity.start()),
            session=parts.session,
            severity=text(severity[1]),
            sqlstate=(parts.sqlstate or "00000") if self.has_sqlstate else None,
            message=message.rstrip("\r\n"),
            user=known(parts.user),
            database=known(parts.database),
            client=known(parts.client),
            detail=_detail(block, end) if "parameter settings" in message else "",
        )

    def _split(self, block: bytes, start: int, limit: int) -> tuple[Parts, re.Match[bytes] | None]:
        if self._prefix is not None:
            found = self._prefix.match(block, start, limit)
            severity = (SEVERITY.match(block, found.end(), limit) or _ANY_SEVERITY.match(block, found.end(), limit)
                        if found else None)  # fmt: skip  # one condition
            if found is not None and severity is not None:
                return parts_of(found), severity
        severity = SEVERITY.search(block, start, limit)
        if severity is None and self.has_sqlstate:
            severity = _ANY_SEVERITY.search(block, start, limit)
        if severity is None:
            return Parts(), None
        # Of the many connection lines only the session is needed: their text names the rest.
        names = severity[1] != b"LOG"
        return infer_parts(block[start : severity.start()], names=names, has_sqlstate=self.has_sqlstate), severity

    def line_at(self, line: bytes) -> float | None:
        """The time in the prefix of a line."""
        if line.startswith(b"\t"):
            return None
        severity = SEVERITY.search(line, 0, _PREFIX_LIMIT_BYTES) or _ANY_SEVERITY.search(line, 0, _PREFIX_LIMIT_BYTES)
        return self._clock.read(line, 0, severity.start()) if severity else None

    def looks_relevant(self, line: bytes) -> bool:
        """A line is one entry: what cannot be read is text of somebody else."""
        return not line.startswith(b"\t") and b"FATAL:  " in line[:_PREFIX_LIMIT_BYTES]


def _with_earlier_lines(block: bytes, start: int, parts: Parts) -> Parts:
    """Add what the session's ``connection received`` and ``authorized`` lines told shortly before."""
    session = parts.session.encode()
    at = start
    for _ in range(_EARLIER_LINES if session else 0):
        at = block.rfind(session, max(0, start - _EARLIER_BYTES), at)
        if at < 0:
            break
        begin = block.rfind(b"\n", 0, at) + 1
        line = block[begin : block.find(b"\n", at)]
        received = _RECEIVED.search(line)
        if received:
            return parts._replace(client=text(received[1]))
        authorized = _AUTHORIZED.search(line)
        if authorized and not known(parts.user):
            parts = parts._replace(user=text(authorized[1]), database=text(authorized[2] or b""))
        at = begin
    return parts


def _detail(block: bytes, end: int) -> str:
    """The DETAIL that stands on the line behind an entry."""
    found = _DETAIL.match(block, end, min(len(block), end + _MESSAGE_LIMIT_BYTES))
    return text(found[1]) if found else ""
