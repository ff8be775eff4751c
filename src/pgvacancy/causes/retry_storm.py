"""Clients reconnect in a loop faster than they are let in.

What it is
----------
Clients that were refused, or lost their session in a restart or failover, try again at once and without a
pause. All instances of an application do it together, often from the same instant on, and each failed attempt
leads to the next.

Why it takes slots
------------------
Every attempt costs the server a process, even when it is refused; those that get past authentication hold a
slot until the limit is checked. The storm keeps the processor busy, the honest sessions become slower and hold
their slots for longer, and whoever gives a slot back loses it to the crowd in the same millisecond.
Administrators do not get in either.

How we know
-----------
The server's log shows refusals (SQLSTATE 53300) at `min_refused_per_s` or more, while
`pg_stat_database.sessions` grows slowly: attempts far above admissions. On the server's machine the number of
new processes per second and the sockets in TIME_WAIT say the same without a log. A patient client that tries
once or twice a second is no storm. Refusals stand in the log alone: no view counts them. To see the attempts,
too: `ALTER SYSTEM SET log_connections = on;` and reload.

What to do, least disruptive first
----------------------------------
1. Have the clients wait: exponential back-off with jitter, one prober per process instead of the whole pool.
2. Put a queue in front: PgBouncer accepts the clients and lets them wait for a server connection instead of
   refusing.
3. Cap the role of the storming application so that others get in: `ALTER ROLE ... CONNECTION LIMIT n`. Use it
   with care: this refusal comes after authentication and costs more than the one it replaces.
4. Then look for what holds the slots: the storm is seldom what filled them.

Raising `max_connections` feeds the storm. `sslmode=prefer` doubles it: each refused attempt is repeated without
TLS.

Often mistaken for
------------------
No pooling (as many attempts, but they are served) · an authentication flood (the log-ins never finish, the same
processes stay) · health checks · a single pod in a crash loop.

Sources
-------
https://www.postgresql.org/docs/current/runtime-config-logging.html#GUC-LOG-CONNECTIONS
https://www.postgresql.org/docs/current/errcodes-appendix.html
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-SSLMODE
https://www.pgbouncer.org/config.html#query_wait_timeout
"""

from __future__ import annotations

from dataclasses import dataclass

from pgvacancy.causes._arrivals import (
    SLOT_KINDS,
    mean_share,
    passing_logins,
    refused_per_s,
    spare_forks_per_s,
    turnovers,
)
from pgvacancy.causes._common import pooler_ini, sql_in
from pgvacancy.causes._examples import NOW_AT, pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.evidence import HostEvidence, LogEvidence, RefusalCount
from pgvacancy.model.series import Case, keys
from pgvacancy.model.snapshot import Refusal

CODE = "PGC116"
ORDER = 20
NEEDS = ({"sessions", "time", "log"}, {"sessions", "time", "host"})


