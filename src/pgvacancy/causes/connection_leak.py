r"""An application opens sessions and never gives them back; they pile up, unused.

What it is
----------
Some path through the code opens a session and returns without closing it: an early `return`, an exception, a
`with` block that ends the transaction but not the connection (psycopg2), a cursor or result that nobody reads
to its end. Every pass through that path costs one slot for good.

Why it takes slots
------------------
The process still holds the socket, so the server has no reason to end the session. Nothing gives the slot back
until the process ends, and the number only grows: a higher `max_connections` buys time and nothing else.

How we know
-----------
Look at the sessions of one client that are idle and were used only right after they were opened. In a leak
their births lie on a *ramp*: one by one, at the pace at which the faulty path is taken, without ends. We
measure how even the gaps are, the pause between one session's last use and the next one's birth, and how many
were born and ended while we looked. New ones during the window, none ended and none used again make it nearly
certain; the growth per minute then tells when the server is full. A healthy pool under the same name does not
hide it: used and unused sessions of one client are judged apart.

What to do, least disruptive first
----------------------------------
1. Fence it in, so that others keep their slots: `ALTER ROLE app CONNECTION LIMIT n` (new sessions only;
   superusers are exempt).
2. Let the server close what nobody uses: `ALTER ROLE app SET idle_session_timeout = '10min'` (PostgreSQL 14+,
   new sessions only; not on a role that a pool uses, unless it is above the pool's own idle limit).
3. First aid: end the unused sessions. The evidence says how long that lasts at the present pace.
4. The cure is in the code: close on every path (`with closing(...)`, `try`/`finally`, one pool per process).
   Look at every place that opens one: `grep -rnE "connect\(|getconn\(|acquire\(|raw_connection\(" .`, and follow
   each path out of it to a `close()` (or `putconn()`, `release()`).

Often mistaken for
------------------
A pool that warms up (stops at its size, is used again) · abandoned pools (steps of equal size, not a ramp) ·
oversized pools (the same number in every client, no growth) · forgotten sessions of people (several owners, a
burst) · sessions left idle inside a transaction (the open transaction is the more urgent name).

Sources
-------
https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW
https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-IDLE-SESSION-TIMEOUT
https://www.psycopg.org/docs/usage.html#with-statement
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pgvacancy.causes._common import severity_of, sql_in
from pgvacancy.causes._examples import NOW_AT, Pair, pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.causes._structure import (
    PEOPLE,
    Life,
    births,
    born_at,
    described,
    families,
    family_of,
    is_paced,
    is_ramp,
    members,
    patience_s,
    spread_count,
    tracks_of,
    without_bursts,
)
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.fingerprint import fingerprint
from pgvacancy.model.ledger import is_starting
from pgvacancy.model.series import Case, culprits, keys

CODE = "PGC101"
ORDER = 80
NEEDS = ({"sql", "states"},)
FIND_OPENINGS = r'grep -rnE "connect\(|getconn\(|acquire\(|raw_connection\(" .'
"""The places in the source that open a session or take one from a pool."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of connection-leak."""

    min_idle_s: float = setting(
        30, "a session given back to its pool is wanted again within half a minute on a full server"
    )
    min_sessions_count: float = setting(4, "three births cannot show whether they lie on a ramp")
    min_share_ratio: float = setting(0.1, "below a tenth of the ordinary slots it is not yet what fills the server")
    early_share_ratio: float = setting(0.2, "with slots still free, a fifth of them must be lost before we speak up")


