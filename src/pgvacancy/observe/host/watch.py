"""Two looks at the server's machine, at the beginning and the end of the observation window."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pgvacancy.model.evidence import HostEvidence
from pgvacancy.model.snapshot import Gap
from pgvacancy.observe.host import machine
from pgvacancy.observe.host.backends import Reading, backends_of, own_children, read_children
from pgvacancy.observe.host.clients import Search, find_clients
from pgvacancy.observe.host.peer_watch import BUDGET_S, PeerWatch
from pgvacancy.observe.host.postmaster import data_directory_of, read_control
from pgvacancy.observe.host.sockets import accept_queue, read_table


@dataclass(slots=True)
class HostWatch:
    """Begun by :meth:`start`, ended by :meth:`finish`. Holds no session and no thread in between."""

    postmaster: int
    port: int
    _first: Reading
    _forks: int | None
    _begun: float
    _peers: PeerWatch

    @classmethod
    def start(cls, postmaster: int, port: int) -> HostWatch:
        """Take the first reading."""
        return cls(
            postmaster=postmaster,
            port=port,
            _first=read_children(postmaster, titles=False),
            _forks=machine.forks(),
            _begun=time.monotonic(),
            _peers=PeerWatch(server_port=port),
        )

    def watch_peers(self, sessions: Iterable[tuple[str | None, int | None]], *, probe: bool = True) -> None:
        """Begin to look whether these clients (address, port as the server names them) are still there.

        To be called once, as early as the sessions are known: an unreachable machine is told after three seconds.
        ``probe`` false sends no packet.
        """
        self._peers.probe = probe
        self._peers.start((a, p) for a, p in sessions if a and p)

    def finish(
        self, *, databases: Collection[str] = (), peer_budget_s: float = BUDGET_S
    ) -> tuple[HostEvidence | None, tuple[Gap, ...]]:
        """Take the second reading and put everything together; None when the server has gone meanwhile."""
        gaps: list[Gap] = []
        peers = self._peers.finish(budget_s=peer_budget_s) if self._peers.sessions else ()
        elapsed = time.monotonic() - self._begun
        forks = machine.forks()
        last = read_children(self.postmaster)
        if not last.children:
            return None, (Gap(probe="host", reason=f"the postmaster, pid {self.postmaster}, has no children any more"),)
        if not (last.complete and self._first.complete):
            gaps.append(Gap(probe="host:wakeups", reason=f"{len(last.children)} processes, not all read in time"))
        table = self._peers.last or read_table(self.port)
        if not table.complete:
            gaps.append(Gap(probe="host:sockets", reason="the kernel's TCP table was not read to its end"))
        served = table.server_ends(self.port)
        search = find_clients(
            {end: s for end, s in table.client_ends(self.port).items() if end in served},
            skip=own_children(self.postmaster, last),
        )
        gaps += _gaps_of(search)
        listeners = table.listening(self.port)
        queue = accept_queue(self.port) or (max((s.unread for s in listeners), default=0), 0)
        control, reason = read_control(self.postmaster)
        if reason:
            gaps.append(Gap(probe="host:pg_controldata", reason=reason))
        evidence = HostEvidence(
            postmaster_pid=self.postmaster,
            data_directory=data_directory_of(self.postmaster),
            cores=machine.cores(),
            memory_bytes=machine.memory_bytes(),
            backends=backends_of(last, first=self._first, databases=databases),
            clients=search.clients,
            peers=peers,
            listen_queue=queue[0],
            listen_backlog=queue[1],
            time_wait=table.time_wait(self.port),
            forks_per_s=_rate(self._forks, forks, elapsed),
            cpu_pressure_ratio=machine.cpu_pressure_ratio(),
            control=control,
        )
        return evidence, tuple(gaps)

    def close(self) -> None:
        """Give up without a result; needed only when :meth:`finish` is not called."""
        self._peers.close()


def _gaps_of(search: Search) -> list[Gap]:
    if search.stopped_early:
        return [Gap(probe="host:clients", reason="too many processes on this machine to find every client's in time")]
    if search.missing and search.closed_to_us:
        reason = f"{search.missing} clients on this machine belong to processes whose open files are not ours to see"
        return [Gap(probe="host:clients", reason=reason)]
    return []


def _rate(before: int | None, after: int | None, elapsed_s: float) -> float | None:
    # Over an instant a rate means nothing: one process more would look like thousands per second.
    if before is None or after is None or elapsed_s < 0.2:
        return None
    return (after - before) / elapsed_s
