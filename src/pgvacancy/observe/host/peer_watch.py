"""Whether the other end of a connection is still there.

Proved are, and only then ``gone`` is true:

* the client's address is this machine's own, the server's end is ESTABLISHED, and the client's end does not
  exist or was closed by its process, at two readings. Addresses other than loopback prove nothing
  while connections are tracked, for a translated address may hide a client in another namespace;
* the server's own address of that connection is no longer on this machine, or its interface is switched off;
* the kernel cannot reach the client's machine: no route, or no neighbour answers;
* it leaves a connection attempt unanswered, and at least three packets of the session itself as well.

The connection attempt goes to the client's own port, from the address the session uses: one per machine, at
most :data:`MAX_PROBES` machines, all at once. An answer of any kind shows a live machine, and no more: the kernel
answers a stranger's SYN to a connected port exactly as to a closed one, with a reset. Silence alone proves nothing.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pgvacancy.model.evidence import PeerState
from pgvacancy.observe.host.sockets import (
    End,
    Socket,
    Table,
    is_local,
    is_loopback,
    normalise,
    read_table,
    switched_off,
)

MAX_PROBES = 16
UNANSWERED = 3
"""Packets in a row without an answer that count: some seconds of silence."""
BUDGET_S = 1.5
"""Seconds waited for answers at most."""
NEIGHBOUR_S = 3.3
"""The kernel asks three times, a second apart, before it calls a neighbour unreachable."""
_UNREACHABLE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})
_ALIVE = frozenset({0, errno.ECONNREFUSED, errno.ECONNRESET})
_CLOSED_BY_CLIENT = frozenset({"FIN_WAIT1", "FIN_WAIT2", "CLOSING", "LAST_ACK", "TIME_WAIT", "CLOSE"})
_TRACKED = Path("/proc/sys/net/netfilter/nf_conntrack_count")


@dataclass(slots=True)
class _Attempt:
    address: str
    connection: socket.socket | None
    started: float
    result: int | None = None
    """An errno, 0 for success, None while nothing came back."""
    unresolved_before: bool = False


@dataclass(slots=True)
class PeerWatch:
    """Starts looking at once, answers in :meth:`finish`. Between the two no time is spent."""

    server_port: int
    read: Callable[[int], Table] = read_table
    sessions: tuple[End, ...] = ()
    probe: bool = True
    last: Table | None = None
    """What :meth:`finish` read, for whoever needs the same table."""
    _first: Table | None = None
    _attempts: dict[str, _Attempt] = field(default_factory=dict)
    _local: dict[str, bool] = field(default_factory=dict)
    _off: dict[str, str | None] = field(default_factory=dict)

    def start(self, sessions: Iterable[tuple[str, int]]) -> None:
        """Begin for the given clients, as the server names them (address and port)."""
        self.sessions = tuple({(normalise(a), p) for a, p in sessions if a and p and p > 0})
        self._first = self.read(self.server_port)
        ends = self._first.server_ends(self.server_port)
        remote = Counter(a for a, p in self.sessions if (a, p) in ends and not self._is_local(a))
        if not self.probe:
            return
        unresolved = _unresolved()
        for address, _ in remote.most_common(MAX_PROBES):
            port = next(p for a, p in self.sessions if a == address and (a, p) in ends)
            own = ends[address, port].local[0]
            if not self._unusable(own):  # else it is proved already, and the packet would leave another way
                self._attempts[address] = _attempt(address, port, own, unresolved_before=address in unresolved)

    def finish(self, *, budget_s: float = BUDGET_S) -> tuple[PeerState, ...]:
        """What is known now. Waits up to ``budget_s`` seconds while an attempt is still open."""
        try:
            self._wait(budget_s)
            unresolved = _unresolved()
        finally:
            self.close()
        self.last = last = self.read(self.server_port)
        first = self._first or last
        ends = last.server_ends(self.server_port)
        closed = self._closed_locally(first) & self._closed_locally(last)
        states = []
        for end in sorted(self.sessions):
            own = ends.get(end)
            if own is not None:
                why, gone = self._judge(end, own, closed=closed, unresolved=unresolved)
                states.append(_state(end, own, gone=gone, why=why))
        return tuple(states)

    def close(self) -> None:
        """Give up every attempt."""
        for attempt in self._attempts.values():
            if attempt.connection is not None:
                attempt.connection.close()
                attempt.connection = None

    def _is_local(self, address: str) -> bool:
        if address not in self._local:
            self._local[address] = is_local(address)
        return self._local[address]

    def _unusable(self, own: str) -> str:
        """Why nothing can reach the server on an address it once had; empty when something can."""
        if not self._is_local(own):
            return "is no longer on this machine"
        if own not in self._off:
            self._off[own] = None if is_loopback(own) else switched_off(own)
        return f"is on {self._off[own]}, which is switched off" if self._off[own] else ""

    def _closed_locally(self, table: Table) -> set[End]:
        """Clients on this machine whose end is missing or closed while the server's is ESTABLISHED."""
        if not table.complete:
            return set()
        clients = table.client_ends(self.server_port)
        return {
            end
            for end, own in table.server_ends(self.server_port).items()
            if own.state == "ESTABLISHED"
            and self._is_local(end[0])
            and (is_loopback(end[0]) or not _addresses_translated())
            and (end not in clients or clients[end].state in _CLOSED_BY_CLIENT)
        }

    def _judge(self, end: End, own: Socket, *, closed: set[End], unresolved: Mapping[str, str]) -> tuple[str, bool]:
        if own.state == "CLOSE_WAIT":
            return "the client has closed its side, the server has not read that yet", False
        if end in closed:
            return "this machine's own address, and no process holds that client's socket any more", True
        unusable = self._unusable(own.local[0])
        if unusable:
            return f"the server's address {own.local[0]} {unusable}", True
        unanswered = max(own.retransmits, own.probes)
        attempt = self._attempts.get(end[0])
        if attempt is not None:
            if attempt.result in _UNREACHABLE:
                return f"no route to the client's machine ({errno.errorcode[attempt.result or 0]})", True
            if attempt.result in _ALIVE:
                return "the client's machine answers", False
            device = unresolved.get(end[0])
            if device is not None and (attempt.unresolved_before or not _has_carrier(device)):
                return f"no neighbour answers for the client's address on {device}", True
            if unanswered >= UNANSWERED:
                return f"silent: {unanswered} packets of the session and a connection attempt unanswered", True
        if unanswered >= UNANSWERED:
            return f"{unanswered} packets in a row unanswered", False
        return "", False

    def _wait(self, budget_s: float) -> None:
        begun = time.monotonic()
        while True:
            waiting = {a.connection.fileno(): a for a in self._attempts.values() if a.connection and a.result is None}
            if not waiting:
                return
            now = time.monotonic()
            oldest = min(a.started for a in waiting.values())
            until = min(oldest + budget_s, begun + budget_s)
            unresolved = _unresolved()
            if now - oldest >= budget_s and any(a.address in unresolved for a in waiting.values()):
                # Begun early enough for the kernel's own verdict, which is a moment away.
                until = min(oldest + NEIGHBOUR_S, begun + budget_s)
            poll = select.poll()
            for fd in waiting:
                poll.register(fd, select.POLLOUT)
            for fd, _ in poll.poll(max(0.0, until - now) * 1000):
                attempt = waiting[fd]
                if attempt.connection is not None:
                    attempt.result = attempt.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if time.monotonic() >= until:
                return


