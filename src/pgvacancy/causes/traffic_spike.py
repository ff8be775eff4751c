"""Many active sessions, throughput up with them, nothing blocked.

What it is
----------
More work arrives than usual: a campaign, a crawler, a batch job that was given a thread per item, a cache that was
emptied. The applications answer by opening every session their pools allow, and the server does the work: it is
simply too much at once.

Why it takes slots
------------------
Every request in flight holds a session. Past two to four active sessions per core the server finishes no more of
them a second, it only works on more of them at the same time; each takes longer, and more slots are held.

How we know
-----------
Almost every session is used again and again while we looked. The state at one instant is a poor witness: a backend
that answers in a fraction of a millisecond is nearly always found `idle` although its client never rests. So
what counts is the share of the readings in which a session was active, how often each is used a second (transactions
of `pg_stat_database`, which trivial statements report late; on the server's machine also how often the process was
woken), and the shape of the demand: one client that holds nearly all of it, or a young burst that joined an older
and smaller base of the same owner, need less proof than several steady services side by side. Nothing may be stuck
behind a lock, and statements must end: many active sessions whose statements last are slow queries.

What to do, least disruptive first
----------------------------------
1. Shed or slow the load where it enters: rate limits, a cache, the crawler's address.
2. Cap the role that surges so that the others live: `ALTER ROLE ... CONNECTION LIMIT n` (new sessions only).
3. Queue instead of refusing: PgBouncer in transaction mode, or a smaller pool with a wait limit in the application. Ten
   sessions carry the same traffic as ninety on a small machine, and sooner.
4. Raise `max_connections` only with processors *and* memory to spare.

Often mistaken for
------------------
A limit that is too small (several services of constant size, in steady use, and no hurry) · slow queries (active too,
but few transactions end) · a lock pile-up (active, waiting for a Lock) · no pooling (sessions come and go) · a retry
storm (refusals, hardly any work done).

Sources
-------
https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-DATABASE-VIEW
https://www.postgresql.org/docs/current/sql-alterrole.html
https://wiki.postgresql.org/wiki/Number_Of_Database_Connections
https://www.pgbouncer.org/features.html
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pgvacancy.causes._common import severity_of, sql_in
from pgvacancy.causes._demand import Demand, demand, stuck
from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.series import Case, culprits, keys

CODE = "PGC103"
ORDER = 120
NEEDS = ({"sql", "states", "time", "all-sessions"},)

SLOW_S = 1.0
"""A statement that runs this long is no short work, however many there are."""
HURRY = 0.6
"""Sessions that compete for a processor do less than they want to: part of the rate is proof enough."""
LARGE_CLIENT = 0.6
"""A single client with this share of the demand is no community of services."""


MANY_OWNERS = 3
"""So many applications do not grow at the same moment by chance: without newcomers it is their usual demand."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of traffic-spike."""

    min_share_ratio: float = setting(0.5, "a spike fills the server; below half of the slots something else did")
    min_busy_ratio: float = setting(0.35, "sessions of a pool at ease are active for a few percent of the time")
    min_uses_per_s: float = setting(15, "of each session, above what steady services with pauses reach")


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """How far the demand is above the threshold that fits its shape."""

    times: float
    shape: str


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find sessions that work without rest, unblocked."""
    ledger = case.ledger
    if ledger is None or not case.scarce or case.window_s <= 0:
        return None
    load = demand(case)
    share = len(load.tracks) / max(1, ledger.ordinary_slots)
    blocked = stuck(case)
    running = [t for t in load.tracks if t.running_s >= SLOW_S and not t.waits_for_lock]
    if share < settings.min_share_ratio or 10 * len(blocked) > len(load.tracks) or 4 * len(running) > len(load.tracks):
        return None
    intensity = measure(load, settings)
    # Below the limit a busy pool of steady size is health: only one that has just grown is on its way there.
    if intensity.times < 1 or not (case.full or load.burst or load.surge):
        return None
    unused = sum(1 for t in case.tracks if not t.used_in_window)
    owners = Counter((t.session.user or "", t.client) for t in load.tracks).most_common(1)[0][0]
    return Finding(
        code=CODE,
        cause="traffic-spike",
        severity=severity_of(case, share),
        confidence=_confidence(load, intensity, unused / max(1, len(case.tracks))),
        summary=(
            f"{len(load.tracks)} sessions hardly rest (each used {load.rate_per_session_s:.0f} times a second), "
            f"nothing blocks them: {intensity.shape}"
        ),
        claims=keys(load.tracks),
        evidence=_evidence(case, load, intensity),
        counter_evidence=(
            Fact(fact="sessions not used while we looked", value=unused),
            Fact(fact="sessions stuck behind a lock", value=len(blocked)),
            Fact(fact="statements running for a second or longer", value=len(running)),
            Fact(fact="share of active readings that waited shortly for a lock", value=round(load.waiting_ratio, 2)),
        ),
        culprits=culprits(load.tracks),
        remedies=_advice(case, owners[0]),
    )


def measure(load: Demand, settings: Settings) -> Intensity:
    """Compare the demand with the threshold that its shape asks for.

    Several applications in steady use are the normal state of a shared server: only sheer intensity makes a spike
    of them. A burst upon an older base, or one client that alone outgrew the server, is suspicious by itself.
    """
    if load.burst:
        busy_ease, rate_ease, shape = 0.7, 0.2, f"{len(load.burst)} of them joined an older base at once"
    elif load.largest_ratio > LARGE_CLIENT and load.told_apart:
        busy_ease, rate_ease, shape = 0.85, 0.55, "nearly all of one client"
    elif load.owners == 1:
        busy_ease, rate_ease, shape = 1.0, 1.0, f"one application, {len(load.groups)} clients told apart"
    elif load.owners >= MANY_OWNERS and not load.surge:
        return Intensity(times=0.0, shape=f"{load.owners} owners in steady use")
    else:
        busy_ease, rate_ease, shape = 2.1, 2.0, f"{load.owners} owners at once"
    rate_ease *= HURRY if load.hurried else 1.0
    busy = load.busy_ratio / (settings.min_busy_ratio * busy_ease)
    rate = load.rate_per_session_s / (settings.min_uses_per_s * rate_ease)
    return Intensity(times=max(busy, rate), shape=shape)


def _confidence(load: Demand, intensity: Intensity, unused_ratio: float) -> float:
    if unused_ratio > 0.15 or load.waiting_ratio > 0.5:
        return 0.55
    if intensity.times >= 2 or load.burst:
        return 0.88
    return 0.75


def _evidence(case: Case, load: Demand, intensity: Intensity) -> tuple[Fact, ...]:
    host = case.snapshot.host
    facts = [
        Fact(fact="sessions that began a statement again and again", value=len(load.tracks)),
        Fact(fact="share of readings in which they were active", value=round(load.busy_ratio, 2)),
        Fact(
            fact="transactions a second, all databases",
            value=round(case.transactions_per_s or 0.0),
            source="pg_stat_database",
        ),
        Fact(
            fact="transactions a second for each used session",
            value=round(load.transactions_per_session_s, 1),
            source="pg_stat_database",
        ),
        Fact(
            fact="times a second each of them was woken, median over their lives",
            value=round(load.wakeups_per_session_s, 1),
            source="/proc",
        ),
        Fact(fact=f"shape of the demand: {intensity.shape}"),
    ]
    if load.burst:
        facts.append(Fact(fact="seconds since the burst began", value=round(max(t.age_s for t in load.burst), 1)))
    if host is not None and host.cores:
        facts.append(
            Fact(fact="sessions at work for each core", value=round(len(load.tracks) / host.cores, 1), source="/proc")
        )
    return tuple(facts)


def _advice(case: Case, role: str) -> tuple[Advice, ...]:
    cores = case.snapshot.host.cores if case.snapshot.host is not None else 0
    few = max(4, 4 * cores) if cores else 20
    return (
        Advice(
            slug="limit-role-connections",
            difficulty="easy",
            disruption="none",
            command=f"ALTER ROLE {sql_in([role])} CONNECTION LIMIT {few};",
            why="protects everybody else: sessions beyond it are refused to this role only (new sessions)",
        ),
        Advice(
            slug="resize-pool",
            difficulty="medium",
            disruption="none",
            why=f"about {few} sessions carry this traffic on this machine; let requests wait in the application",
        ),
        Advice(
            slug="deploy-pooler", difficulty="medium", disruption="none", why="requests queue instead of being refused"
        ),
        Advice(
            slug="raise-max-connections",
            difficulty="medium",
            disruption="restart",
            why="last: only with processors and memory to spare",
        ),
    )


EXAMPLES = (
    Example(
        "a large pool at ease, used about once a second",
        "quiet",
        lambda: snapshot(server(100), pool("web", 97, idle_s=(0, 2), used=True), transactions_per_s=90),
    ),
    Example(
        "four services in steady use",
        "quiet",
        lambda: snapshot(
            server(100),
            *(pool(f"service-{n}", 24, client=f"10.0.0.{n}", idle_s=(0, 1), used=True) for n in range(4)),
            transactions_per_s=700,
        ),
    ),
    Example(
        "active for long: slow statements",
        "quiet",
        lambda: snapshot(server(100), pool("web", 97, state="active", idle_s=(20, 60), age_s=90), transactions_per_s=1),
    ),
    Example(
        "ninety threads of one job, mostly found idle, at 12,000 transactions a second",
        "fires",
        lambda: snapshot(
            server(100),
            pool("web", 6, client="10.0.0.2", idle_s=(0, 1), age_s=5000, used=True),
            pool("job", 92, idle_s=(0, 0.01), age_s=(20, 21), used=True),
            transactions_per_s=12_000,
        ),
    ),
    Example(
        "all active with short statements",
        "fires",
        lambda: snapshot(
            server(100),
            pool("web", 98, state="active", idle_s=(0, 0.2), age_s=(20, 22), used=True),
            transactions_per_s=900,
        ),
    ),
    Example(
        "all active with short statements, below the limit and of steady size",
        "quiet",
        lambda: snapshot(
            server(100),
            pool("web", 90, state="active", idle_s=(0, 0.2), age_s=(20, 22), used=True),
            transactions_per_s=900,
        ),
    ),
    Example(
        "the same traffic through a pool of ten",
        "cleared",
        lambda: snapshot(
            server(100), pool("job", 10, idle_s=(0, 0.01), age_s=20, used=True), transactions_per_s=12_000
        ),
    ),
)
