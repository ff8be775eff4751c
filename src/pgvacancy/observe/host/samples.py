"""A sample from process titles, for when not one session could be had. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Iterable

from pgvacancy.model.evidence import BackendProcess
from pgvacancy.model.snapshot import Sample, Session

_WAITING = " waiting"
_IDLE = frozenset({"idle", "idle in transaction", "idle in transaction (aborted)"})


def sample_from_backends(backends: Iterable[BackendProcess], *, taken_at: float) -> Sample:
    """Session rows as far as titles tell: who, from where, since when, and the kind of activity.

    Titles carry no application name, no query text and no instant of the last change: these stay empty. With
    ``update_process_title = off`` a title carries no activity either: then ``state`` is None.
    ``taken_at``: seconds since the epoch.
    """
    rows = (_session(b) for b in backends if b.kind != "connecting")
    return Sample(taken_at=taken_at, sessions=tuple(rows), source="host")


def _session(backend: BackendProcess) -> Session:
    activity = backend.activity
    if backend.kind == "auxiliary":
        return Session(
            pid=backend.pid, backend_start_at=backend.start_at, backend_type=_auxiliary(activity), client_port=None
        )
    waiting = activity.endswith(_WAITING)
    state = _state(backend)
    return Session(
        pid=backend.pid,
        backend_start_at=backend.start_at,
        backend_type="walsender" if backend.kind == "walsender" else "client backend",
        user=backend.user,
        database=backend.database,
        client_addr=backend.client_addr,
        client_port=backend.client_port,
        state=state,
        wait_event_type="Lock" if waiting and state == "active" else None,
        query=activity.removesuffix(_WAITING) if state == "active" else "",
    )


def _state(backend: BackendProcess) -> str | None:
    if backend.kind == "authenticating":
        return "starting"
    if backend.activity in _IDLE:
        return backend.activity
    return "active" if backend.activity else None


def _auxiliary(title: str) -> str:
    """``autovacuum worker postgres`` → ``autovacuum worker``: the kind as pg_stat_activity calls it."""
    for kind in ("autovacuum worker", "parallel worker", "io worker"):
        if title.startswith(kind):
            return kind
    return title
