"""Sessions that nobody has used for a long time hold the slots.

What it is
----------
People's tools (psql, DBeaver, pgAdmin, notebooks), forgotten jobs and applications without an idle limit keep
sessions open that nobody uses. Each one keeps its slot until somebody closes it.

Why it takes slots
------------------
A slot belongs to a session, not to a query. An idle session costs PostgreSQL next to no CPU since version 14,
but the slot it holds is as taken as that of a busy one.

How we know
-----------
The state is `idle` and the *idle age*, now() - state_change, is above `min_idle_s`. Nobody used the session
while we looked, and the pause is far longer than the usual interval between two uses of a session of the same
client; where some sessions are used all the time and the others never, the others are judged by themselves.
`query_start` is never taken for the idle age: a long query that ended a second ago would look idle for an hour.
Watchers, listeners and a pooler's own servers are left out.

What to do, least disruptive first
----------------------------------
1. Cap the roles of people: `ALTER ROLE ... CONNECTION LIMIT n` (new sessions only).
2. Give these roles an idle limit: `ALTER ROLE ... SET idle_session_timeout = '30min'` (14+; reaches new
   sessions only, and never set it on the role of a pooler).
3. End the oldest ones now, up to the room you need, with `pg_terminate_backend`.

Often mistaken for
------------------
A connection leak (grows, each session used once right after it was opened) · oversized pools (the same number
in every client, some of them in use) · dead clients (the peer no longer exists) · sessions idle by design:
LISTEN, leader election, advisory locks.

Sources
-------
https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW
https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-IDLE-SESSION-TIMEOUT
"""

from __future__ import annotations

from dataclasses import dataclass

from pgvacancy.causes._common import by_design, severity_of, sql_in
from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.causes._structure import PEOPLE, families, members, patience_s
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.series import Case, Owner, Track, culprits, keys

CODE = "PGC104"
ORDER = 110
NEEDS = ({"sql", "states"},)


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of idle-sessions."""

    min_idle_s: float = setting(300, "five unused minutes are beyond any think time, and soon enough in an outage")
    min_share_ratio: float = setting(0.1, "below a tenth of the ordinary slots they are not what filled the server")


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find sessions idle for longer than their owner's habit and the threshold."""
    ledger = case.ledger
    if ledger is None or not case.scarce:
        return None
    idle = unused(case, settings.min_idle_s)
    share = len(idle) / max(1, ledger.ordinary_slots)
    if not idle or share < settings.min_share_ratio:
        return None
    oldest = max(t.state_age_s for t in idle)
    reused = sum(1 for t in case.tracks if t.used_in_window)
    spared = sum(1 for t in case.tracks if by_design(t))
    owners = {Owner.of(t) for t in idle}
    pids = [t.session.pid for t in sorted(idle, key=lambda t: -t.state_age_s)]
    roles = sorted({o.user for o in owners})
    people = sum(1 for t in idle if PEOPLE.search(t.session.application_name))
    # One program's sessions may as well be a pool at rest: several owners or people's tools make it sure.
    sure = 0.88 if len(owners) > 1 or people > len(idle) / 2 else 0.8
    return Finding(
        code=CODE,
        cause="idle-sessions",
        severity=severity_of(case, share),
        confidence=sure if case.window_s > 0 else 0.6,
        summary=f"{len(idle)} sessions have been idle for up to {oldest:.0f} s and nobody uses them",
        claims=keys(idle),
        evidence=(
            Fact(fact="sessions idle longer than min_idle_s", value=len(idle)),
            Fact(fact="oldest idle age, now() - state_change, in seconds", value=round(oldest, 1)),
            Fact(fact="owners (application, user, database) of these sessions", value=len(owners)),
            Fact(fact="of them opened by programs that people drive", value=people),
        ),
        counter_evidence=(
            Fact(fact="sessions used while we looked", value=reused),
            Fact(fact="idle by design (LISTEN), left alone", value=spared),
        ),
        culprits=culprits(idle),
        remedies=(
            Advice(
                slug="end-idle-sessions",
                difficulty="easy",
                disruption="ends-sessions",
                frees=len(idle),
                command=(
                    "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' "
                    f"AND state = 'idle' AND state_change < now() - interval '{settings.min_idle_s:g} s' "
                    f"AND pid IN ({', '.join(map(str, pids[:40]))});"
                ),
                why="frees the slots now; watch whether they are taken again",
            ),
            Advice(
                slug="set-idle-session-timeout",
                difficulty="easy",
                disruption="none",
                command=f"ALTER ROLE {sql_in(roles[:1])} SET idle_session_timeout = '30min';",
                why="keeps it from coming back; reaches new sessions only (PostgreSQL 14+)",
            ),
            Advice(slug="limit-role-connections", difficulty="easy", disruption="none"),
        ),
    )


def unused(case: Case, min_idle_s: float) -> list[Track]:
    """Sessions idle beyond the threshold *and* beyond the habit of their owner's client."""
    result: list[Track] = []
    for family in families(case).values():
        for member in members(family):
            least_s = max(min_idle_s, patience_s(case, member))
            result += [m.track for m in member if m.resting and m.track.state_age_s >= least_s]
    return result


EXAMPLES = (
    Example("a default server at rest", "quiet", lambda: snapshot(server(100), pool("psql", 2, idle_s=9000))),
    Example(
        "a large pool at rest for an instant, used again and again",
        "quiet",
        lambda: snapshot(server(100), pool("web", 96, idle_s=(0, 2), used=True)),
    ),
    Example(
        "ninety sessions of five people, idle for an hour",
        "fires",
        lambda: snapshot(
            server(100),
            *(pool(f"dbeaver-{n}", 18, user=f"person{n}", idle_s=(3600, 4000), use_span_s=600) for n in range(5)),
        ),
    ),
    Example(
        "after the old ones were ended",
        "cleared",
        lambda: snapshot(server(100), pool("dbeaver", 6, user="person1", idle_s=(3600, 4000))),
    ),
)