UNSEEN_CONFIDENCE = 0.45


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of retry-storm."""

    min_refused_per_s: float = setting(10, "a few patient clients make a handful of refusals a second, not ten")
    storm_refused_per_s: float = setting(40, "from here on the attempts themselves are the trouble")
    min_refused_ratio: float = setting(2, "attempts must clearly outnumber admissions")
    min_time_wait_count: float = setting(500, "closed connections remembered for a minute: eight closings a second")
    min_forks_per_s: float = setting(60, "other programs start processes as well; a storm starts many more")
    request_life_s: float = setting(5, "sessions this short are requests that are served, not what is kept out")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Storm:
    """What speaks for a storm."""

    refused: float
    """Refusals per second, as told or as inferred."""
    confidence: float
    source: str


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find attempts that are refused at a rate far above the admissions."""
    storm = _by_log(case, settings) or _by_host(case, settings)
    if storm is None:
        return None
    admitted = case.sessions_per_s if case.sessions_per_s is not None else case.births / max(1.0, case.window_s)
    served = tuple(t for turnover in turnovers(case, settings.request_life_s) for t in turnover.tracks)
    by_requests = mean_share(case, served)
    # Where short requests hold the slots, those refused are their fellows: that is a missing pool, up to a point.
    ratio = settings.min_refused_ratio if by_requests < 0.5 else 5 * settings.min_refused_ratio
    if storm.refused < ratio * admitted:
        return None
    weight = min(1.0, storm.refused / settings.storm_refused_per_s)
    attempts = storm.refused + admitted
    return Finding(
        code=CODE,
        cause="retry-storm",
        severity="critical" if case.full else "warning",
        # Without a session on the server, admissions cannot be told from refusals by anything but the log.
        confidence=storm.confidence if case.samples and case.samples[-1].source == "sql" else UNSEEN_CONFIDENCE,
        summary=f"about {storm.refused:.0f} attempts a second are refused, {admitted:.1f} a second are let in",
        claims=keys(t for t in case.starting if t.samples == 1),
        weight=round(weight, 2),
        evidence=(
            Fact(fact="refused attempts per second", value=round(storm.refused, 1), source=storm.source),
            Fact(fact="sessions established per second", value=round(admitted, 1), source="pg_stat_database"),
            Fact(fact="share of the attempts that are refused", value=round(storm.refused / attempts, 3), source="log"),
            Fact(fact="unfinished log-ins seen at one reading and gone at the next", value=len(passing_logins(case))),
            *_host_facts(case),
            *_refused(case),
        ),
        counter_evidence=(
            Fact(fact="share of the used slots held by short requests that were served", value=round(by_requests, 2)),
            Fact(fact="sessions that hold slots whatever the storm does", value=len(case.tracks)),
        ),
        remedies=_remedies(case),
    )


def _by_log(case: Case, settings: Settings) -> _Storm | None:
    rate, log = refused_per_s(case), case.snapshot.log
    if rate is None or rate < settings.min_refused_per_s:
        return None
    if log is not None and log.authentication_failures > log.recent_refusals:
        return None  # the log-ins fail for another reason: most of them never come as far as the limit
    strong = rate >= settings.storm_refused_per_s
    return _Storm(refused=rate, confidence=0.95 if strong else 0.8, source="log")


def _by_host(case: Case, settings: Settings) -> _Storm | None:
    """Without a log: processes that come and go unexplained, and the connections they leave behind."""
    host, spare = case.snapshot.host, spare_forks_per_s(case)
    if host is None or spare is None or not case.full or _log_tells(case):
        return None
    passing = len(passing_logins(case))
    if spare < settings.min_forks_per_s:
        return None
    if host.time_wait < settings.min_time_wait_count and passing < 3:
        return None
    # TIME_WAIT may be left over from before; unfinished log-ins and very many new processes are of this moment.
    strong = passing >= 3 or (
        host.time_wait >= 2 * settings.min_time_wait_count and spare >= 3 * settings.min_forks_per_s
    )
    # TIME_WAIT lasts a minute, so this is the least rate that explains it, unless the storm is younger than that.
    rate = min(spare, max(host.time_wait / max(1.0, case.window_s + 3), settings.min_refused_per_s))
    return _Storm(refused=rate, confidence=0.9 if strong else 0.6, source="host")


def _log_tells(case: Case) -> bool:
    """Whether refusals reach the log we read: when we were refused ourselves, that must stand in it."""
    log = case.snapshot.log
    if log is None:
        return False
    refused = any(r.kind in SLOT_KINDS for r in case.snapshot.refusals)
    return not refused or any(r.kind in SLOT_KINDS for r in log.refusals)


def _host_facts(case: Case) -> tuple[Fact, ...]:
    host = case.snapshot.host
    if host is None or host.forks_per_s is None:
        return ()
    return (
        Fact(fact="new processes per second on the machine", value=round(host.forks_per_s, 1), source="/proc/stat"),
        Fact(fact="connections of this port in TIME_WAIT", value=host.time_wait, source="/proc/net/tcp"),
    )


def _refused(case: Case) -> tuple[Fact, ...]:
    """Who is refused, by the log. Facts rather than culprits: these hold no slot."""
    return tuple(
        Fact(fact="refused: " + ", ".join(f"{k} {v}" for k, v in who if v), source="log") for who in _refused_most(case)
    )


