"""A role or database has reached its own CONNECTION LIMIT, while the server has room.

What it is
----------
`CREATE/ALTER ROLE ... CONNECTION LIMIT n` and `CREATE/ALTER DATABASE ... CONNECTION LIMIT n` cap how many sessions
one role, or one database, may have. The cap is reached, so further clients are refused with SQLSTATE 53300 and
`too many connections for role "x"` or `too many connections for database "x"`, whatever the rest of the server does.
Hosting plans set such caps for you.

Why it takes slots
------------------
It takes none: it is a fence inside the server. Slots are free, but not for this role or database. The first limit
that a log-in meets is the one it is refused by: the role's, then the reserved slots, then the database's.

How we know
-----------
`pg_roles.rolconnlimit` or `pg_database.datconnlimit` is 0 or more, the sessions of that role or in that database
have reached it, and a fresh log-in (ours, or one in the server's log) is refused with exactly that text. -1 means
no limit; -2 on a database marks it as *invalid* (an interrupted DROP DATABASE) and is no limit; superusers are
exempt; 0 lets nobody in. The limit belongs to the role that logs in: groups do not share one, SET ROLE changes
nothing. Up to 13.18, 14.15, 15.10, 16.6 and 17.2 walsenders count too, and for a database autovacuum workers, so that
the limit is reached earlier than the client sessions suggest.

What to do, least disruptive first
----------------------------------
1. See who holds the places: `SELECT pid, application_name, client_addr, state, now() - state_change AS idle_for FROM
   pg_stat_activity WHERE usename = 'x' ORDER BY state_change;` and end what nobody uses.
2. Make the application's pools fit: pool size times processes at or below the limit.
3. Raise it, when the server's own slots allow: `ALTER ROLE x CONNECTION LIMIT n` or `ALTER DATABASE x CONNECTION
   LIMIT n`. It holds for the next log-in, without reload or restart.
Do not raise max_connections: it changes nothing here.

Often mistaken for
------------------
A full server (then the text speaks of "too many clients" or of reserved slots) · PgBouncer's max_user_connections and
max_db_connections, which make clients wait · an invalid database (datconnlimit -2, another error) · a role that
was shut out on purpose with limit 0.

Sources
-------
https://www.postgresql.org/docs/current/sql-alterrole.html
https://www.postgresql.org/docs/current/sql-alterdatabase.html
https://www.postgresql.org/docs/current/catalog-pg-database.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pgvacancy.causes._common import logged_refusals, sql_in, sql_text
from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.evidence import RefusalCount
from pgvacancy.model.ledger import holds_slot, may_hold_slot
from pgvacancy.model.series import Case, Track, culprits
from pgvacancy.model.snapshot import Refusal, Role, Sample, Server, Session

CODE = "PGC114"
ORDER = 10
NEEDS = ({"server", "sessions"}, {"refusal"}, {"log"})

NAMED = re.compile(r'"(.+)"')
COUNTS_CLIENTS_ONLY = {13: 130_019, 14: 140_016, 15: 150_011, 16: 160_007, 17: 170_003}
"""First minor of each major in which only client backends count against these limits.

Source: https://www.postgresql.org/docs/release/17.3/
"""


LONG_IDLE_S = 300
"""What the offered statement ends: sessions nobody has used for five minutes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of role-or-database-limit."""

    shut_out_min_count: float = setting(
        5, "with limit 0 on purpose only our own probes are refused, at most four a run; applications try more often"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit:
    """One limit and how far it is used."""

    what: Literal["role", "database"]
    name: str
    limit: int | None
    """None when only the refusal is known."""
    used: int
    refused: tuple[Refusal, ...]
    """Refusals we met ourselves."""
    logged: int
    """Refusals of others in the log."""
    lately: bool
    """One of them while we looked."""

    @property
    def reached(self) -> bool:
        return self.limit is not None and self.used >= self.limit

    def holds(self, settings: Settings) -> bool:
        """Whether it keeps clients out now."""
        own_login = any(r.source == "login" for r in self.refused)
        if self.limit == 0:
            return own_login or self.logged >= settings.shut_out_min_count
        return self.reached or bool(self.refused) or self.lately

    def covers(self, session: Session) -> bool:
        return (session.user if self.what == "role" else session.database) == self.name


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find a role or database at its own limit."""
    found = [limit for limit in _limits(case) if limit.holds(settings)]
    if not found:
        return None
    worst = max(found, key=lambda f: (bool(f.refused), f.logged, f.used))
    holders = [t for t in case.tracks if worst.covers(t.session)]
    others_refused = worst.logged > 0 or any(r.source == "login" for r in worst.refused)
    refused = bool(worst.refused) or others_refused
    room = case.ledger.free_ordinary if case.ledger is not None else None
    return Finding(
        code=CODE,
        cause="role-or-database-limit",
        severity="critical" if others_refused or (refused and case.snapshot.log is None) else "warning",
        confidence=_confidence(case, worst, others_refused=others_refused),
        summary=_summary(worst, room),
        evidence=tuple(_evidence(worst)),
        counter_evidence=tuple(_counter_evidence(case, worst, room, len(found))),
        culprits=culprits(holders),
        remedies=_remedies(worst, holders, room, case.snapshot.server),
        weight=0.2 if case.full else 1.0,
        refusal_matches=refused and not case.full,
    )


