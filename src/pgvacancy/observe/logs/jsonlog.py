"""jsonlog (15+): one JSON object to a line, also as CloudNativePG wraps it (the entry stands under ``record``).

Source: https://www.postgresql.org/docs/current/runtime-config-logging.html#RUNTIME-CONFIG-LOGGING-JSONLOG
"""

from __future__ import annotations

import json
import re

from pgvacancy.observe.logs.clock import Clock
from pgvacancy.observe.logs.record import Record, host_of, known
from pgvacancy.observe.logs.texts import OLD_NEEDLES, SERVER_NEEDLES

HEAD = re.compile(rb'^\{(?=[^\n]*"(?:error_severity|log_time)")', re.MULTILINE)
"""How a line looks: enough to tell the format."""

_CNPG = {
    "timestamp": "log_time",
    "user": "user_name",
    "dbname": "database_name",
    "pid": "process_id",
    "remote_host": "connection_from",
    "state_code": "sql_state_code",
}
"""Our key to the key CloudNativePG gives it, which keeps the names of the csvlog columns."""

_STAMP = re.compile(rb'"(?:timestamp|log_time)"\s*:\s*"([^"]{10,60})"')


class Jsonlog:
    """Reads jsonlog entries."""

    name = "jsonlog"

    def __init__(
        self, clock: Clock, needles: tuple[bytes, ...] = SERVER_NEEDLES, old_needles: tuple[bytes, ...] = OLD_NEEDLES
    ) -> None:
        """A reader whose timestamps are read by ``clock``."""
        self._clock = clock
        self.needles = needles
        self.old_needles = old_needles

    def parse(self, block: bytes, start: int, end: int) -> Record | None:
        """Read the object on one line."""
        try:
            entry = json.loads(block[start:end].decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
        if not isinstance(entry, dict):
            return None
        if isinstance(entry.get("record"), dict):
            entry = entry["record"]
            entry = {**entry, **{ours: entry.get(theirs) for ours, theirs in _CNPG.items()}}
            entry["remote_host"] = host_of(_string(entry, "remote_host"))
        if not _string(entry, "error_severity"):
            return None
        return Record(
            at=self._clock.read(_string(entry, "timestamp").encode("utf-8", "replace")),
            session=_string(entry, "session_id") or _string(entry, "pid"),
            severity=_string(entry, "error_severity"),
            # The server leaves the code out when it is 00000.
            sqlstate=_string(entry, "state_code") or "00000",
            message=_string(entry, "message"),
            user=known(_string(entry, "user")),
            database=known(_string(entry, "dbname")),
            client=known(_string(entry, "remote_host")),
            detail=_string(entry, "detail"),
            backend_type=_string(entry, "backend_type"),
        )

    def line_at(self, line: bytes) -> float | None:
        """The timestamp of a line."""
        found = _STAMP.search(line)
        return self._clock.read(found[1]) if found and line.startswith(b"{") else None

    def looks_relevant(self, line: bytes) -> bool:
        """Whether a line is the beginning of an object about a refusal."""
        return line.startswith(b"{") and b'"state_code":"53300"' in line


def _string(entry: dict[str, object], key: str) -> str:
    """A value as text; anything that is no text or number counts as absent."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    try:
        # Lone surrogates are legal in JSON and illegal everywhere the text goes next.
        return str(value).encode("utf-8", "replace").decode("utf-8").replace("\x00", "")
    except ValueError:
        # An integer of more digits than Python is willing to print.
        return ""