def peers(
    sessions: Iterable[tuple[str, int]], server_port: int, *, probe: bool = True, budget_s: float = BUDGET_S
) -> tuple[PeerState, ...]:
    """Look at these clients now, within about ``budget_s`` seconds. Connections already ended are left out."""
    watch = PeerWatch(server_port=server_port, probe=probe)
    watch.start(sessions)
    return watch.finish(budget_s=budget_s)


def _attempt(address: str, port: int, own: str, *, unresolved_before: bool) -> _Attempt:
    attempt = _Attempt(address, None, time.monotonic(), unresolved_before=unresolved_before)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        attempt.connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        attempt.connection.bind((own, 0))
        result = attempt.connection.connect_ex((address, port))
    except OSError:
        result = -1  # says something about us, nothing about the peer
    attempt.result = None if result in {errno.EINPROGRESS, errno.EALREADY} else result
    return attempt


def _state(end: End, own: Socket, *, gone: bool, why: str) -> PeerState:
    return PeerState(
        address=end[0],
        port=end[1],
        tcp_state=own.state,
        gone=gone,
        why=why,
        unacknowledged_bytes=own.unacknowledged_bytes,
        retransmits=own.retransmits,
        unanswered_probes=own.probes,
    )


def _unresolved() -> dict[str, str]:
    """Neighbours (IPv4) that the kernel has asked for in vain so far, with their device.

    Source: https://man7.org/linux/man-pages/man7/arp.7.html
    """
    try:
        lines = Path("/proc/net/arp").read_text(encoding="ascii", errors="replace").splitlines()[1:]
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {r[0]: r[5] for r in rows if len(r) >= 6 and r[2] == "0x0"}


def _has_carrier(device: str) -> bool:
    try:
        return Path(f"/sys/class/net/{device}/carrier").read_text(encoding="ascii").strip() != "0"
    except OSError:
        return True  # unknown


def _addresses_translated() -> bool:
    """Whether this namespace tracks connections, and so might translate addresses."""
    try:
        return _TRACKED.read_text(encoding="ascii").strip() != "0"
    except OSError:
        return False
