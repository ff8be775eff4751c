"""The watchers hold the slots.

What it is
----------
Exporters, agents and dashboards that watch the database open more sessions than they close: one per database,
one per check, one per scrape that did not come back in time, one per replica of the agent.

Why it takes slots
------------------
A watcher needs one session, two at most. When a scrape hangs behind a lock or a slow statistics query, the next
one comes on schedule and opens another: the watcher amplifies somebody else's trouble until nobody gets in, and
it does so on every database of the server.

How we know
-----------
Sessions whose `application_name` or role is that of a watcher (postgres_exporter, datadog, pgwatch, pganalyze,
PMM, Zabbix, check_*, temboard, New Relic, telegraf, ...), or all of whose statements read the statistics views,
hold more than `max_slots_count` slots and at least `min_share_ratio` of what ordinary roles can use. Sessions
of theirs that wait for a lock are victims, not the cause: they belong to the lock pile-up. Our own session is
left out.

What to do, least disruptive first
----------------------------------
1. Cap the watcher: `ALTER ROLE ... CONNECTION LIMIT 3`. It does not bind superusers: give watchers a role of
   their own in `pg_monitor`.
2. Have it give up instead of piling up: `ALTER ROLE ... SET lock_timeout = '2s'` and
   `SET statement_timeout = '10s'`.
3. Give it an idle limit: `ALTER ROLE ... SET idle_session_timeout = '5min'` (14+, new sessions).
4. End its idle sessions now; it will come back for the one it needs.
5. Watch databases through one session where the tool can; otherwise lengthen the scrape interval.

Often mistaken for
------------------
A lock pile-up in which the watchers wait (the root is somebody else) · one session per database by design (a
hundred databases, a hundred sessions: still this cause) · a connection leak of an application.

Sources
-------
https://www.postgresql.org/docs/current/predefined-roles.html
https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-LOCK-TIMEOUT
https://www.postgresql.org/docs/current/sql-alterrole.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgvacancy.causes._common import is_monitor, severity_of, sql_in
from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.series import Case, Owner, Track, culprits, keys

CODE = "PGC113"
ORDER = 40
NEEDS = ({"sql"},)

_STATISTICS = re.compile(
    r"\bpg_stat|\bpg_locks\b|\bpg_settings\b|\bpg_(?:database|total_relation|relation|table|tablespace)_size\b"
    r"|\bpg_replication_slots\b|\bpg_is_in_recovery\b|\bpg_ls_waldir\b|\bpg_(?:current_wal|last_wal)",
    re.IGNORECASE,
)
"""What watchers read and applications do not."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of monitoring-agents."""

    max_slots_count: float = setting(2, "one session to watch with, one while a scrape overlaps the next")
    min_share_ratio: float = setting(0.2, "below a fifth of the ordinary slots they are not what filled the server")


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find watchers that hold more slots than watching takes."""
    ledger = case.ledger
    if ledger is None or not case.scarce:
        return None
    roots = {pid for t in case.tracks for pid in t.session.blocked_by}
    by_habit = _by_habit(case)
    watchers = [t for t in case.tracks if is_monitor(t) or Owner.of(t) in by_habit]
    waiting = [t for t in watchers if t.waits_for_lock]
    held = [t for t in watchers if not t.waits_for_lock and t.session.pid not in roots]
    share = len(held) / max(1, ledger.ordinary_slots)
    if len(held) <= settings.max_slots_count or share < settings.min_share_ratio:
        return None
    named = sum(1 for t in held if is_monitor(t))
    idle = [t for t in held if t.idle]
    reading = sum(1 for t in held if _STATISTICS.search(t.session.query))
    roles = sorted({t.session.user for t in held if t.session.user})
    return Finding(
        code=CODE,
        cause="monitoring-agents",
        severity=severity_of(case, share),
        confidence=0.93 if named >= 0.5 * len(held) else 0.75,
        summary=f"{len(held)} slots are held by monitoring, which needs one or two",
        claims=keys(held),
        evidence=(
            Fact(fact="sessions of watchers that do not wait for a lock", value=len(held)),
            Fact(fact="known by application_name or role", value=named),
            Fact(fact="whose last statement read statistics", value=reading),
            Fact(fact="idle", value=len(idle)),
            Fact(fact="databases they are connected to", value=len({t.session.database for t in held})),
            Fact(fact="born while we looked", value=sum(1 for t in held if t.born_in_window)),
        ),
        counter_evidence=(
            Fact(fact="sessions of watchers that wait for a lock, left to the lock pile-up", value=len(waiting)),
            Fact(fact="sessions of others", value=len(case.tracks) - len(watchers)),
        ),
        culprits=culprits(held),
        remedies=_remedies(roles, idle, held),
    )


def _by_habit(case: Case) -> set[Owner]:
    """Owners of whose sessions nearly all read statistics last: watchers under a name we do not know."""
    return {
        owner
        for owner, tracks in case.owners.items()
        if len(tracks) > 2 and sum(1 for t in tracks if _STATISTICS.search(t.session.query)) >= 0.9 * len(tracks)
    }


def _remedies(roles: list[str], idle: list[Track], held: list[Track]) -> tuple[Advice, ...]:
    pids = ", ".join(str(t.session.pid) for t in idle[:40])
    return (
        Advice(
            slug="limit-role-connections",
            difficulty="easy",
            disruption="none",
            command=" ".join(
                f"ALTER ROLE {sql_in([r])} CONNECTION LIMIT 3; "
                f"ALTER ROLE {sql_in([r])} SET lock_timeout = '2s'; "
                f"ALTER ROLE {sql_in([r])} SET statement_timeout = '10s';"
                for r in roles[:3]
            ),
            why="one or two sessions will do, and it should give up rather than pile up (superusers are exempt)",
        ),
        Advice(
            slug="set-idle-session-timeout",
            difficulty="easy",
            disruption="none",
            command=" ".join(f"ALTER ROLE {sql_in([r])} SET idle_session_timeout = '5min';" for r in roles[:3]),
            why="sessions it has forgotten leave by themselves (PostgreSQL 14+, new sessions)",
        ),
        Advice(
            slug="end-idle-sessions",
            difficulty="easy",
            disruption="ends-sessions",
            frees=len(idle),
            command=(
                "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' "
                f"AND state = 'idle' AND pid IN ({pids});"
                if idle
                else ""
            ),
            why=f"frees {len(idle)} of {len(held)} slots now; the watcher comes back for the one it needs",
        ),
    )


EXAMPLES = (
    Example(
        "one exporter and one agent on a busy server",
        "quiet",
        lambda: snapshot(
            server(20),
            pool("web", 14, idle_s=(0, 1), age_s=900, used=True),
            pool("postgres_exporter", 1, user="monitor"),
            pool("datadog-agent", 1, user="datadog"),
        ),
    ),
    Example(
        "a hotel's booking system, whose name only looks like a watcher's",
        "quiet",
        lambda: snapshot(server(20), pool("hotel-consensus", 16, idle_s=(0, 1), age_s=900, used=True)),
    ),
    Example(
        "an exporter that opens one session per database and scrape",
        "fires",
        lambda: snapshot(
            server(20),
            pool("web", 6, idle_s=(0, 1), age_s=900, used=True),
            pool("postgres_exporter", 11, user="monitor", idle_s=(5, 120), query="SELECT * FROM pg_stat_database"),
        ),
    ),
    Example(
        "a watcher of unknown name, known by what it reads",
        "fires",
        lambda: snapshot(
            server(20),
            pool("web", 6, idle_s=(0, 1), age_s=900, used=True),
            pool("", 11, user="svc_obs", idle_s=(5, 120), query="SELECT count(*) FROM pg_stat_activity"),
        ),
    ),
    Example(
        "under a limit of three",
        "cleared",
        lambda: snapshot(
            server(20),
            pool("web", 12, idle_s=(0, 1), age_s=900, used=True),
            pool("postgres_exporter", 3, user="monitor", idle_s=(5, 20)),
        ),
    ),
)