def _confidence(case: Case, worst: _Limit, *, others_refused: bool) -> float:
    if case.full:
        return 0.45  # the server itself refuses: this limit is at most the smaller trouble
    if others_refused:
        return 0.95
    if worst.refused:
        # Our own probe is refused. A log that knows of nobody else says: full by design, and nobody minds.
        return 0.75 if case.snapshot.log is not None else 0.9
    return 0.7


def _summary(worst: _Limit, room: int | None) -> str:
    free = f", while {room} slots of the server are free" if room else ""
    if worst.limit is None:
        return f"{worst.what} {worst.name} is refused by its own CONNECTION LIMIT{free}"
    return f"{worst.what} {worst.name} holds {worst.used} of the {worst.limit} sessions that its limit allows{free}"


def _evidence(worst: _Limit) -> list[Fact]:
    source = "pg_roles.rolconnlimit" if worst.what == "role" else "pg_database.datconnlimit"
    facts = []
    if worst.limit is not None:
        facts = [
            Fact(fact=f"CONNECTION LIMIT of {worst.what} {worst.name}", value=worst.limit, source=source),
            Fact(fact="sessions that count against it", value=worst.used),
        ]
    facts += [Fact(fact="a fresh log-in was refused", value=r.message, source=r.source) for r in worst.refused[:1]]
    if worst.logged:
        facts.append(Fact(fact="log-ins refused by this limit", value=worst.logged, source="log"))
    return facts


def _counter_evidence(case: Case, worst: _Limit, room: int | None, limits: int) -> list[Fact]:
    facts = []
    if room is not None:
        facts.append(Fact(fact="slots of the server free for ordinary roles", value=room))
    if worst.limit is not None and not worst.reached:
        facts.append(Fact(fact="places of this limit free when we looked", value=worst.limit - worst.used))
    if case.snapshot.log is not None and not worst.logged:
        facts.append(Fact(fact="refusals by this limit in the log", value=0, source="log"))
    if limits > 1:
        facts.append(Fact(fact="further roles or databases at their limit", value=limits - 1))
    return facts


def _remedies(worst: _Limit, holders: list[Track], room: int | None, srv: Server | None) -> tuple[Advice, ...]:
    column = "usename" if worst.what == "role" else "datname"
    idle = [t for t in holders if t.idle and t.state_age_s >= LONG_IDLE_S]
    advice = []
    if worst.limit != 0:
        advice = [
            Advice(
                slug="end-idle-sessions",
                difficulty="easy",
                disruption="ends-sessions",
                frees=len(idle),
                command=(
                    "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' "
                    f"AND {column} = {sql_text(worst.name)} AND state = 'idle' "
                    f"AND state_change < now() - interval '{LONG_IDLE_S} s' AND pid <> pg_backend_pid();"
                ),
                why=f"gives places of this {worst.what} back; look at the ages first",
            ),
            Advice(
                slug="resize-pool",
                difficulty="medium",
                disruption="none",
                why="pool size times processes must stay at or below the limit",
            ),
        ]
    if room is None or room > 0:
        keyword = "ROLE" if worst.what == "role" else "DATABASE"
        wanted = _wanted(worst, room, srv)
        advice.append(
            Advice(
                slug="raise-role-limit" if worst.what == "role" else "raise-database-limit",
                difficulty="easy",
                disruption="none",
                command=f"ALTER {keyword} {sql_in([worst.name])} CONNECTION LIMIT {wanted};",
                why="holds for the next log-in; every place comes out of the server's free slots",
            )
        )
    return tuple(advice)


