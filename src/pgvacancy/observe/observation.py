"""One observation: find a door, look for a few seconds, leave. The result is a snapshot, never a verdict.

Everything that can be looked at in parallel without a second session is: the host's process table, the server's
log, the poolers in front. What could not be observed becomes a gap with its reason.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from pgvacancy.model.errors import (
    AccessError,
    PgvacancyError,
    PoolerError,
    ServerGoneError,
    StartingUpError,
    UnreachableError,
)
from pgvacancy.model.evidence import HostEvidence, LogEvidence, PoolerEvidence
from pgvacancy.model.snapshot import Access, Gap, Refusal, RefusalKind, Sample, Server, Snapshot
from pgvacancy.observe.host import sample_from_backends
from pgvacancy.observe.local import HostReader
from pgvacancy.observe.logs import read_log, read_tail
from pgvacancy.observe.pgbouncer import PoolerReader, detect
from pgvacancy.observe.postgres.conninfo import read_target
from pgvacancy.observe.postgres.doors import Entry, enter, no_free_slot
from pgvacancy.observe.postgres.ordinary import probe_as_ordinary, probe_through_pooler
from pgvacancy.observe.postgres.session import ServerSession

INTERVAL_S = 0.25
"""Between two readings; longer when a reading is costly, so that we load the server by a twentieth at most."""
LOG_TAIL_BYTES = 8 * 1024 * 1024
RECENT_S = 60.0
"""Which part of a log that the user gave counts as recent."""
LIVE_RECENT_S = 5.0
"""Which part of the server's own log counts as recent, beyond the window itself."""

Progress = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and a word on what is happening."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to look at."""

    dsn: str = ""
    other_dsns: tuple[str, ...] = ()
    """Further log-ins to try when the first finds no slot."""
    observe_s: float = 3.0
    poolers: tuple[str, ...] = ()
    logs: tuple[Path, ...] = ()
    host: bool = True
    """Look at /proc and sockets when the server runs on this machine."""
    host_only: bool = False
    """Do not log in at all."""
    log_progress: Callable[[int, int], None] | None = None


def observe(request: Request, progress: Progress = lambda _share, _word: None) -> Snapshot:
    """Observe once. Raises an AccessError when nothing at all could be learnt."""
    started_at = time.time()
    if missing := [path for path in request.logs if not path.exists()]:
        read_log(missing)  # says what is wrong before anybody waits
    entry, trouble = _enter(request)
    # A pooler given in the server's place is evidence all the same.
    poolers = (*request.poolers, request.dsn) if isinstance(trouble, PoolerError) else request.poolers
    run = _Run(request, entry, poolers, started_at, progress)
    try:
        run.look()
    finally:
        run.close()
    # Afterwards, so that the log tells of the window too, and that no session is held while a large one is read.
    log = read_log(request.logs, recent_s=RECENT_S, progress=request.log_progress) if request.logs else None
    learnt = run.samples or run.host_samples or log or any(p.reachable for p in run.poolers)
    if trouble is not None and not learnt:
        raise trouble
    return run.snapshot(log, trouble)


def _enter(request: Request) -> tuple[Entry, AccessError | None]:
    """The way in; an error is kept back while the log, the host or a pooler may still tell something."""
    target = read_target(request.dsn)
    if request.host_only:
        return Entry(target=target), None
    try:
        entry = enter(request.dsn, request.other_dsns)
    except (UnreachableError, StartingUpError, PoolerError) as error:
        return Entry(target=target, refusals=_starting(error)), error
    if entry.connection is not None and not entry.replication and detect(entry.connection) != "server":
        # Our settings would stay behind on a server connection that others use next, so we leave at once.
        entry.connection.close()
        pooler = PoolerError(
            f"{target.display} is a pooler, not a PostgreSQL server",
            seen="the backend's pid is not the one the log-in was given"
            if target.database != "pgbouncer"
            else "a console",
            next=f"pgvacancy doctor --pgbouncer {shlex.quote(target.shareable)} DSN_OF_THE_SERVER",
        )
        return Entry(target=target, attempts=entry.attempts), pooler
    return entry, None


