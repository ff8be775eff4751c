"""Our one session on the server: a handful of statements, read-only, with short timeouts of its own."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from typing import Any

import psycopg

from pgvacancy.model.errors import ServerGoneError, UnsupportedVersionError
from pgvacancy.model.ledger import make_ledger
from pgvacancy.model.snapshot import Access, Gap, Sample, Server, Session
from pgvacancy.observe.postgres import rows
from pgvacancy.observe.postgres.doors import Connection, Entry, door_of
from pgvacancy.observe.postgres.probe import see_off
from pgvacancy.observe.postgres.statements import OLDEST, statement

MAX_LOCK_WAITERS = 200
"""pg_blocking_pids is asked for at most so many sessions a reading: each call takes every lock partition."""


class ServerSession:
    """Reads samples through an open door."""

    def __init__(self, entry: Entry) -> None:
        """Take over the connection of an entry that has one."""
        if entry.connection is None:
            msg = "the entry has no connection"
            raise ValueError(msg)
        self._connection: Connection = entry.connection
        self._entry = entry
        self._session_rows = rows.SessionRows()
        self.gaps: list[Gap] = []
        self.version_num = 0
        self.role = ""
        self.sees_all = False
        self.backend_pid = 0
        self.server: Server | None = None
        self._prepared_transactions = 0

    def close(self) -> None:
        """Give the slot back, and see that the server has it."""
        try:
            # PQfinish() says good-bye and does not wait; a second descriptor of the socket lets us.
            line = socket.socket(fileno=os.dup(self._connection.fileno()))
        except (psycopg.Error, OSError):
            self._connection.close()
            return
        with line:
            self._connection.close()
            see_off(line)

    def prepare(self) -> Server:
        """Make the session harmless and read what does not change. Raises UnsupportedVersionError below 13."""
        self.version_num = self._connection.info.server_version
        if self.version_num < OLDEST * 10_000:
            major = self.version_num // 10_000
            name = str(major) if major >= 10 else f"{major}.{self.version_num // 100 % 100}"
            raise UnsupportedVersionError(
                f"PostgreSQL {name} is older than what can be diagnosed",
                seen=f"server_version_num {self.version_num}",
                next="pgvacancy probe works on it; PostgreSQL 13 to 18 are supported",
            )
        self._rows("session_settings")
        facts = self._rows("facts")[0]
        self.role, self.sees_all = facts[4], facts[5] or facts[6]
        self.backend_pid, self._prepared_transactions = facts[7], facts[8]
        if not self.sees_all:
            self.gaps.append(
                Gap(
                    probe="all-sessions",
                    reason=f"role {self.role} sees only its own sessions: GRANT pg_read_all_stats TO {self.role}",
                )
            )
        found = self._rows("settings")
        settings = {r[0]: r[1] for r in found}
        if settings.get("track_activities") == "off":
            self.gaps.append(Gap(probe="states", reason="track_activities is off: the server records no states"))
        self.server = rows.server(
            facts,
            settings,
            {r[0]: r[2] for r in found},
            self._rows("roles"),
            self._rows("databases"),
            system_identifier=self._optional("system_identifier"),
            replay=self._optional("replay") if facts[2] else None,
        )
        return self.server

    def sample(self) -> Sample:
        """One reading of all sessions."""
        started = time.monotonic()
        sessions, now_at = self._session_rows.read(self._rows("activity"))
        unseen: tuple[int, ...] = ()
        if self.version_num < 180_000 or not self.sees_all:
            # From 18 on such a log-in has a row, which hides even that it is a client from who may not see it.
            known = {s.pid for s in sessions if s.user is not None or not s.hidden}
            unseen = tuple(r[0] for r in self._rows("unseen_logins") if r[0] not in known)
        waiting = [s.pid for s in sessions if s.wait_event_type == "Lock" and s.state == "active"]
        if waiting:
            sessions = self._with_blockers(sessions, waiting)
        return Sample(
            taken_at=now_at if now_at is not None else time.time(),
            sessions=sessions,
            unseen_logins=unseen,
            counters=rows.counters(self._rows("counters")),
            prepared_transactions=self._prepared_transactions,
            cost_ms=round((time.monotonic() - started) * 1000, 2),
        )

    def access(self, first: Sample) -> Access:
        """Which door we came through, judged by the first reading."""
        server = self.server
        if server is None:
            msg = "prepare() comes first"
            raise RuntimeError(msg)
        trial = Access(door="replication" if self._entry.replication else "ordinary", role=self.role)
        ledger = make_ledger(server, first, trial)
        role = server.role(self.role)
        door = door_of(
            replication=self._entry.replication,
            superuser=bool(role and role.superuser),
            uses_reserved=bool(role and role.uses_reserved),
            free_after_us=ledger.max_connections - ledger.used,
            reserve=ledger.reserved,
            su=ledger.superuser_reserved,
        )
        # "ordinary" was the name of the attempt; the door is known only now.
        attempts = tuple(
            replace(a, door=door) if a.door == "ordinary" and a.outcome == "open" else a for a in self._entry.attempts
        )
        return Access(door=door, role=self.role, sees_all_sessions=self.sees_all, attempts=attempts)

    def log_tail(self, max_bytes: int) -> tuple[str, bytes] | None:
        """The end of the server's own log, when it has a collector and we may read files; else None."""
        try:
            found = self._rows("log_file")
            if not found:
                return None
            name, size, _ = found[0]
            offset = max(0, size - max_bytes)
            text = self._rows("log_tail", {"name": name, "offset": offset, "length": max_bytes})[0][0]
        except psycopg.Error:
            return None
        return name, bytes(text)

    def _with_blockers(self, sessions: tuple[Session, ...], waiting: list[int]) -> tuple[Session, ...]:
        try:
            found = {r[0]: r for r in self._rows("lock_waits", {"pids": waiting[:MAX_LOCK_WAITERS]})}
        except psycopg.errors.QueryCanceled:
            return sessions
        return tuple(
            replace(
                s,
                blocked_by=tuple(found[s.pid][1]),
                lock_wait_start_at=found[s.pid][2],
                lock_mode=found[s.pid][3],
            )
            if s.pid in found
            else s
            for s in sessions
        )

    def _optional(self, name: str) -> str | None:
        try:
            found = self._rows(name)
        except psycopg.errors.InsufficientPrivilege:
            return None
        return str(found[0][0]) if found and found[0][0] is not None else None

    def _rows(self, name: str, parameters: dict[str, Any] | None = None) -> list[rows.Row]:
        sql = statement(name, self.version_num)
        try:
            return self._connection.execute(sql.encode(), parameters).fetchall()
        except psycopg.OperationalError as error:
            if self._connection.closed or self._connection.broken:
                raise ServerGoneError(
                    f"{self._entry.target.display} went away while we looked",
                    seen=str(error).strip().splitlines()[0],
                    next="pgvacancy probe",
                ) from None
            raise
