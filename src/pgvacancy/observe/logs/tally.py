"""Counting what the entries of a log say, in bounded memory."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, deque

from pgvacancy.model.evidence import RefusalCount
from pgvacancy.observe.logs.pooler import pooler_event
from pgvacancy.observe.logs.record import Record, known
from pgvacancy.observe.logs.texts import Event, event_of, session_s

PEAK_WINDOW_S = 10
SHORT_SESSION_S = 1.0
TOP = 50
_GROUP_LIMIT = 5000
_SESSION_LIMIT = 20000
_MESSAGE_LIMIT = 300
_STANDBY_LIMIT = 20

_SLOT_KINDS = frozenset(
    {"slots-full", "reserved-for-superuser", "reserved-for-role", "role-limit", "database-limit", "walsender-limit",
     "other"}
)  # fmt: skip  # one set
"""Refusals that carry SQLSTATE 53300."""

_HOST = re.compile(r"=\s?(\[local\]|[^\s=]+)")
_NAMES = re.compile(r"\S+?=(.*?) \S+?=(\S+)")
_USER_IN_TEXT = re.compile(r'(?:user|role) "([^"]{1,200})"')
_DATABASE_IN_TEXT = re.compile(r'database "([^"]{1,200})"')
_HOST_IN_TEXT = re.compile(r'host "([^"]{1,200})"')


class Who:
    """What the lines of one session told so far."""

    __slots__ = ("client", "database", "user")

    def __init__(self) -> None:
        """Nothing yet."""
        self.user: str | None = None
        self.database: str | None = None
        self.client: str | None = None


class Tally:
    """The running count. Only entries within ``recent_s`` before ``end_at`` count as recent."""

    def __init__(self, *, end_at: float | None, recent_s: float) -> None:
        """Nothing counted yet; without an end nothing is recent."""
        self._end_at = end_at
        self._recent_s = recent_s
        self.groups: dict[tuple[str, str, str | None, str | None, str | None], list[float | None]] = {}
        self.overflow = False
        self.recent: Counter[str] = Counter()
        self.recent_kinds: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.failure_clients: Counter[str] = Counter()
        self.received_clients: Counter[str] = Counter()
        self.closings: Counter[str] = Counter()
        self.recent_refusals = 0
        self.short_sessions = 0
        self.dead_ends = 0
        self.standby: dict[str, None] = {}
        self.starts = 0
        self.last_start_at: float | None = None
        self.connections_logged = False
        self.disconnections_logged = False
        self.unknown_who = 0
        self.peak = 0
        self.peak_at: float | None = None
        self._window: deque[list[int]] = deque()
        self._in_window = 0
        self._sessions: OrderedDict[str, Who] = OrderedDict()
        self._last_foreign: tuple[str, str | None, str] | None = None

    def add(self, record: Record, languages: tuple[str, ...]) -> None:
        """Count one entry of a server log."""
        event = event_of(record, languages)
        if event is None:
            return
        if record.severity not in {"FATAL", "LOG"} and self._repeats(record):
            return
        self._count(record, event, record.message)

    def add_pooler(self, record: Record) -> None:
        """Count one line of a pooler's log."""
        found = pooler_event(record)
        if found is not None:
            self._count(record, found[0], found[1])

    def _repeats(self, record: Record) -> bool:
        """Whether an entry with a severity word we do not know is the DETAIL of the one before."""
        same = (record.session, record.sqlstate, f"{record.at}")
        if record.sqlstate == "00000":
            return False
        repeated, self._last_foreign = self._last_foreign == same, same
        return repeated

    def _count(self, record: Record, event: Event, message: str) -> None:
        is_recent = self._is_recent(record.at)
        if is_recent:
            self.recent[event.what] += 1
        if event.what == "refusal":
            self._refuse(record, event.kind, message, is_recent=is_recent)
        elif event.what == "failure":
            if is_recent:
                self._fail(record, event.kind)
        elif event.what == "standby":
            if len(self.standby) < _STANDBY_LIMIT:
                self.standby[_short(f"{record.message} {record.detail}")] = None
        elif event.what == "start":
            self.starts += 1
            self.last_start_at = record.at
        elif event.what == "closing":
            if is_recent:
                _bump(self.closings, _short(event.kind))
        else:
            self._connection(record, event.what, is_recent=is_recent)

    @property
    def recent_from_at(self) -> float | None:
        """Where the recent window begins."""
        return None if self._end_at is None else self._end_at - self._recent_s

    def _is_recent(self, at: float | None) -> bool:
        return at is not None and self._end_at is not None and self._end_at - self._recent_s <= at <= self._end_at

    def _connection(self, record: Record, what: str, *, is_recent: bool) -> None:
        self.connections_logged = True
        if what == "disconnection":
            self.disconnections_logged = True
            self._sessions.pop(record.session, None)
            length = session_s(record.message)
            self.short_sessions += is_recent and length is not None and length < SHORT_SESSION_S
            return
        who = self._who(record.session, fresh=what == "received")
        if what == "received":
            host = _HOST.search(record.message)
            who.client = record.client or (host[1] if host else None)
            if is_recent and who.client:
                _bump(self.received_clients, who.client)
        elif what == "authorized":
            names = _NAMES.search(record.message)
            who.user = record.user or (names[1] if names else None)
            who.database = record.database or (names[2] if names else None)

    def _who(self, session: str, *, fresh: bool = False) -> Who:
        """What is known of a session; a new one when its pid begins again."""
        if not session:
            return Who()
        if fresh or session not in self._sessions:
            if len(self._sessions) >= _SESSION_LIMIT:
                self._sessions.popitem(last=False)
            self._sessions.pop(session, None)
            self._sessions[session] = Who()
        return self._sessions[session]

    def _refuse(self, record: Record, kind: str, message: str, *, is_recent: bool) -> None:
        who = self._sessions.pop(record.session, None) or Who()
        user, database, client = _named(record, who, message)
        # A forked process that never came to be has nobody to name.
        self.unknown_who += kind != "fork-failed" and user is None and client is None
        key = (kind, _short(message), user, database, client)
        if key not in self.groups and len(self.groups) >= _GROUP_LIMIT:
            self.overflow = True
            key = (kind, "(many more texts, users and clients)", None, None, None)
        group = self.groups.setdefault(key, [0, None])
        group[0] = (group[0] or 0) + 1
        group[1] = record.at if record.at is not None else group[1]
        self.dead_ends += record.backend_type.startswith("dead-end")
        if is_recent:
            self.recent_kinds[kind] += 1
        if kind in _SLOT_KINDS:
            self.recent_refusals += is_recent
            self._densest(record.at)

    def _densest(self, at: float | None) -> None:
        """Follow the window of :data:`PEAK_WINDOW_S` seconds with most refusals."""
        if at is None:
            return
        second = int(at)
        if not self._window or second > self._window[-1][0]:
            self._window.append([second, 0])
        # A line that is late counts in the newest second.
        self._window[-1][1] += 1
        self._in_window += 1
        while self._window[0][0] <= self._window[-1][0] - PEAK_WINDOW_S:
            self._in_window -= self._window.popleft()[1]
        if self._in_window > self.peak:
            self.peak = self._in_window
            self.peak_at = float(self._window[-1][0])

    def _fail(self, record: Record, reason: str) -> None:
        self.failures[reason] += 1
        who = self._sessions.pop(record.session, None) or Who()
        client = _named(record, who, record.message)[2]
        if client:
            _bump(self.failure_clients, client)

    def refusals(self) -> tuple[RefusalCount, ...]:
        """All groups, most refusals first."""
        found = [
            RefusalCount(
                kind=kind,
                message=message,
                count=int(count or 0),
                last_at=last,
                user=user,
                database=database,
                client=client,
            )
            for (kind, message, user, database, client), (count, last) in self.groups.items()
        ]
        return tuple(sorted(found, key=lambda group: (-group.count, group.kind, group.message)))


def _named(record: Record, who: Who, message: str) -> tuple[str | None, str | None, str | None]:
    """User, database and client of an entry: from its own columns, its session's earlier lines, or its text."""
    return (
        record.user or who.user or _first(_USER_IN_TEXT, message),
        record.database or who.database or _first(_DATABASE_IN_TEXT, message),
        record.client or who.client or _first(_HOST_IN_TEXT, message),
    )


def _first(pattern: re.Pattern[str], message: str) -> str | None:
    found = pattern.search(message)
    return known(found[1]) if found else None


def _short(message: str) -> str:
    return " ".join(message.split())[:_MESSAGE_LIMIT]


def _bump(counter: Counter[str], key: str) -> None:
    """Count a key; new ones only while there is room."""
    if key in counter or len(counter) < _GROUP_LIMIT:
        counter[key] += 1
