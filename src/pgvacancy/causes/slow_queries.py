"""Sessions pile up because statements got slow, not because of locks.

What it is
----------
A plan changed after a bad ANALYZE, an index is missing since the table grew, a report meets production, the disk is
full of somebody else's work. The statements run and run, without anybody standing in their way.

Why it takes slots
------------------
Slots in use are requests per second times the seconds each of them takes (Little's law). When a statement takes a
hundred times longer, the same traffic needs a hundred times the slots. Retries of impatient clients add more copies
of the same statement, and every copy makes the others slower.

How we know
-----------
Sessions are active, do not wait for a Lock, and one statement has been running for `min_running_s` or longer:
now() - query_start is the right age *here*, because the state is active. Many of them run the same statement
(query_id, else the text without its literals), and few transactions finish. Parallel workers hold no slot and are not
counted. Sessions that wait in `Client/ClientWrite` are counted apart: the server has the rows, the client does not
read them.

What to do, least disruptive first
----------------------------------
1. Look at the statement that is shown: `EXPLAIN (ANALYZE, BUFFERS)` on a copy, `ANALYZE` of its tables, the missing
   index (`CREATE INDEX CONCURRENTLY`).
2. Cancel the copies that run: `pg_cancel_backend(pid)` ends the statement and keeps the session; the client gets
   SQLSTATE 57014.
3. `ALTER ROLE ... SET statement_timeout = '30s'`, below the client's own time limit, so that nobody waits for an
   answer that has no reader (new sessions only).
4. Let fewer of them run at once: a smaller pool, or PgBouncer in front. Fewer active statements are faster.

Raising `max_connections` makes it worse: more copies share the same disk and processors.

Often mistaken for
------------------
A lock pile-up (active as well, but waiting for a Lock) · a traffic spike (throughput is high, each statement short) ·
one long report, which is one slot · clients that vanished while a result was being sent (dead clients).

Sources
-------
https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW
https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-STATEMENT-TIMEOUT
https://www.postgresql.org/docs/current/using-explain.html
https://www.postgresql.org/docs/current/pgstatstatements.html
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pgvacancy.causes._common import severity_of, sql_in
from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Fact, Finding, SessionKey
from pgvacancy.model.fingerprint import fingerprint, without_literals
from pgvacancy.model.series import Case, Track, culprits, keys

CODE = "PGC107"
ORDER = 120
NEEDS = ({"sql", "states", "all-sessions"},)

CLIENT_WAITS = frozenset({"ClientWrite", "ClientRead"})


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of slow-queries."""

    min_running_s: float = setting(10, "clients of a busy service give up after ten seconds or so")
    min_share_ratio: float = setting(0.2, "one long report is no shortage, a fifth of the slots is")


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find slots held by statements that run for long, unblocked."""
    ledger = case.ledger
    if ledger is None or not case.scarce:
        return None
    longest = longest_statement_s(case)
    active = [t for t in case.tracks if t.session.state == "active" and not t.waits_for_lock]
    slow = [t for t in active if longest.get(t.key, 0.0) >= settings.min_running_s]
    if not slow:
        return None
    top, same = Counter(fingerprint_of(t) for t in slow).most_common(1)[0]
    slow += _companions(active, slow)
    share = len(slow) / max(1, ledger.ordinary_slots)
    if share < settings.min_share_ratio:
        return None
    running_s = max(t.running_s for t in slow)
    on_client = [t for t in slow if t.session.wait_event_type == "Client"]
    waiting = sum(1 for t in case.tracks if t.waits_for_lock)
    query = next(without_literals(t.session.query) for t in slow if fingerprint_of(t) == top)[:160]
    waits = Counter(t.session.wait_event_type or "CPU" for t in slow).most_common(3)
    roles = [r for r, _ in Counter(t.session.user or "" for t in slow).most_common() if r]
    pids = [t.session.pid for t in sorted(slow, key=lambda t: -t.running_s)]
    rate = case.transactions_per_s
    return Finding(
        code=CODE,
        cause="slow-queries",
        severity=severity_of(case, share),
        confidence=_confidence(case, slow, active, on_client),
        summary=f"{len(slow)} sessions run slow statements, the longest for {running_s:.0f} s; no lock holds them up",
        claims=keys(slow),
        evidence=(
            Fact(fact="active sessions without a Lock wait, running min_running_s or longer", value=len(slow)),
            Fact(fact="longest running statement, now() - query_start, in seconds", value=round(running_s, 1)),
            Fact(fact="of them running the same statement", value=same),
            Fact(fact="that statement", value=query),
            Fact(fact="they wait for: " + ", ".join(f"{name} {n}" for name, n in waits)),
            Fact(
                fact="transactions a second for each used slot",
                value=round(rate / max(1, case.peak_used), 2) if rate is not None else None,
                source="pg_stat_database",
            ),
            *_pressure(case),
        ),
        counter_evidence=(
            Fact(fact="sessions that wait for a lock", value=waiting),
            Fact(fact="active sessions with short statements", value=len(active) - len(slow)),
            Fact(fact="waiting for their client to read or send (Client waits)", value=len(on_client)),
        ),
        culprits=culprits(slow),
        remedies=(
            Advice(
                slug="fix-application-code",
                difficulty="medium",
                disruption="none",
                frees=len(slow),
                command=(
                    "SELECT pid, now() - query_start AS running, pg_cancel_backend(pid) FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND state = 'active' "
                    f"AND query_start < now() - interval '{settings.min_running_s:g} s' "
                    f"AND pid IN ({', '.join(map(str, pids[:40]))});"
                ),
                why="cancels what runs now and keeps the sessions; the cure is the plan: ANALYZE, an index",
            ),
            Advice(
                slug="fix-application-code",
                difficulty="easy",
                disruption="none",
                command="\n".join(f"ALTER ROLE {sql_in([r])} SET statement_timeout = '30s';" for r in roles[:3]),
                why="nobody waits longer than the client would; new sessions only",
            ),
            Advice(
                slug="resize-pool",
                difficulty="medium",
                disruption="none",
                why="downwards: fewer statements at once finish sooner",
            ),
            Advice(
                slug="deploy-pooler", difficulty="medium", disruption="none", why="a queue in front instead of copies"
            ),
        ),
    )


def fingerprint_of(track: Track) -> str:
    """What its statement is, literals aside."""
    return fingerprint(track.session.query, track.session.query_id)


def longest_statement_s(case: Case) -> dict[SessionKey, float]:
    """The longest a statement of each session was seen running, at any reading."""
    result: dict[SessionKey, float] = {}
    for sample in case.samples:
        for s in sample.sessions:
            if s.state == "active" and s.query_start_at is not None and s.wait_event_type != "Lock":
                key = (s.pid, s.backend_start_at or 0.0)
                result[key] = max(result.get(key, 0.0), sample.taken_at - s.query_start_at)
    return result


def _companions(active: list[Track], slow: list[Track]) -> list[Track]:
    """Younger runs of statements most of whose runs are slow: they will be as slow."""
    known = keys(slow)
    slow_runs = Counter(fingerprint_of(t) for t in slow)
    all_runs = Counter(fingerprint_of(t) for t in active)
    return [
        t for t in active if t.key not in known and 2 * slow_runs[fingerprint_of(t)] >= all_runs[fingerprint_of(t)] > 1
    ]


def _confidence(case: Case, slow: list[Track], active: list[Track], on_client: list[Track]) -> float:
    if 2 * len(on_client) > len(slow):
        return 0.6
    if 2 * len(slow) < len(active):
        return 0.55
    return 0.88 if case.window_s > 0 else 0.75


def _pressure(case: Case) -> tuple[Fact, ...]:
    host = case.snapshot.host
    if host is None or host.cpu_pressure_ratio is None:
        return ()
    return (
        Fact(
            fact="share of time some task waited for a processor",
            value=host.cpu_pressure_ratio,
            source="/proc/pressure",
        ),
    )


EXAMPLES = (
    Example(
        "one long report alone",
        "quiet",
        lambda: snapshot(
            server(100),
            pool("report", 1, state="active", idle_s=900, age_s=950),
            pool("web", 96, idle_s=(0, 1), used=True),
        ),
    ),
    Example(
        "many active sessions with short statements: a spike",
        "quiet",
        lambda: snapshot(
            server(100), pool("web", 97, state="active", idle_s=(0, 0.05), age_s=60, used=True), transactions_per_s=9000
        ),
    ),
    Example(
        "statements that wait for a lock",
        "quiet",
        lambda: snapshot(
            server(100),
            pool("web", 97, state="active", idle_s=60, age_s=90, wait_event_type="Lock", wait_event="relation"),
        ),
    ),
    Example(
        "eighty copies of one statement whose plan went wrong",
        "fires",
        lambda: snapshot(
            server(100),
            pool(
                "web",
                80,
                state="active",
                idle_s=(15, 300),
                age_s=400,
                query="SELECT * FROM orders WHERE lower(mail) = 'x'",
                wait_event_type="IO",
                wait_event="DataFileRead",
            ),
            pool("batch", 17, idle_s=(0, 1), used=True),
            transactions_per_s=2,
        ),
    ),
    Example(
        "after the index was made",
        "cleared",
        lambda: snapshot(server(100), pool("web", 12, idle_s=(0, 1), used=True), transactions_per_s=400),
    ),
)
