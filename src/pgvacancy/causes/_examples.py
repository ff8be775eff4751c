"""Building blocks of worked examples: the smallest populations that show a cause or its look-alike.

Two readings three seconds apart. They are examples for readers and unit tests, never a result: the proof that a
cause is recognised is its live scenario on a real server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pgvacancy.model.snapshot import Access, DatabaseCounters, Refusal, Role, Sample, Server, Session, Snapshot

NOW_AT = 1_800_000_000.0
WINDOW_S = 3.0
Pair = tuple[Session, Session]
"""One session at the first and at the last reading."""


def server(max_connections: int = 100, *, reserved: int = 0, roles: Sequence[Role] = (), **settings: str) -> Server:
    """A server with three slots kept for superusers."""
    values = {
        "max_connections": str(max_connections),
        "superuser_reserved_connections": "3",
        "reserved_connections": str(reserved),
        "max_wal_senders": "10",
    }
    return Server(
        version_num=180006,
        version="18.6",
        settings={**values, **settings},
        roles=tuple(roles),
        postmaster_start_at=NOW_AT - 86_400,
    )


_next_pid = iter(range(1000, 10_000_000))


def pool(  # noqa: PLR0913 - an example names what it varies
    name: str,
    count: int,
    *,
    user: str = "app",
    database: str = "app",
    client: str | None = "10.0.0.1",
    state: str = "idle",
    idle_s: float | tuple[float, float] = (10, 20),
    age_s: float | tuple[float, float] | None = None,
    use_span_s: float = 0.0,
    used: bool = False,
    query: str = "SELECT 1",
    **fields: Any,  # noqa: ANN401 - any field of Session
) -> list[Pair]:
    """``count`` sessions of one owner. Ages are spread evenly over a given range.

    ``age_s`` defaults to idle age plus ``use_span_s``; ``used`` means used between the two readings.
    """
    pairs: list[Pair] = []
    for n in range(count):
        idle = _spread(idle_s, n, count)
        age = _spread(age_s, n, count) if age_s is not None else idle + use_span_s
        age = max(age, idle, WINDOW_S + 1 if used else 0.0)
        base: dict[str, Any] = {
            "pid": next(_next_pid),
            "backend_start_at": NOW_AT - age,
            "user": user,
            "database": database,
            "application_name": name,
            "client_addr": client,
            "client_port": 20_000 + n,
            "state": state,
            "state_change_at": NOW_AT - idle,
            "query_start_at": NOW_AT - idle,
            "query": query,
            "wait_event_type": "Client" if state != "active" else None,
            "wait_event": "ClientRead" if state != "active" else None,
        }
        last = Session(**{**base, **fields})
        first = replace(last, state_change_at=last.state_change_at and last.state_change_at - 2) if used else last
        pairs.append((first, last))
    return pairs


def snapshot(
    srv: Server,
    *groups: Sequence[Pair],
    transactions_per_s: float = 0.0,
    sessions_per_s: float = 0.0,
    refusal: Refusal | None = None,
    **fields: Any,  # noqa: ANN401 - any field of Snapshot
) -> Snapshot:
    """Two readings of these groups. A session younger than the window is absent from the first reading."""
    pairs = [p for g in groups for p in g]
    first = tuple(a for a, _ in pairs if (a.backend_start_at or 0) < NOW_AT - WINDOW_S)
    last = tuple(b for _, b in pairs)
    samples = (
        Sample(taken_at=NOW_AT - WINDOW_S, sessions=first, counters=(_counters(0, 0),)),
        Sample(
            taken_at=NOW_AT,
            sessions=last,
            counters=(_counters(transactions_per_s * WINDOW_S, sessions_per_s * WINDOW_S),),
        ),
    )
    base: dict[str, Any] = {
        "taken_at": NOW_AT,
        "observed_s": WINDOW_S,
        "access": Access(door="superuser", role="postgres", sees_all_sessions=True),
        "server": srv,
        "samples": samples,
        "refusals": (refusal,) if refusal else (),
    }
    return Snapshot(**{**base, **fields})


def _counters(transactions: float, sessions: float) -> DatabaseCounters:
    return DatabaseCounters(database="app", transactions=int(transactions), sessions=int(sessions))


def _spread(value: float | tuple[float, float], n: int, count: int) -> float:
    if isinstance(value, tuple):
        low, high = value
        return low + (high - low) * n / max(1, count - 1)
    return value
