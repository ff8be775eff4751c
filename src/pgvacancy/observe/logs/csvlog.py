"""csvlog: 23 columns up to PostgreSQL 12, 24 in 13, 26 since 14; the first 14 are the same in all.

Source: https://www.postgresql.org/docs/current/runtime-config-logging.html#RUNTIME-CONFIG-LOGGING-CSVLOG
"""

from __future__ import annotations

import re

from pgvacancy.observe.logs.clock import Clock
from pgvacancy.observe.logs.record import Record, host_of, known, text
from pgvacancy.observe.logs.texts import OLD_NEEDLES, SERVER_NEEDLES

_QUOTED = rb'"([^"]*(?:""[^"]*)*)"'
_OPEN = rb'"([^"]*(?:""[^"]*)*)'
_STAMP = rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?[^,\n\"]{0,12}"

# A quote inside a field is doubled and the server quotes every text field, so text that somebody smuggled into a
# statement can never match this: the message must open with one single quote right after a bare SQLSTATE.
_ENTRY = re.compile(
    rb"(" + _STAMP + rb"),"  # 1 log_time
    rb"(?:" + _QUOTED + rb")?,"  # 2 user_name
    rb"(?:" + _QUOTED + rb")?,"  # 3 database_name
    rb"(\d{0,10}),"  # 4 process_id
    rb"(?:" + _QUOTED + rb")?,"  # 5 connection_from
    rb"([0-9a-f]*(?:\.[0-9a-f]+)?),"  # 6 session_id
    rb"\d*,(?:" + _QUOTED + rb")?,"  # session_line_num, 7 command_tag
    rb"[^,\n\"]*,[^,\n\"]*,\d*,"  # session_start_time, virtual_transaction_id, transaction_id
    rb"([^,\n\"]{1,40}),([0-9A-Z]{5}),"  # 8 error_severity, 9 sql_state_code
    + _OPEN  # 10 message; it may be cut by the end of the block
    + rb'(?:\Z|",(?:'
    + _QUOTED
    + rb")?)"  # 11 detail
)
HEAD = re.compile(rb"^" + _STAMP + rb',(?:"(?:[^"\n]|"")*")?,(?:"(?:[^"\n]|"")*")?,\d{0,10},', re.MULTILINE)
"""How a line that begins an entry looks: enough to tell the format."""

_ENTRY_LIMIT_BYTES = 65536
_REFUSAL = re.compile(rb',53300,"[^"]')
_BACKEND_TYPE = re.compile(rb',"(dead-end [^"\n]*)",')


class Csvlog:
    """Reads csvlog entries."""

    name = "csvlog"

    def __init__(
        self, clock: Clock, needles: tuple[bytes, ...] = SERVER_NEEDLES, old_needles: tuple[bytes, ...] = OLD_NEEDLES
    ) -> None:
        """A reader whose timestamps are read by ``clock``."""
        self._clock = clock
        self.needles = needles
        self.old_needles = old_needles

    def parse(self, block: bytes, start: int, end: int) -> Record | None:
        """Read the entry that begins at ``start``."""
        found = _ENTRY.match(block, start, min(len(block), max(end, start + _ENTRY_LIMIT_BYTES)))
        if found is None or (found.end() == len(block) and not block.endswith(b"\n")):
            # Cut in mid-message: the last line of a log that is being written.
            return None
        backend_type = _BACKEND_TYPE.search(block, found.end(), end) if found.end() < end else None
        return Record(
            at=self._clock.read(found[1]),
            session=text(found[6] or found[4]),
            severity=text(found[8]),
            sqlstate=found[9].decode("ascii"),
            message=_plain(found[10]),
            user=known(_plain(found[2])),
            database=known(_plain(found[3])),
            client=host_of(_plain(found[5])),
            detail=_plain(found[11]),
            backend_type=text(backend_type[1]) if backend_type else "",
        )

    def line_at(self, line: bytes) -> float | None:
        """The log_time of a line that begins an entry."""
        return self._clock.read(line, 0, 40) if HEAD.match(line) else None

    def looks_relevant(self, line: bytes) -> bool:
        """Whether a line begins an entry, or would if it were whole."""
        return HEAD.match(line) is not None and _REFUSAL.search(line) is not None


def _plain(quoted: bytes | None) -> str:
    """The text of a quoted field."""
    return text(quoted.replace(b'""', b'"')) if quoted else ""
