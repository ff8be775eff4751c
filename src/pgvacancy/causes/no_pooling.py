"""Sessions live for one request: connect, query, leave, many times a second.

What it is
----------
The application opens a connection for every request (or every query), uses it once and closes it. CGI and PHP
scripts, ORMs with the pool switched off (`CONN_MAX_AGE = 0` under load, `NullPool`), a `connect()` inside the
request handler, shell loops around `psql -c`.

Why it takes slots
------------------
Each session holds a slot for as long as it takes to log in, to work and to leave. The number of slots in use is
the arrival rate times that time (Little's law): 200 requests a second that take 0.5 s, log-in included, need
100 slots, and a server that gets slower needs more slots for the same rate. A log-in costs a process, an
authentication and cold caches: often more than the query it is for.

How we know
-----------
`pg_stat_database.sessions` (PostgreSQL 14+) grows by more than `min_sessions_per_s`; the sessions seen at one
reading are gone a reading or two later; each runs a handful of transactions. Before 14 the sessions that come
and go between two readings are counted: those that live for less than the interval are missed, so the number is
a lower bound. Watch it yourself: `SELECT sum(sessions) FROM pg_stat_database;` twice, ten seconds apart.

What to do, least disruptive first
----------------------------------
1. Protect the other applications: `ALTER ROLE ... CONNECTION LIMIT n` on this role.
2. Put PgBouncer in front, `pool_mode = transaction`: only the DSN changes, and log-ins become cheap. Look
   first whether the application relies on session state: `SET`, `LISTEN`, temporary tables, session advisory locks.
3. Give each process one pool, opened at start-up and sized small (a few sessions per core of the *server*), and
   borrow from it.

Raising `max_connections` does not help: more processes at work at once make each of them slower, and the slots
fill again.

Often mistaken for
------------------
A retry storm (those who come are refused, not served) · serverless fan-out (many client processes, each idle
for most of its session's life) · health checks and cron (one name, a low rate) · PgBouncer with a very short
`server_lifetime` (the client address is the pooler's).

Sources
-------
https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-DATABASE-VIEW
https://www.postgresql.org/docs/current/tutorial-arch.html
https://www.pgbouncer.org/features.html
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgvacancy.causes._arrivals import Turnover, mean_share, refused_per_s, turnovers
from pgvacancy.causes._common import pooler_ini, severity_of, sql_in
from pgvacancy.causes._examples import NOW_AT, WINDOW_S, Pair, pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.ledger import Ledger
from pgvacancy.model.series import Case, culprits, keys
from pgvacancy.model.snapshot import Sample, Snapshot

CODE = "PGC102"
ORDER = 120
NEEDS = ({"sql", "time", "all-sessions"},)


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of no-pooling."""

    min_sessions_per_s: float = setting(5, "a pool opens a session now and then; five log-ins a second are a habit")
    max_life_s: float = setting(5, "a session that lasts longer than a request is kept by something")
    min_share_ratio: float = setting(0.3, "below a third of the used slots others are what filled the server")
    min_ended_count: float = setting(5, "fewer ended sessions than these say nothing about a habit")
    refused_ratio: float = setting(10, "refused ten times as often as served, retrying is the greater trouble")


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find owners whose sessions last for one request, when they hold a good part of the slots."""
    ledger = case.ledger
    if ledger is None or case.window_s <= 0:
        return None
    refused = refused_per_s(case)
    churners = [
        t
        for t in turnovers(case, settings.max_life_s)
        if t.ended >= settings.min_ended_count and t.born >= 0.5 * t.ended
    ]
    if not churners:
        return None
    counted = case.sessions_per_s
    seen = sum(t.born for t in churners) / case.window_s
    rate = max(seen, counted or 0.0)
    tracks = tuple(track for t in churners for track in t.tracks)
    share = mean_share(case, tracks)
    if rate < settings.min_sessions_per_s or share < settings.min_share_ratio:
        return None
    if not (case.scarce or _wanted(case, settings, rate=rate, refused=refused or 0.0)):
        return None
    confidence = (0.9 if counted is not None else 0.75) * (1.0 if share >= 0.5 else 0.85)
    if refused is not None and refused > settings.refused_ratio * rate:
        confidence = min(confidence, 0.6)
    return _finding(case, ledger, churners, confidence, rate=rate, share=share, refused=refused)


def _wanted(case: Case, settings: Settings, *, rate: float, refused: float) -> bool:
    """Whether slots are short between the readings: the number in use swings, and a reading sees one instant of it."""
    host, ledger = case.snapshot.host, case.ledger
    if ledger is None:
        return False
    queued = host.listen_queue if host is not None else 0
    if case.peak_used + queued >= 0.8 * ledger.ordinary_slots:
        return True  # those in the accept queue want a slot as soon as the server finds the time to start a process
    return case.fill_ratio >= 0.5 and (refused > 0 or rate >= 4 * settings.min_sessions_per_s)


def _finding(  # noqa: PLR0913 - the figures of one finding
    case: Case,
    ledger: Ledger,
    churners: list[Turnover],
    confidence: float,
    *,
    rate: float,
    share: float,
    refused: float | None,
) -> Finding:
    tracks = tuple(track for t in churners for track in t.tracks)
    alive = [t for t in tracks if t.alive]
    ended = sum(t.ended for t in churners)
    life = sum(t.life_s * t.ended for t in churners) / ended
    kept = len(case.tracks) - len(alive)
    counted = case.sessions_per_s is not None
    roles = [churners[0].owner.user]
    cap = max(2, ledger.ordinary_slots // 2)
    per_session = (case.transactions_per_s or 0.0) / rate
    return Finding(
        code=CODE,
        cause="no-pooling",
        # The readings may miss the instants at which it is full; the log does not.
        severity="critical" if refused else severity_of(case, share),
        confidence=round(confidence, 2),
        summary=f"{rate:.0f} sessions a second are opened, used once and closed; each lives for about {life:.1f} s",
        claims=keys(alive),
        weight=min(1.0, share * 1.1),
        evidence=(
            Fact(
                fact="sessions established per second",
                value=round(rate, 1),
                source="pg_stat_database" if counted else "pg_stat_activity",
            ),
            Fact(fact="sessions that ended while we looked, at least", value=ended),
            Fact(fact="seconds such a session was seen to live, mean, at least", value=round(life, 2)),
            Fact(fact="share of the used slots they held, mean over the readings", value=round(share, 2)),
            Fact(
                fact="transactions per session, all databases", value=round(per_session, 1), source="pg_stat_database"
            ),
        ),
        counter_evidence=(
            Fact(fact="sessions that were kept", value=kept),
            Fact(
                fact="refusals per second, which a retry storm would have many more of",
                value=round(refused, 1) if refused is not None else "not known",
                source="log",
            ),
        ),
        culprits=culprits(alive or tracks),
        remedies=(
            Advice(
                slug="limit-role-connections",
                difficulty="easy",
                disruption="none",
                command=f"ALTER ROLE {sql_in(roles)} CONNECTION LIMIT {cap};",
                why="leaves room for the other applications; this one is then refused sooner",
            ),
            Advice(
                slug="deploy-pooler",
                difficulty="medium",
                disruption="none",
                command=pooler_ini(case, churners[0].owner.database),
                why="keeps a few sessions open and makes log-ins cheap; only the DSN changes",
            ),
            Advice(
                slug="fix-application-code",
                difficulty="medium",
                disruption="none",
                why="one small pool per process, opened at start-up, instead of connect() per request",
            ),
        ),
    )


def _passing(count: int, *, rate: float, user: str = "web", readings: int = 12) -> Snapshot:
    """An example: ``count`` sessions at each reading, none of them there at the next."""
    base = snapshot(server(20), transactions_per_s=rate * 2, sessions_per_s=rate)
    step = WINDOW_S / readings
    samples: list[Sample] = []
    for n in range(readings + 1):
        at = NOW_AT - WINDOW_S + n * step
        pairs: list[Pair] = pool("php", count, user=user, state="active")
        rows = tuple(
            replace(s, backend_start_at=at - 0.05, state_change_at=at - 0.03, query_start_at=at - 0.03)
            for _, s in pairs
        )
        counters = base.samples[0].counters if n < readings else base.samples[-1].counters
        samples.append(Sample(taken_at=at, sessions=rows, counters=counters))
    return replace(base, samples=tuple(samples))


EXAMPLES = (
    Example(
        "a pool that fills the server and keeps its sessions",
        "quiet",
        lambda: snapshot(server(20), pool("web", 16, idle_s=(0, 1), age_s=900, used=True), transactions_per_s=400),
    ),
    Example(
        "a pool that has just been opened: many births, no deaths",
        "quiet",
        lambda: snapshot(server(20), pool("web", 17, idle_s=(0, 1), age_s=(1, 2.5)), sessions_per_s=6),
    ),
    Example("a few quick sessions on a server with room", "quiet", lambda: _passing(3, rate=20)),
    Example("a connection per request, 120 a second", "fires", lambda: _passing(17, rate=120)),
    Example(
        "the same load through a small pool",
        "cleared",
        lambda: snapshot(server(20), pool("web", 5, idle_s=(0, 0.1), age_s=60, used=True), transactions_per_s=120),
    ),
)
