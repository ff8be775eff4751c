"""The postmaster's children: one reading of their titles, start times and wake-ups.

A session that nobody uses sleeps in one system call; the count of its voluntary context switches then stands
still. That tells used from unused sessions without a single slot.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from pgvacancy.model.evidence import BackendProcess
from pgvacancy.observe.host.procfs import Process, boot_at, processes, read_bytes, start_at
from pgvacancy.observe.host.titles import cluster_prefix, parse_title, text_of

_WAKEUPS = re.compile(rb"^voluntary_ctxt_switches:\s*(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All children at one instant."""

    taken_at: float
    children: Mapping[int, Process]
    wakeups: Mapping[int, int]
    """By pid; fewer than children when the time for reading ran out."""
    titles: Mapping[int, str]
    cost_ms: float
    complete: bool


def read_children(postmaster: int, *, titles: bool = True, budget_s: float = 1.0) -> Reading:
    """Read the postmaster's children, for at most about ``budget_s`` seconds."""
    begun = time.monotonic()
    taken_at = time.time()
    children = {p.pid: p for p in processes().values() if p.parent == postmaster}
    wakeups: dict[int, int] = {}
    texts: dict[int, str] = {}
    complete = True
    if titles:
        for pid in children:
            cmdline = read_bytes(f"/proc/{pid}/cmdline")
            if cmdline:
                texts[pid] = text_of(cmdline)
    for pid in children:
        if time.monotonic() - begun > budget_s:
            complete = False
            break
        match = _WAKEUPS.search(read_bytes(f"/proc/{pid}/status") or b"")
        if match:
            wakeups[pid] = int(match.group(1))
    return Reading(
        taken_at=taken_at,
        children=children,
        wakeups=wakeups,
        titles=texts,
        cost_ms=(time.monotonic() - begun) * 1000,
        complete=complete,
    )


def backends_of(
    last: Reading, *, first: Reading | None = None, databases: Collection[str] = ()
) -> tuple[BackendProcess, ...]:
    """Children as backends; with an earlier reading also whether each was used in between."""
    boot = boot_at()
    prefix = cluster_prefix(last.titles.values())
    found = []
    for pid, text in sorted(last.titles.items()):
        title = parse_title(text, prefix=prefix, databases=databases)
        child = last.children[pid]
        backend = BackendProcess(
            pid=pid,
            start_at=start_at(child, boot),
            kind=title.kind,
            user=title.user,
            database=title.database,
            client_addr=title.client_addr,
            client_port=title.client_port,
            activity=title.activity,
            wakeups=last.wakeups.get(pid, 0),
        )
        found.append(replace(backend, used=_used(child, last, first)))
    return tuple(found)


def _used(child: Process, last: Reading, first: Reading | None) -> bool | None:
    earlier = first.children.get(child.pid) if first is not None else None
    if first is None or earlier is None or earlier.start_ticks != child.start_ticks:
        return None
    before, after = first.wakeups.get(child.pid), last.wakeups.get(child.pid)
    return None if before is None or after is None else before != after


def read_backends(postmaster: int, *, databases: Collection[str] = ()) -> tuple[BackendProcess, ...]:
    """One reading, taken apart: what a host-only sample is made of."""
    return backends_of(read_children(postmaster), databases=databases)


def own_children(postmaster: int, reading: Reading) -> frozenset[int]:
    """The server's own processes: never clients."""
    return frozenset({postmaster, *reading.children})