def _wanted(worst: _Limit, room: int | None, srv: Server | None) -> int:
    """Half as much again, and never more than half of what is free."""
    limit = worst.limit if worst.limit is not None else 0
    if room is None:
        room = srv.setting_int("max_connections", 100) // 10 if srv is not None else 5
    return limit + max(1, min(max(limit, 10) // 2, room // 2))


def _limits(case: Case) -> list[_Limit]:
    srv = case.snapshot.server
    known: dict[tuple[Literal["role", "database"], str], int] = {}
    if srv is not None:
        bound = [r for r in srv.roles if r.connection_limit >= 0 and not r.superuser]
        known |= {("role", r.name): r.connection_limit for r in bound}
        known |= {("database", d.name): d.connection_limit for d in srv.databases if d.connection_limit >= 0}
    limits = [_limit(case, what, name, limit) for (what, name), limit in known.items()]
    met: list[Refusal | RefusalCount] = [*case.snapshot.refusals]
    if srv is None:
        met += logged_refusals(case, "role-limit", "database-limit")
    for r in met:
        what: Literal["role", "database"] | None = (
            "role" if r.kind == "role-limit" else "database" if r.kind == "database-limit" else None
        )
        if what is None:
            continue
        quoted = NAMED.search(r.message)
        name = (r.user if what == "role" else r.database) or (quoted[1] if quoted is not None else "")
        if (what, name) not in known:
            known[what, name] = -1
            limits.append(_limit(case, what, name, None))
    return limits


def _limit(case: Case, what: Literal["role", "database"], name: str, limit: int | None) -> _Limit:
    kind = "role-limit" if what == "role" else "database-limit"
    quoted = f'"{name}"'

    def names_it(user: str | None, database: str | None, message: str) -> bool:
        return (user if what == "role" else database) == name or quoted in message

    logged = [r for r in logged_refusals(case, kind) if names_it(r.user, r.database, r.message)]
    log = case.snapshot.log
    began_at = case.samples[0].taken_at if case.samples else case.now_at
    if not case.samples and log is not None and log.last_at is not None:
        began_at = log.last_at - log.recent_s
    return _Limit(
        what=what,
        name=name,
        limit=limit,
        used=max((_count(case, sample, what, name) for sample in case.samples), default=0),
        refused=tuple(r for r in case.snapshot.refusals if r.kind == kind and names_it(r.user, r.database, r.message)),
        logged=sum(r.count for r in logged),
        lately=any(r.last_at is not None and r.last_at >= began_at for r in logged),
    )


def _count(case: Case, sample: Sample, what: Literal["role", "database"], name: str) -> int:
    """Sessions that count against the limit, ours left out: it leaves again."""
    version = case.snapshot.server.version_num if case.snapshot.server is not None else 0
    more: set[str] = set()
    if 0 < version < COUNTS_CLIENTS_ONLY.get(version // 10_000, 0):
        more = {"walsender"} if what == "role" else {"walsender", "autovacuum worker"}
    return sum(
        1
        for s in sample.sessions
        if (s.user if what == "role" else s.database) == name
        and not s.is_own
        and (holds_slot(s) or may_hold_slot(s) or s.backend_type in more)
    )


def _refused_role(name: str) -> Refusal:
    message = f'too many connections for role "{name}"'
    return Refusal(sqlstate="53300", kind="role-limit", message=message, user=name, database="app")


EXAMPLES = (
    Example("a default server at rest", "quiet", lambda: snapshot(server(100), pool("psql", 2))),
    Example(
        "a limit that is set and not reached",
        "quiet",
        lambda: snapshot(
            server(100, roles=[Role(name="app", connection_limit=30)]), pool("web", 20, idle_s=(0, 2), used=True)
        ),
    ),
    Example(
        "a full server, and one role at a limit of its own besides",
        "quiet",
        lambda: snapshot(
            server(100, roles=[Role(name="app"), Role(name="report", connection_limit=0)]),
            pool("web", 97, idle_s=(0, 2), used=True),
        ),
    ),
    Example(
        "twenty of twenty sessions of one role, eighty slots free",
        "fires",
        lambda: snapshot(
            server(100, roles=[Role(name="app", connection_limit=20)]),
            pool("web", 20, idle_s=(10, 400)),
            refusal=_refused_role("app"),
        ),
    ),
    Example(
        "the same after the limit was raised",
        "cleared",
        lambda: snapshot(server(100, roles=[Role(name="app", connection_limit=40)]), pool("web", 22, idle_s=(10, 400))),
    ),
)
