"""How clients arrive: attempts, refusals, log-ins that finish or do not, and sessions that live for a moment.

Shared by the causes that are about arrival rather than about what sits in the slots.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pgvacancy.model.ledger import is_starting
from pgvacancy.model.series import Case, Owner, Track, group

_STALE_S = 1.0
"""A storm of ten refusals a second has written a line within the last second; one that is over has not."""
_MARGIN_S = 3.0
"""A storm is taken to have begun at least this long before the last reading, besides the window."""
SLOT_KINDS = frozenset({"slots-full", "reserved-for-superuser", "reserved-for-role", "role-limit", "database-limit"})


def refused_per_s(case: Case) -> float | None:
    """Refusals per second lately, by the server's log; 0 when they have ended, None without a log that tells.

    The log counts in windows longer than ours, so what was refused before we looked may be in it. Every refusal
    costs the server a new process, so the machine's count of new processes, which does cover our window alone, is
    taken as an upper end where it is known.
    """
    log = case.snapshot.log
    if log is None or log.last_at is None:
        return None
    last_at = max((r.last_at or 0.0 for r in log.refusals if r.kind in SLOT_KINDS), default=0.0)
    # A log named by the user is read before the window: then only the log-ins we see can say that it goes on.
    seen_live = len(passing_logins(case)) >= 2 and last_at >= case.now_at - case.window_s - _MARGIN_S
    if last_at < case.now_at - _STALE_S and not seen_live:
        return 0.0
    rate = log.recent_refusals / max(1.0, min(log.recent_s, log.span_s))
    reach_s = log.peak_window_s + case.window_s + _MARGIN_S
    if log.peak_at is not None and log.peak_at >= case.now_at - reach_s:
        rate = max(rate, log.peak_refusals / max(1.0, min(log.peak_window_s, case.window_s + _MARGIN_S)))
    spare = spare_forks_per_s(case)
    return rate if spare is None else min(rate, spare)


def spare_forks_per_s(case: Case) -> float | None:
    """New processes per second on the machine that no established session explains; None when not known."""
    host = case.snapshot.host
    if host is None or host.forks_per_s is None:
        return None
    return max(0.0, host.forks_per_s - (case.sessions_per_s or 0.0))


def passing_logins(case: Case) -> frozenset[tuple[int, float]]:
    """Log-ins seen at a single reading, still unfinished then, and gone at the next: refused, failed, or too quick.

    Up to PostgreSQL 17 they have no row and are known by their pid alone.
    """
    found: set[tuple[int, float]] = {
        t.key for t in case.all_tracks if is_starting(t.session) and t.samples == 1 and not t.alive
    }
    times = Counter(pid for s in case.samples for pid in s.unseen_logins)
    last = set(case.samples[-1].unseen_logins) if case.samples else set()
    established = {t.session.pid for t in case.all_tracks}
    found |= {(pid, 0.0) for pid, n in times.items() if n == 1 and pid not in last and pid not in established}
    return frozenset(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turnover:
    """Sessions of one owner that come and go while we look."""

    owner: Owner
    tracks: tuple[Track, ...]
    """All of the owner's sessions seen, the ended ones included."""
    born: int
    ended: int
    life_s: float
    """Mean time the ended ones are known to have lived, a lower bound."""

    @property
    def alive(self) -> tuple[Track, ...]:
        """Those that hold a slot now."""
        return tuple(t for t in self.tracks if t.alive)


def turnovers(case: Case, max_life_s: float) -> list[Turnover]:
    """Owners whose sessions live for at most ``max_life_s`` seconds, most ended first; older sessions left out."""
    result: list[Turnover] = []
    others = (t for t in case.all_tracks if not t.session.is_own and not is_starting(t.session))
    for owner, tracks in group(others, Owner.of).items():
        brief = tuple(t for t in tracks if life_s(t) <= max_life_s)
        ended = [t for t in brief if not t.alive]
        if ended:
            result.append(
                Turnover(
                    owner=owner,
                    tracks=brief,
                    born=sum(1 for t in brief if t.born_in_window),
                    ended=len(ended),
                    life_s=sum(life_s(t) for t in ended) / len(ended),
                )
            )
    return sorted(result, key=lambda t: -t.ended)


def life_s(track: Track) -> float:
    """Seconds from the session's birth to the reading that last showed it."""
    start = track.session.backend_start_at
    return max(0.0, track.last_seen_at - start) if start is not None else 0.0


def mean_share(case: Case, tracks: tuple[Track, ...]) -> float:
    """Share of the used slots these sessions held, averaged over the readings."""
    wanted = {t.key for t in tracks}
    shares: list[float] = []
    for sample in case.samples:
        used = [s for s in sample.sessions if s.backend_type == "client backend" and not s.is_own and not s.hidden]
        held = sum(1 for s in used if (s.pid, s.backend_start_at or 0.0) in wanted)
        shares.append(held / max(1, len(used) + len(sample.unseen_logins)))
    return sum(shares) / max(1, len(shares))