def _starting(error: AccessError) -> tuple[Refusal, ...]:
    if isinstance(error, StartingUpError):
        return (Refusal(sqlstate="57P03", kind="starting-up", message=error.seen or error.what),)
    return ()


class _Run:
    """The state of one observation."""

    def __init__(
        self, request: Request, entry: Entry, poolers: tuple[str, ...], started_at: float, progress: Progress
    ) -> None:
        self.request = request
        self.entry = entry
        self.started_at = started_at
        self.progress = progress
        self.gaps: list[Gap] = []
        self.samples: list[Sample] = []
        self.host_samples: list[Sample] = []
        self.refusals: list[Refusal] = list(entry.refusals)
        self.server: Server | None = None
        self.access = Access(door="none", attempts=entry.attempts)
        self.host: HostEvidence | None = None
        self.poolers: list[PoolerEvidence] = []
        self.server_log: LogEvidence | None = None
        self.interrupted: str | None = None
        self.session = ServerSession(entry) if entry.connection is not None else None
        self._readers = {dsn: PoolerReader(dsn) for dsn in poolers}
        self._host: HostReader | None = None

    def look(self) -> None:
        """Take the first reading of everything, keep reading, take the last."""
        if self.session is not None:
            self.server = self.session.prepare()
        self._start_host()
        for reader in self._readers.values():
            reader.open()
        begun = time.monotonic()
        try:
            self._read()
            self._watch(begun)
        except ServerGoneError as error:
            if not self.samples:
                raise
            self.interrupted = f"{error.what}: {error.seen}"
        self.observed_s = time.monotonic() - begun
        self._finish()

    observed_s = 0.0

    def _watch(self, begun: float) -> None:
        window_s = self.request.observe_s
        if self.session is None and self._host is None and not self._readers:
            return  # nothing to look at: nobody should wait for it
        pause_s = INTERVAL_S
        while (elapsed := time.monotonic() - begun) < window_s:
            self.progress(elapsed / window_s, "observing")
            time.sleep(min(pause_s, max(0.0, window_s - elapsed)))
            cost_s = self._read()
            # A costly reading loads the server by a twentieth at most, as long as five readings remain.
            pause_s = max(INTERVAL_S, min(20 * cost_s, window_s / 5))
        if window_s > 0 and len(self.samples or self.host_samples) < 2:
            self._read()  # on a starved machine the first reading may outlast the window
        self.progress(1.0, "observed")

    def _read(self) -> float:
        """One reading of the server and the poolers; what the server's took, in seconds."""
        cost_s = 0.0
        if self.session is not None:
            sample = self.session.sample()
            self.samples.append(sample)
            cost_s = (sample.cost_ms or 0.0) / 1000
            if len(self.samples) == 1:
                self.access = self.session.access(sample)
                if self._host is not None:
                    self._host.watch_peers(sample.sessions, sample.taken_at)
        elif self._host is not None:
            self.host_samples.append(sample_from_backends(self._host.backends(), taken_at=time.time()))
        for reader in self._readers.values():
            reader.read()
        return cost_s

    def _start_host(self) -> None:
        if not self.request.host:
            return
        backend_pid = self.session.backend_pid if self.session is not None else None
        reader = HostReader(self.entry.target, self.server, backend_pid)
        gap = reader.start()
        if gap is None:
            self._host = reader
        else:
            self.gaps.append(gap)

    def _finish(self) -> None:
        if self._host is not None:
            self.host, gaps = self._host.finish()
            self.gaps += gaps
            self._read_host_log(self._host.server_log)
            if self.session is None:
                self.server = self._host.server()
        if self.session is not None:
            self.gaps += self.session.gaps
            if self.interrupted is None and self.server_log is None:
                tail = self.session.log_tail(LOG_TAIL_BYTES)
                if tail is not None:
                    name, text = tail
                    self.server_log = self._try_log(lambda: self._tail(name, text))
            self.session.close()  # so that our own slot is not what refuses the next client
            if self.server is not None and self.samples:
                self.refusals += probe_as_ordinary(self.entry.target, self.server, self.samples[-1])
        self.poolers = [self._finish_pooler(dsn, reader) for dsn, reader in self._readers.items()]

    def _finish_pooler(self, dsn: str, reader: PoolerReader) -> PoolerEvidence:
        evidence = reader.finish()
        if evidence.problem:
            self.gaps.append(Gap(probe="pooler", reason=f"pooler {evidence.target}: {evidence.problem}"))
        refusal = probe_through_pooler(dsn, evidence)
        if refusal is None:
            return evidence
        self.refusals.append(refusal)
        return replace(evidence, refusal=refusal.message)

    def _read_host_log(self, path: Path | None) -> None:
        if path is None or self.request.logs:
            return
        prefix = self.server.settings.get("log_line_prefix") if self.server else None
        self.server_log = self._try_log(
            lambda: read_log(
                [path],
                recent_s=self._recent_s,
                max_bytes=LOG_TAIL_BYTES,
                log_line_prefix=prefix,
                now_at=self._now_at,
            )
        )

    def _tail(self, name: str, text: bytes) -> LogEvidence:
        prefix = self.server.settings.get("log_line_prefix") if self.server else None
        return read_tail(text, name=name, recent_s=self._recent_s, now_at=self._now_at, log_line_prefix=prefix)

    @property
    def _recent_s(self) -> float:
        return LIVE_RECENT_S + self.request.observe_s

    @property
    def _now_at(self) -> float:
        return self.samples[-1].taken_at if self.samples else time.time()

    def _try_log(self, read: Callable[[], LogEvidence]) -> LogEvidence | None:
        try:
            return read()
        except PgvacancyError as error:
            self.gaps.append(Gap(probe="log", reason=f"{error.what}: {error.seen}"))
            return None

    def close(self) -> None:
        """Give our session back."""
        if self.session is not None:
            self.session.close()
        if self._host is not None:
            self._host.close()

    def snapshot(self, log: LogEvidence | None, trouble: AccessError | None) -> Snapshot:
        """Put everything together."""
        log = log or self.server_log
        if log is None:
            self.gaps.append(Gap(probe="log", reason="refusals stand in the server log only: give it with --log FILE"))
        if trouble is not None:
            self.gaps.append(Gap(probe="sessions", reason=f"{trouble.what}: {trouble.seen}"))
        elif self.session is None and not self.request.host_only:
            error = no_free_slot(self.entry)
            self.gaps.append(Gap(probe="sessions", reason=f"{error.what}: {error.tried}; next: {error.next}"))
        if self.session is None and log is not None:
            self.refusals += _logged(log)
        samples = self.samples or self.host_samples
        return Snapshot(
            taken_at=samples[-1].taken_at if samples else self.started_at,
            observed_s=round(self.observed_s, 2),
            access=self.access,
            target=self.entry.target.display,
            server=self.server,
            samples=tuple(samples),
            refusals=tuple(self.refusals),
            log=log,
            host=self.host,
            poolers=tuple(self.poolers),
            gaps=tuple(self.gaps),
            interrupted=self.interrupted,
        )


def _logged(log: LogEvidence) -> list[Refusal]:
    """The refusals in a log, the most frequent first: all there is to go by when no session could be had."""
    ranked = sorted(log.refusals, key=lambda r: -r.count)
    return [
        Refusal(
            sqlstate="08P01" if r.kind.startswith("pooler-") else "53300",
            kind=cast("RefusalKind", r.kind),
            message=r.message,
            user=r.user,
            database=r.database,
            source="log",
        )
        for r in ranked[:5]
    ]


__all__ = ["Request", "observe"]
