"""The host's evidence for one observation: finds the server on this machine, or says why it is not here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pgvacancy.model.evidence import BackendProcess, HostEvidence
from pgvacancy.model.ledger import holds_slot
from pgvacancy.model.snapshot import Gap, Server, Session
from pgvacancy.observe.host import HostWatch, locate_postmaster, read_backends, read_limits, server_log_path
from pgvacancy.observe.postgres.conninfo import Target

MIN_PEER_IDLE_S = 1.0
"""A client heard of within this time is there: no need to look for it."""


class HostReader:
    """Looks at the server's machine when we run on it."""

    def __init__(self, target: Target, server: Server | None, backend_pid: int | None = None) -> None:
        """Prepare; ``backend_pid`` is our own session's, which names the postmaster most surely."""
        self._target = target
        self._server = server
        self._backend_pid = backend_pid
        self._watch: HostWatch | None = None
        self._postmaster: int | None = None

    def start(self) -> Gap | None:
        """Take the first reading; the reason when the server is not on this machine."""
        host = self._target.hosts[0]
        where = host.address or host.name or "127.0.0.1"
        located = locate_postmaster(port=host.port, host=where, pid=self._backend_pid)
        if located.pid is None:
            return Gap(probe="host", reason=located.reason)
        self._postmaster = located.pid
        self._watch = HostWatch.start(located.pid, host.port)
        return None

    def watch_peers(self, sessions: Iterable[Session], now_at: float) -> None:
        """Begin to look whether the clients of sessions that rest are still there."""
        if self._watch is None:
            return
        self._watch.watch_peers(
            (s.client_addr, s.client_port)
            for s in sessions
            if holds_slot(s)
            and not s.is_own
            and s.client_addr is not None
            and s.state_change_at is not None
            and now_at - s.state_change_at >= MIN_PEER_IDLE_S
        )

    def backends(self) -> tuple[BackendProcess, ...]:
        """The server's processes right now."""
        return read_backends(self._postmaster, databases=self._databases()) if self._postmaster else ()

    def finish(self) -> tuple[HostEvidence | None, tuple[Gap, ...]]:
        """Take the second reading."""
        if self._watch is None:
            return None, ()
        evidence, gaps = self._watch.finish(databases=self._databases())
        self._watch = None
        return evidence, gaps

    def close(self) -> None:
        """Give up without a result."""
        if self._watch is not None:
            self._watch.close()

    def server(self) -> Server | None:
        """What the machine tells of a server that lets nobody in: its limits; None when they are closed to us."""
        limits = read_limits(self._postmaster) if self._postmaster else {}
        return Server(version_num=0, settings=limits) if "max_connections" in limits else None

    @property
    def server_log(self) -> Path | None:
        """The file the server's standard error goes to, when it is one."""
        return server_log_path(self._postmaster) if self._postmaster else None

    def _databases(self) -> tuple[str, ...]:
        return tuple(d.name for d in self._server.databases) if self._server else ()
