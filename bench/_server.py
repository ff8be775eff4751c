"""Private servers for the measurements, and a witness: a connection of its own that counts sessions."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from pgvacancy.lab.cluster import Cluster
from pgvacancy.lab.lab import Lab


@contextmanager
def server(max_connections: int, **settings: str) -> Iterator[Lab]:
    """A furnished private server; the lab's processes end with it."""
    with Cluster({"max_connections": str(max_connections), **settings}) as cluster:
        lab = Lab(cluster)
        lab.furnish()
        try:
            yield lab
        finally:
            lab.stop_clients()


@dataclass(slots=True)
class Witness:
    """Looks at pg_stat_activity as fast as it can while something runs, and keeps what is new there.

    Its own session and those open when it began do not count. ``slots`` is the most client backends seen at one
    instant (unfinished log-ins included), ``walsenders`` the same for sessions that take no slot, ``pids`` all
    newcomers ever seen, ``looks`` how often it looked.
    """

    dsn: str
    slots: int = 0
    walsenders: int = 0
    pids: set[int] = field(default_factory=set)
    looks: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _connection: psycopg.Connection[tuple[int, str | None, str | None]] | None = None

    def open(self) -> None:
        """Take the session, before the server is filled."""
        self._connection = psycopg.connect(self.dsn, autocommit=True, application_name="witness")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count newcomers while the block runs."""
        if self._connection is None:
            self.open()
        known = {row[0] for row in self._look()}
        self.slots = self.walsenders = self.looks = 0
        self.pids = set()
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, args=(known,), daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join(10)

    def close(self) -> None:
        """Give the session back."""
        if self._connection is not None:
            self._connection.close()

    def _watch(self, known: set[int]) -> None:
        while not self._stop.is_set():
            newcomers = [row for row in self._look() if row[0] not in known]
            self.looks += 1
            self.slots = max(self.slots, sum(1 for row in newcomers if row[1] != "walsender"))
            self.walsenders = max(self.walsenders, sum(1 for row in newcomers if row[1] == "walsender"))
            self.pids.update(row[0] for row in newcomers)
            time.sleep(0.0005)  # leaves the processor to what is being watched

    def _look(self) -> list[tuple[int, str | None, str | None]]:
        if self._connection is None:
            return []
        return self._connection.execute(
            "SELECT pid, backend_type, application_name FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND coalesce(backend_type, 'client backend') IN"
            " ('client backend', 'walsender')"
        ).fetchall()


@contextmanager
def witness(lab: Lab) -> Iterator[Witness]:
    """A superuser's witness on a server."""
    seen = Witness(lab.cluster.dsn())
    seen.open()
    try:
        yield seen
    finally:
        seen.close()