@dataclass(frozen=True, slots=True)
class _Ramp:
    """The leaked sessions of one client, by birth."""

    lives: tuple[Life, ...]
    born: int
    lost: int
    growing: bool
    since_last_s: float
    gap_s: float
    spread: float

    @property
    def lasting_gap_s(self) -> float:
        """The mean gap, never 0."""
        return max(self.gap_s, 0.001)


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find the client whose unused sessions pile up one by one."""
    ledger = case.ledger
    if ledger is None:
        return None
    ramps = [
        ramp
        for family in families(case).values()
        for member in members(family)
        if (ramp := _ramp(case, member, settings)) is not None
    ]
    if not ramps:
        return None
    largest = family_of(max(ramps, key=lambda r: len(r.lives)).lives[0].track)
    ramps = [r for r in ramps if family_of(r.lives[0].track) == largest]
    leaked = tuple(m for r in ramps for m in r.lives)
    share = len(leaked) / max(1, ledger.ordinary_slots)
    growing = any(r.growing for r in ramps)
    enough = settings.min_share_ratio if case.scarce else settings.early_share_ratio
    if (
        len(leaked) < settings.min_sessions_count
        or share < enough
        or not (case.scarce or (growing and case.fill_ratio >= 0.4))
    ):
        return None
    return _finding(case, ramps, leaked, growing=growing, share=share)


def _ramp(case: Case, member: Sequence[Life], settings: Settings) -> _Ramp | None:
    least_idle_s = max(settings.min_idle_s, usual_s := patience_s(case, member))
    once = [m for m in member if m.used_once]
    seeds = [m for m in once if m.track.state_age_s >= least_idle_s]
    if usual_s and seeds:
        # Beside members that are used now and then, the young ones count only where they carry the ramp on.
        last_at = max(births(seeds))
        once = [m for m in once if m in seeds or born_at(m) > last_at]
    leaked = without_bursts(once)
    leaked = leaked if is_ramp(leaked) else once
    people = sum(1 for m in leaked if PEOPLE.search(m.track.session.application_name))
    if min(len(seeds), len(leaked)) < 3 or people > len(leaked) / 2 or not is_ramp(leaked):
        return None
    born = [m for m in leaked if m.track.born_in_window]
    client, family = leaked[0].track.client, family_of(leaked[0].track)
    lost = sum(
        1
        for t in case.all_tracks
        if not (t.alive or t.used_late or is_starting(t.session)) and t.client == client and family_of(t) == family
    )
    instants = births(leaked)
    gap_s = (instants[-1] - instants[0]) / (len(instants) - 1)
    since_last_s = case.now_at - instants[-1]
    # A slow leak has one birth at most while we look: then it must come when the ramp lets expect it.
    due = bool(born) and gap_s >= case.window_s / 3
    growing = (due or len({m.track.first_seen_at for m in born}) >= 2) and lost <= len(born) / 4
    if not growing and not (is_paced(leaked) and lost == 0 and (case.full or since_last_s <= 3 * gap_s)):
        return None
    return _Ramp(tuple(leaked), len(born), lost, growing, since_last_s, gap_s, spread_count(leaked))


def _finding(case: Case, ramps: Sequence[_Ramp], leaked: tuple[Life, ...], *, growing: bool, share: float) -> Finding:
    tracks = tracks_of(leaked)
    family = family_of(tracks[0])
    per_minute = sum(60 / r.lasting_gap_s for r in ramps)
    free = case.ledger.free_ordinary if case.ledger else 0
    statements = Counter(fingerprint(t.session.query, t.session.query_id) for t in tracks)
    statement, same = statements.most_common(1)[0]
    born, lost = sum(r.born for r in ramps), sum(r.lost for r in ramps)
    names = {t.session.application_name for t in tracks}
    reused = sum(1 for t in case.tracks if t.used_in_window and family_of(t) == family)
    sure = 0.93 if growing and not lost else 0.85 if growing else 0.78 if case.window_s > 0 else 0.6
    # A long ramp of one statement up to the limit needs no growth to be seen: the limit stopped it.
    sure += 0.04 * (not growing and case.full and len(tracks) >= 8 and same >= 0.9 * len(tracks))
    sure -= 0.08 * (same < 0.7 * len(tracks)) + 0.12 * (not case.scarce)
    left_s = free / per_minute * 60
    ends = "now" if case.full or not free else f"in {left_s:.0f} s"
    role = sql_in([family[0]])
    return Finding(
        code=CODE,
        cause="connection-leak",
        severity=severity_of(case, share),
        confidence=round(sure, 2),
        summary=(
            f"{len(tracks)} sessions of {described(family)} were opened one by one, used once and kept; "
            f"{per_minute:.0f} more a minute, the server is full {ends}"
        ),
        claims=keys(tracks),
        evidence=(
            Fact(fact="sessions idle, used only right after they were opened", value=len(tracks)),
            Fact(fact="growth in sessions per minute while it grew", value=round(per_minute, 1)),
            Fact(
                fact="seconds until ordinary slots run out at that pace", value=round(0.0 if case.full else left_s, 1)
            ),
            Fact(fact="of these opened while we looked", value=born),
            Fact(fact="seconds since the last one was opened", value=round(min(r.since_last_s for r in ramps), 1)),
            Fact(
                fact="evenness of their births: equal gaps they are worth, of as many gaps as there are",
                value=f"{sum(r.spread for r in ramps):.1f} of {sum(len(r.lives) - 1 for r in ramps)}",
            ),
            Fact(fact="share with the same last statement", value=f"{100 * same / len(tracks):.0f} %"),
            Fact(fact="that statement, literals removed", value=statement[:120]),
        ),
        counter_evidence=(
            Fact(fact="sessions of this client opened and closed again while we looked", value=lost),
            Fact(fact="sessions under the same name that were used while we looked", value=reused),
        ),
        culprits=culprits(tracks),
        remedies=(
            Advice(
                slug="limit-role-connections",
                difficulty="easy",
                disruption="none",
                command=f"ALTER ROLE {role} CONNECTION LIMIT {max(1, reused + len(tracks) // 2)};",
                why="keeps slots for everybody else; it refuses this role's new sessions at once",
            ),
            Advice(
                slug="set-idle-session-timeout",
                difficulty="easy",
                disruption="none",
                command=f"ALTER ROLE {role} SET idle_session_timeout = '10min';",
                why="reaches new sessions only (PostgreSQL 14+)",
            ),
            Advice(
                slug="end-idle-sessions",
                difficulty="easy",
                disruption="ends-sessions",
                frees=len(tracks),
                command=(
                    "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                    f" AND state = 'idle' AND pid IN ({', '.join(str(t.session.pid) for t in tracks[:60])});"
                ),
                why=f"first aid: full again after about {len(tracks) * 60 / per_minute:.0f} s at that pace",
            ),
            Advice(
                slug="fix-application-code",
                difficulty="medium",
                disruption="none",
                command=FIND_OPENINGS,
                why=f"the cure: close on every path in {', '.join(sorted(n for n in names if n)[:3]) or 'the program'}",
            ),
        ),
        weight=1.0 if growing else 0.9 if _took_the_last(case, leaked) else None,
    )


def _took_the_last(case: Case, leaked: Sequence[Life]) -> bool:
    """Whether the leak is what filled the server: most of the youngest sessions are its own."""
    mine = {m.track.key for m in leaked}
    youngest = sorted(case.tracks, key=lambda t: t.age_s)[: max(3, len(mine) // 2)]
    return case.full and sum(1 for t in youngest if t.key in mine) > 0.6 * len(youngest)


def _leak(count: int, *, age_s: tuple[float, float], name: str = "web") -> list[Pair]:
    """A ramp whose sessions ran one statement 20 ms after their birth."""
    pairs = pool(name, count, idle_s=age_s, query="SELECT * FROM orders WHERE id = $1")
    return [
        (
            replace(a, backend_start_at=(a.state_change_at or NOW_AT) - 0.02),
            replace(b, backend_start_at=(b.state_change_at or NOW_AT) - 0.02),
        )
        for a, b in pairs
    ]


EXAMPLES = (
    Example("a small pool at work", "quiet", lambda: snapshot(server(100), pool("web", 10, age_s=900, used=True))),
    Example(
        "a pool that was filled gradually and is used again and again",
        "quiet",
        lambda: snapshot(server(100), pool("web", 96, idle_s=(0, 2), age_s=(60, 900), used=True)),
    ),
    Example(
        "a pool filled in one go that rests",
        "quiet",
        lambda: snapshot(server(100), pool("web", 96, idle_s=(600.0, 600.5))),
    ),
    Example(
        "a quarter of the slots leaked under heavy traffic of the same name",
        "fires",
        lambda: snapshot(
            server(100), _leak(25, age_s=(0.5, 300)), pool("web", 72, idle_s=(0, 1), age_s=3600, used=True)
        ),
    ),
    Example(
        "after the code was mended and the sessions ended",
        "cleared",
        lambda: snapshot(server(100), pool("web", 72, idle_s=(0, 1), age_s=3600, used=True)),
    ),
)
