"""Reading a snapshot over time: sessions followed by (pid, backend_start), owners, cohorts, rates.

One reading cannot tell a pool that rests from a leak. These figures can:

* a session is **used in the window** when its state_change or query_start advanced while we looked, or it
  was active at any sample;
* its **use span** is how long after its birth it was last used: a leaked session is used right after it was
  opened and never again (span near 0), a pooled one is used again and again (span near its age);
* an owner's **revisit interval** 1/λ follows from how many of its sessions were used in the window:
  an idle age below 3/λ is what ordinary re-use looks like (probability of a longer pause: e⁻³ = 5 %);
* **cohorts** are sessions whose backend_start lie together, split where the gap is far above the usual one.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import median
from typing import TypeVar

from pgvacancy.model.diagnosis import Culprit, SessionKey
from pgvacancy.model.ledger import Ledger, holds_slot, is_starting, make_ledger
from pgvacancy.model.snapshot import DatabaseCounters, Refusal, Sample, Session, Snapshot

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """One session followed through the window. ``now_at`` is the instant of the last sample."""

    session: Session
    """As last seen."""
    now_at: float
    first_seen_at: float
    last_seen_at: float
    samples: int
    active_samples: int
    waiting_samples: int
    """Samples in which it waited for a lock."""
    alive: bool
    """Present in the last sample."""
    born_in_window: bool
    changed: bool
    """state_change or query_start advanced between two samples."""
    client: str
    """The client as far as it can be told apart: process, else address, else ``local``."""

    @property
    def key(self) -> SessionKey:
        """Identity: pid and backend_start."""
        return (self.session.pid, self.session.backend_start_at or 0.0)

    @property
    def used_in_window(self) -> bool:
        """Whether anybody used it while we looked."""
        return self.changed or self.active_samples > 0

    @property
    def age_s(self) -> float:
        """Seconds since the session began."""
        start = self.session.backend_start_at
        return max(0.0, self.now_at - start) if start is not None else 0.0

    @property
    def idle(self) -> bool:
        """Idle outside a transaction."""
        return self.session.state == "idle"

    @property
    def in_transaction(self) -> bool:
        """Idle inside an open or failed transaction."""
        return (self.session.state or "").startswith("idle in transaction")

    @property
    def waits_for_lock(self) -> bool:
        """Active and waiting for a heavyweight lock."""
        return self.session.state == "active" and self.session.wait_event_type == "Lock"

    @property
    def state_age_s(self) -> float:
        """Seconds since the state last changed: the idle age, never taken from query_start."""
        at = self.session.state_change_at
        return max(0.0, self.now_at - at) if at is not None else 0.0

    @property
    def transaction_age_s(self) -> float:
        """Seconds since the transaction began, 0 outside one."""
        at = self.session.xact_start_at
        return max(0.0, self.now_at - at) if at is not None else 0.0

    @property
    def running_s(self) -> float:
        """Seconds the present statement has been running, 0 when not active."""
        at = self.session.query_start_at
        if self.session.state != "active" or at is None:
            return 0.0
        return max(0.0, self.now_at - at)

    @property
    def use_span_s(self) -> float:
        """Seconds between the session's birth and its last use."""
        start, at = self.session.backend_start_at, self.session.state_change_at
        return max(0.0, at - start) if start is not None and at is not None else 0.0

    @property
    def used_late(self) -> bool:
        """Used again well after its birth: the mark of a session somebody keeps and returns to."""
        return self.used_in_window or self.use_span_s > max(1.0, 0.2 * self.age_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who a session belongs to, as the server sees it."""

    application_name: str
    user: str
    database: str

    @staticmethod
    def of(track: Track) -> Owner:
        """The owner of a session."""
        s = track.session
        return Owner(application_name=s.application_name, user=s.user or "", database=s.database or "")

    def __str__(self) -> str:
        """As a person would name it."""
        name = self.application_name or "(no application_name)"
        return f"{name}, user {self.user}, database {self.database}"


def group(tracks: Iterable[Track], key: Callable[[Track], K]) -> dict[K, tuple[Track, ...]]:
    """Tracks by key, largest group first."""
    groups: defaultdict[K, list[Track]] = defaultdict(list)
    for track in tracks:
        groups[key(track)].append(track)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return {k: tuple(v) for k, v in ordered}


def culprits(tracks: Iterable[Track], limit: int = 8) -> tuple[Culprit, ...]:
    """Who holds these slots, largest holder first."""
    counts = Counter((Owner.of(t), t.client) for t in tracks)
    return tuple(
        Culprit(
            application_name=owner.application_name,
            user=owner.user,
            database=owner.database,
            client=client,
            slots=slots,
        )
        for (owner, client), slots in counts.most_common(limit)
    )


def keys(tracks: Iterable[Track]) -> frozenset[SessionKey]:
    """The identities of these sessions."""
    return frozenset(t.key for t in tracks)


def cohorts(tracks: Iterable[Track], *, floor_s: float = 0.3, factor: float = 8.0) -> list[tuple[Track, ...]]:
    """Split sessions into clusters of backend_start, oldest first.

    A new cohort begins where the gap exceeds both ``floor_s`` and ``factor`` times the median gap, so that an
    even ramp stays one cohort (its largest gap is a few medians) and steps fall apart.
    """
    ordered = sorted((t for t in tracks if t.session.backend_start_at is not None), key=_start)
    if not ordered:
        return []
    gaps = [_start(b) - _start(a) for a, b in pairwise(ordered)]
    limit = max(floor_s, factor * median(gaps)) if gaps else floor_s
    result: list[list[Track]] = [[ordered[0]]]
    for track, gap in zip(ordered[1:], gaps, strict=True):
        if gap > limit:
            result.append([track])
        else:
            result[-1].append(track)
    return [tuple(c) for c in result]


def span_s(tracks: Sequence[Track]) -> float:
    """Seconds between the first and the last birth."""
    starts = [_start(t) for t in tracks if t.session.backend_start_at is not None]
    return max(starts) - min(starts) if starts else 0.0


def ramp_ratio(tracks: Sequence[Track]) -> float:
    """How far births are spread over the time since the first one: a leak near 1, a burst near 0."""
    oldest = max((t.age_s for t in tracks), default=0.0)
    return span_s(tracks) / oldest if oldest > 0 else 0.0


def revisit_s(tracks: Sequence[Track], window_s: float) -> float:
    """Mean seconds between two uses of one session of this group; infinite when none was used."""
    used = sum(1 for t in tracks if t.used_in_window)
    if not used or window_s <= 0:
        return math.inf
    return len(tracks) * window_s / used


def _start(track: Track) -> float:
    return track.session.backend_start_at or 0.0


class Case:
    """A snapshot with its arithmetic done: what causes read. Pure, built once per diagnosis."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Wrap a snapshot; nothing is computed before it is asked for."""
        self.snapshot = snapshot

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The readings, oldest first."""
        return self.snapshot.samples

    @property
    def last(self) -> Sample | None:
        """The latest reading."""
        return self.samples[-1] if self.samples else None

    @property
    def now_at(self) -> float:
        """The instant of the latest reading, on the server's clock."""
        return self.last.taken_at if self.last else self.snapshot.taken_at

    @cached_property
    def window_s(self) -> float:
        """Seconds between the first and the last reading; 0 with a single one."""
        return self.samples[-1].taken_at - self.samples[0].taken_at if len(self.samples) > 1 else 0.0

    @cached_property
    def ledger(self) -> Ledger | None:
        """The ledger of the latest reading."""
        if self.snapshot.server is None or self.last is None:
            return None
        return make_ledger(self.snapshot.server, self.last, self.snapshot.access)

    @cached_property
    def peak_used(self) -> int:
        """The most slots seen taken by others at any reading: our own session leaves again."""
        server, access = self.snapshot.server, self.snapshot.access
        if server is None:
            return 0
        ledgers = (make_ledger(server, s, access) for s in self.samples)
        return max((ledger.used - ledger.own for ledger in ledgers), default=0)

    @cached_property
    def fill_ratio(self) -> float:
        """Peak of slots others use, over the slots ordinary roles can use."""
        ledger = self.ledger
        return self.peak_used / ledger.ordinary_slots if ledger and ledger.ordinary_slots else 0.0

    @cached_property
    def refusal(self) -> Refusal | None:
        """The refusal that best tells the limit: a server's 53300 first."""
        ranked = sorted(self.snapshot.refusals, key=lambda r: (r.sqlstate != "53300", r.kind == "other"))
        return ranked[0] if ranked else None

    @cached_property
    def full(self) -> bool:
        """Whether ordinary clients are refused for lack of slots, by arithmetic or by a refusal seen."""
        kinds = {"slots-full", "reserved-for-superuser", "reserved-for-role"}
        if any(r.kind in kinds for r in self.snapshot.refusals):
            return True
        ledger = self.ledger
        return ledger is not None and self.peak_used >= ledger.ordinary_slots

    @cached_property
    def scarce(self) -> bool:
        """Full, or above four fifths of the slots that ordinary roles can use."""
        return self.full or self.fill_ratio >= 0.8

    @cached_property
    def _client_processes(self) -> dict[tuple[str, int], str]:
        host = self.snapshot.host
        if host is None:
            return {}
        return {(c.address, c.port): f"{c.address} {c.command}[{c.pid}]" for c in host.clients}

    def client_of(self, session: Session) -> str:
        """The client's process on this machine when known, else its address, else ``local``."""
        if session.client_addr is None:
            return "local" if not session.hidden else ""
        known = self._client_processes.get((session.client_addr, session.client_port or 0))
        return known or session.client_addr

    @cached_property
    def all_tracks(self) -> tuple[Track, ...]:
        """Every client backend seen in the window, dead ones and our own included."""
        history: dict[SessionKey, list[tuple[float, Session]]] = {}
        for sample in self.samples:
            for s in sample.sessions:
                if holds_slot(s) and not s.hidden:
                    history.setdefault((s.pid, s.backend_start_at or 0.0), []).append((sample.taken_at, s))
        return tuple(self._track(rows) for rows in history.values())

    def _track(self, rows: list[tuple[float, Session]]) -> Track:
        sessions = [s for _, s in rows]
        last = sessions[-1]
        return Track(
            session=last,
            now_at=self.now_at,
            first_seen_at=rows[0][0],
            last_seen_at=rows[-1][0],
            samples=len(rows),
            active_samples=sum(1 for s in sessions if s.state == "active"),
            waiting_samples=sum(1 for s in sessions if s.wait_event_type == "Lock" and s.state == "active"),
            alive=rows[-1][0] == self.now_at,
            born_in_window=rows[0][0] > self.samples[0].taken_at,
            changed=any(
                a.state_change_at != b.state_change_at or a.query_start_at != b.query_start_at
                for a, b in pairwise(sessions)
            ),
            client=self.client_of(last),
        )

    @cached_property
    def tracks(self) -> tuple[Track, ...]:
        """Established sessions that hold a slot now, ours and unfinished log-ins left out."""
        return tuple(t for t in self.all_tracks if t.alive and not t.session.is_own and not is_starting(t.session))

    @cached_property
    def starting(self) -> tuple[Track, ...]:
        """Unfinished log-ins in the latest reading (18; before that see ``Sample.unseen_logins``)."""
        return tuple(t for t in self.all_tracks if t.alive and is_starting(t.session))

    @cached_property
    def owners(self) -> dict[Owner, tuple[Track, ...]]:
        """Sessions by owner, largest first."""
        return group(self.tracks, Owner.of)

    @cached_property
    def births(self) -> int:
        """Sessions that began while we looked (a lower bound: shorter ones than the interval are missed)."""
        return sum(1 for t in self.all_tracks if t.born_in_window and not t.session.is_own)

    @cached_property
    def deaths(self) -> int:
        """Sessions that ended while we looked (a lower bound)."""
        return sum(1 for t in self.all_tracks if not t.alive and not t.session.is_own)

    def rate(self, read: Callable[[DatabaseCounters], float | int | None]) -> float | None:
        """Growth per second of a counter summed over databases; None without two readings or the counter.

        A counter that went backwards was reset: then None, never a negative rate.
        """
        if self.window_s <= 0:
            return None
        first = [read(c) for c in self.samples[0].counters]
        last = [read(c) for c in self.samples[-1].counters]
        if not first or None in first or None in last:
            return None
        delta = sum(v for v in last if v is not None) - sum(v for v in first if v is not None)
        return delta / self.window_s if delta >= 0 else None

    @cached_property
    def transactions_per_s(self) -> float | None:
        """Committed and rolled back transactions per second, ours included."""
        return self.rate(lambda c: c.transactions)

    @cached_property
    def sessions_per_s(self) -> float | None:
        """Sessions established per second (14+)."""
        return self.rate(lambda c: c.sessions)