def _refused_most(case: Case) -> list[tuple[tuple[str, str], ...]]:
    log = case.snapshot.log
    named = [r for r in log.refusals if r.kind in SLOT_KINDS and (r.user or r.client)] if log is not None else []
    ordered = sorted(named, key=lambda r: -r.count)
    found = dict.fromkeys((r.user or "", r.database or "", r.client or "") for r in ordered)
    return [(("role", u), ("database", d), ("from", c)) for u, d, c in list(found)[:4]]


def _remedies(case: Case) -> tuple[Advice, ...]:
    roles = [user for (_, user), *_ in _refused_most(case) if user][:1]
    cap = max(2, case.ledger.ordinary_slots // 2) if case.ledger is not None else 10
    return (
        Advice(
            slug="fix-application-code",
            difficulty="medium",
            disruption="none",
            why="wait between attempts: exponential back-off with jitter, one prober per process",
        ),
        Advice(
            slug="deploy-pooler",
            difficulty="medium",
            disruption="none",
            command=pooler_ini(case),
            why="a queue in front: clients wait instead of being refused and trying again",
        ),
        Advice(
            slug="limit-role-connections",
            difficulty="easy",
            disruption="none",
            command=f"ALTER ROLE {sql_in(roles)} CONNECTION LIMIT {cap};" if roles else "",
            why="leaves room for the others; costs more per refusal, as it comes after authentication",
        ),
        Advice(
            slug="set-authentication-timeout",
            difficulty="easy",
            disruption="reload",
            command="ALTER SYSTEM SET authentication_timeout = '10s'; SELECT pg_reload_conf();",
            why="log-ins given up half-way leave their slot sooner",
        ),
    )


def _log(rate: float, last_s: float = 0.1) -> LogEvidence:
    """An example's log: refusals at this rate over the last ten seconds, the last one ``last_s`` seconds ago."""
    count = int(rate * 10)
    text = "remaining connection slots are reserved for roles with the SUPERUSER attribute"
    kind = "reserved-for-superuser"
    return LogEvidence(
        first_at=NOW_AT - 600,
        last_at=NOW_AT - last_s,
        refusals=(
            RefusalCount(kind=kind, message=text, count=count, last_at=NOW_AT - last_s, user="web", client="10.0.0.7"),
        ),
        recent_refusals=count,
        recent_s=60,
        peak_refusals=count,
        peak_window_s=10,
        peak_at=NOW_AT - last_s,
    )


_REFUSED = Refusal(sqlstate="53300", kind="reserved-for-superuser", message="remaining connection slots are reserved")

EXAMPLES = (
    Example(
        "a full server and one patient client that tries twice a second",
        "quiet",
        lambda: snapshot(
            server(20), pool("web", 17, idle_s=(0, 1), age_s=900, used=True), refusal=_REFUSED, log=_log(2)
        ),
    ),
    Example(
        "two hundred sessions a second that are let in",
        "quiet",
        lambda: snapshot(server(20), pool("php", 16, idle_s=0, age_s=0.1), sessions_per_s=200, log=_log(30)),
    ),
    Example(
        "nine hundred attempts a second against a full server",
        "fires",
        lambda: snapshot(
            server(20), pool("web", 17, idle_s=(0, 1), age_s=900, used=True), refusal=_REFUSED, log=_log(900)
        ),
    ),
    Example(
        "the same without a log, seen on the server's machine",
        "fires",
        lambda: snapshot(
            server(20),
            pool("web", 17, idle_s=(0, 1), age_s=900, used=True),
            refusal=_REFUSED,
            host=HostEvidence(forks_per_s=400.0, time_wait=4000),
        ),
    ),
    Example(
        "the clients have learnt to wait, the log still remembers",
        "cleared",
        lambda: snapshot(server(20), pool("web", 12, idle_s=(0, 1), age_s=900, used=True), log=_log(900, last_s=8)),
    ),
)
