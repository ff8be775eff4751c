"""How hard sessions are used: what several readings tell about turnover, business and shape of a demand.

The state at the instant of one reading is a poor witness: a backend that answers in a tenth of a millisecond is
nearly always found idle although its client never rests. What counts is how often ``query_start`` advances between
readings, and how many transactions the server commits for each session.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import median

from pgvacancy.model.diagnosis import SessionKey
from pgvacancy.model.series import Case, Owner, Track, group, keys

MIN_GAP_S = 1.0
"""Between an older base and a burst of new sessions: process start-up alone spreads births by less."""
LOGIN_WAKEUPS = 8
"""About what a log-in takes; not counted as use."""
BRISK_PER_S = 5.0
"""Transactions a second and session that no pool at ease reaches."""
STUCK_S = 1.0
"""A lock wait of this length in the last reading is no passing contention."""


@dataclass(frozen=True)
class Demand:
    """The sessions of a case that work: used again and again while we looked."""

    case: Case
    tracks: tuple[Track, ...]
    advances: dict[SessionKey, int]

    @cached_property
    def busy_ratio(self) -> float:
        """Share of their readings in which they were active."""
        seen = sum(t.samples for t in self.tracks)
        return sum(t.active_samples for t in self.tracks) / seen if seen else 0.0

    @cached_property
    def waiting_ratio(self) -> float:
        """Share of their active readings that waited for a lock."""
        active = sum(t.active_samples for t in self.tracks)
        return sum(t.waiting_samples for t in self.tracks) / active if active else 0.0

    @cached_property
    def turnover_per_s(self) -> float:
        """Statements a second and session seen to begin: a lower bound, one a reading at most."""
        if not self.tracks or self.case.window_s <= 0:
            return 0.0
        return sum(self.advances[t.key] for t in self.tracks) / len(self.tracks) / self.case.window_s

    @cached_property
    def transactions_per_session_s(self) -> float:
        """Transactions a second for each of these sessions; 0 when the counters do not tell."""
        rate = self.case.transactions_per_s
        users = sum(1 for t in self.case.tracks if t.used_in_window)
        return rate / users if rate is not None and users else 0.0

    @cached_property
    def wakeups_per_session_s(self) -> float:
        """How often the operating system woke such a session, a second of its life; 0 when the host is not seen.

        A backend sleeps until its client sends something, so this is close to the number of statements. It tells
        what the counters keep back: a session that runs trivial statements reports its transactions late.
        """
        host = self.case.snapshot.host
        wakeups = {b.pid: b.wakeups for b in host.backends if b.wakeups} if host is not None else {}
        rates = [
            max(0, wakeups[t.session.pid] - LOGIN_WAKEUPS) / max(t.age_s, 1.0)
            for t in self.tracks
            if t.session.pid in wakeups
        ]
        return median(rates) if rates else 0.0

    @cached_property
    def rate_per_session_s(self) -> float:
        """Uses a second for each session: both witnesses are lower bounds, so the higher one counts."""
        return max(self.transactions_per_session_s, self.wakeups_per_session_s)

    @cached_property
    def hurried(self) -> bool:
        """Whether sessions run many statements and yet are found unchanged oddly often.

        A session that pauses between statements is found changed at every reading, or as often as chance has it;
        sessions that compete for a processor or for their client's attention run in bursts.
        """
        readings_per_s = (len(self.case.samples) - 1) / self.case.window_s if self.case.window_s > 0 else 0.0
        if readings_per_s <= 0:
            return False
        by_chance = readings_per_s * (1 - math.exp(-self.rate_per_session_s / readings_per_s))
        return self.turnover_per_s < 0.7 * by_chance

    @cached_property
    def groups(self) -> tuple[tuple[Track, ...], ...]:
        """Sessions by owner and client, largest group first."""
        return tuple(group(self.tracks, lambda t: (Owner.of(t), t.client)).values())

    @cached_property
    def largest_ratio(self) -> float:
        """Share of the largest single client of one owner."""
        return len(self.groups[0]) / len(self.tracks) if self.tracks else 0.0

    @cached_property
    def told_apart(self) -> bool:
        """Whether clients could be told apart: more than one was, or the only one is a process we know."""
        host = self.case.snapshot.host
        ends = {(c.address, c.port) for c in host.clients} if host is not None else set()
        known = any((t.session.client_addr or "", t.session.client_port or 0) in ends for t in self.tracks)
        return known or len(self.groups) > 1

    @cached_property
    def owners(self) -> int:
        """How many applications, roles and databases they belong to."""
        return len({Owner.of(t) for t in self.tracks})

    @cached_property
    def burst(self) -> tuple[Track, ...]:
        """Sessions that joined an older base of their own owner at once and outnumber it; () when none did."""
        return tuple(t for tracks in group(self.tracks, Owner.of).values() for t in _joined(tracks))

    @cached_property
    def surge(self) -> tuple[Track, ...]:
        """The same over all owners: a newcomer among applications that were there before; () when there is none."""
        return _joined(self.tracks)


def _joined(tracks: Sequence[Track]) -> tuple[Track, ...]:
    ordered = sorted(tracks, key=lambda t: -t.age_s)
    for n, (older, younger) in enumerate(pairwise(ordered), 1):
        young = ordered[n:]
        pause_s = older.age_s - younger.age_s
        spread_s = young[0].age_s - young[-1].age_s
        if pause_s > max(MIN_GAP_S, 2 * spread_s) and len(young) >= max(3, 2 * n):
            return tuple(young)
    return ()


def demand(case: Case, among: Sequence[Track] | None = None) -> Demand:
    """The sessions that turn statements over: begun anew at least twice while we looked.

    Once is enough where the counters prove many transactions for each session: a starved machine shows few changes.
    """
    tracks = case.tracks if among is None else among
    wanted = keys(tracks)
    counts: dict[SessionKey, int] = dict.fromkeys(wanted, 0)
    before: dict[SessionKey, tuple[float | None, float | None]] = {}
    for sample in case.samples:
        for s in sample.sessions:
            key = (s.pid, s.backend_start_at or 0.0)
            if key not in wanted:
                continue
            now = (s.query_start_at, s.state_change_at)
            if key in before and now != before[key]:
                counts[key] += 1
            before[key] = now
    many = (case.transactions_per_s or 0.0) > BRISK_PER_S * sum(1 for t in tracks if t.used_in_window)
    least = 1 if many or len(case.samples) <= 2 else 2
    return Demand(case=case, tracks=tuple(t for t in tracks if counts[t.key] >= least), advances=counts)


def stuck(case: Case) -> tuple[Track, ...]:
    """Sessions that have waited for one lock for a while, not those that pass a hot row in turn."""
    return tuple(t for t in case.tracks if t.waits_for_lock and lock_wait_s(t) >= STUCK_S)


def lock_wait_s(track: Track) -> float:
    """Seconds it has waited for its lock; before 14 the running time of the statement stands in."""
    at = track.session.lock_wait_start_at
    return max(0.0, track.now_at - at) if at is not None else track.running_s
