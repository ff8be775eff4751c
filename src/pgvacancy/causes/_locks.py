"""Who waits for whom: lock queues walked from the waiting sessions to the one that holds everybody up.

``pg_blocking_pids`` names the direct blockers, those ahead in the queue included. A queue behind a row lock is a
chain (each waits for the one before), a queue behind a waiting DDL statement a fan. Both end at *roots*: sessions
that block and do not wait themselves, or 0 for a prepared transaction.

Source: https://www.postgresql.org/docs/current/functions-info.html
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pgvacancy.model.snapshot import Sample, Session

PREPARED = 0
"""What ``pg_blocking_pids`` gives for a prepared transaction."""
STRONG_MODES = frozenset(
    {"AccessExclusiveLock", "ExclusiveLock", "ShareRowExclusiveLock", "ShareLock", "ShareUpdateExclusiveLock"}
)
"""Table lock modes of DDL and maintenance: a request of this kind makes ordinary ones queue behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pile:
    """Sessions that wait, directly or through others, for the same roots."""

    root_pids: tuple[int, ...]
    roots: tuple[Session, ...]
    """The roots that are client backends; a root pid without one is a prepared transaction or a server process."""
    waiters: tuple[Session, ...]
    gate: Session | None = None
    """A *waiting* statement without which most of the queue would pass: DDL behind a long reader."""
    behind_gate: int = 0
    """Waiters that pass once the gate is gone."""

    @property
    def identity(self) -> frozenset[tuple[int, float | None, float | None]]:
        """The roots' transactions: a session that blocks again in another transaction is another root."""
        known = {s.pid: s for s in self.roots}
        return frozenset(
            (pid, known[pid].backend_start_at, known[pid].xact_start_at) if pid in known else (pid, None, None)
            for pid in self.root_pids
        )


def waits(session: Session) -> bool:
    """Whether it is a client waiting for a heavyweight lock."""
    return session.state == "active" and session.wait_event_type == "Lock" and not session.is_own


def end_command(root: Session) -> str:
    """SQL that ends a session, and only while it is in the very state it was seen in.

    A pid is used again, and a session that has committed since holds nobody up any more: so the start of the session
    and that of the transaction (without one: the last change of state) are compared in the same statement.
    """
    inside = (root.state or "").startswith("idle in transaction")
    since = ("xact_start", root.xact_start_at) if inside else ("state_change", root.state_change_at)
    guards = [f"pid = {root.pid}", "state LIKE 'idle in transaction%'" if inside else "state = 'idle'"]
    guards += [
        f"{column} = to_timestamp({at:.6f})"
        for column, at in (("backend_start", root.backend_start_at), since)
        if at is not None
    ]
    return f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {' AND '.join(guards)};"


def piles(sample: Sample) -> tuple[Pile, ...]:
    """The queues of one reading, longest first; each waiter stands in one of them."""
    sessions = {s.pid: s for s in sample.sessions}
    waiting = {s.pid: s for s in sample.sessions if waits(s)}
    behind: defaultdict[int, set[int]] = defaultdict(set)
    for s in waiting.values():
        for blocker in s.blocked_by:
            behind[blocker].add(s.pid)
    resolved = {pid for pid, s in waiting.items() if s.blocked_by}
    reach = {pid: _reach(behind, (pid,)) for pid in behind if pid not in resolved}
    by_queue: defaultdict[frozenset[int], list[int]] = defaultdict(list)
    for root, pids in reach.items():
        by_queue[frozenset(pids)].append(root)
    result: list[Pile] = []
    taken: set[int] = set()
    for queue, roots in sorted(by_queue.items(), key=lambda item: (-len(item[0]), item[1])):
        left = queue - taken
        if not left:
            continue
        taken |= left
        result.append(_pile(sorted(roots), left, sessions, behind))
    unresolved = [s for pid, s in waiting.items() if pid not in resolved and pid not in taken and pid not in reach]
    if result and unresolved:
        # Beyond the number of waiters that are resolved in one reading: they belong to the longest queue.
        first = result[0]
        result[0] = Pile(
            root_pids=first.root_pids,
            roots=first.roots,
            waiters=(*first.waiters, *unresolved),
            gate=first.gate,
            behind_gate=first.behind_gate,
        )
    return tuple(sorted(result, key=lambda p: -len(p.waiters)))


def _pile(
    roots: Sequence[int], queue: Collection[int], sessions: Mapping[int, Session], behind: Mapping[int, set[int]]
) -> Pile:
    gate: Session | None = None
    most = 0
    for pid in sorted(queue):
        s = sessions[pid]
        if s.wait_event != "relation" or s.lock_mode not in STRONG_MODES or not behind.get(pid):
            continue
        passing = len(set(queue) - _reach(behind, roots, without=pid)) - 1
        if passing > most:
            gate, most = s, passing
    if most < max(2, (len(queue) - 1) // 2):
        gate, most = None, 0
    return Pile(
        root_pids=tuple(roots),
        roots=tuple(sessions[p] for p in roots if p in sessions),
        waiters=tuple(sessions[p] for p in sorted(queue)),
        gate=gate,
        behind_gate=most,
    )


def _reach(behind: Mapping[int, set[int]], start: Collection[int], without: int | None = None) -> set[int]:
    seen: set[int] = set()
    todo = deque(start)
    while todo:
        for pid in behind.get(todo.popleft(), ()):
            if pid not in seen and pid != without:
                seen.add(pid)
                todo.append(pid)
    return seen - set(start)
