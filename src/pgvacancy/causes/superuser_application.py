"""An application logs in as a superuser and eats the slots kept for emergencies.

What it is
----------
The application's DSN names a superuser, typically `postgres`, the container image's default user. For superusers
the last slots are not closed, so the application fills all of max_connections, the reserve included.

Why it takes slots
------------------
superuser_reserved_connections is no pool of its own: it means that the last N *free* slots go to superusers only.
An application that is one takes them like any other. Then nobody gets in any more, neither its own further
sessions nor the person who wants to help: everybody reads `sorry, too many clients already`.

How we know
-----------
Sessions whose role has SUPERUSER (people's single sessions, backups and monitors not counted) are more than the
reserve and a good part of all sessions, and the reserve is in use. Were the application an ordinary role, others
would read the text about reserved slots, and a superuser could still enter. In this state the doctor itself comes in
by a replication connection, which needs no slot.

What to do, least disruptive first
----------------------------------
1. End sessions of that application that rest, as many as the reserve: then a superuser can log in again. Through
   the replication door it works on a full server too:
   `psql "host=HOST user=postgres dbname=postgres replication=database" -c "SELECT pg_terminate_backend(4711)"`.
2. Make its pool smaller.
3. Give the application an ordinary role of its own: create it, grant what it needs, change the DSN, and only then
   take SUPERUSER from the old one. A missing grant breaks the application, so a new role is safer than ALTER ROLE.
Traps: CONNECTION LIMIT does not bind superusers, and a larger reserve is eaten just the same.

Often mistaken for
------------------
Log-ins that never finish, or a storm of them: they give the same text for moments, without idle superuser sessions ·
superusers of a hosting provider, a DBA, a backup, a migration: few, and gone in a while · a leak or a large pool of
an ordinary role: there the reserve stays free.

Sources
-------
https://www.postgresql.org/docs/current/runtime-config-connection.html#GUC-SUPERUSER-RESERVED-CONNECTIONS
https://www.postgresql.org/docs/current/role-attributes.html
https://www.postgresql.org/docs/current/protocol-replication.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgvacancy.causes._common import is_monitor, sql_in
from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.ledger import Ledger
from pgvacancy.model.series import Case, Track, culprits, group, keys
from pgvacancy.model.snapshot import Refusal, Role

CODE = "PGC115"
ORDER = 30
NEEDS = ({"server", "sql", "all-sessions"},)

PASSING = re.compile(
    r"^pg_(dump|dumpall|restore|basebackup|upgrade|rewind|amcheck|receivewal|recvlogical)\b|vacuumdb|reindexdb|clusterdb"
    r"|barman|pgbackrest|wal-?g\b|repmgr|patroni|flyway|liquibase|alembic",
    re.IGNORECASE,
)
"""application_name of programs that work as a superuser for a while, and must."""
PEOPLE = re.compile(r"^psql$|pgadmin|dbeaver|datagrip|navicat|tableplus|heidisql|postico", re.IGNORECASE)
PROVIDERS = frozenset({"rdsadmin", "cloudsqladmin", "azuresu", "supabase_admin", "cloud_admin", "alloydbadmin"})


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of superuser-application."""

    min_share_ratio: float = setting(0.25, "below a quarter of the sessions somebody else filled the server first")
    people_count: float = setting(2, "one person works with one or two sessions of a tool")


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find superuser sessions beyond the reserve."""
    ledger = case.ledger
    if ledger is None or not case.scarce:
        return None
    found = superuser_sessions(case, int(settings.people_count))
    share = len(found) / max(1, case.peak_used)
    if len(found) <= max(ledger.superuser_reserved, settings.people_count) or share < settings.min_share_ratio:
        return None
    last_ordinary = ledger.max_connections - ledger.superuser_reserved
    eaten = min(ledger.superuser_reserved, max(0, case.peak_used - last_ordinary))
    refused_all = any(r.kind == "slots-full" for r in case.snapshot.refusals)
    waiting = sum(1 for t in found if t.waits_for_lock)
    roles = sorted({t.session.user or "" for t in found})
    resting = [t for t in found if t.idle and not t.used_in_window]
    return Finding(
        code=CODE,
        cause="superuser-application",
        severity="critical" if case.full else "warning",
        confidence=_confidence(ledger, case.peak_used, eaten, share, waits=2 * waiting >= len(found)),
        summary=(
            f"{len(found)} sessions log in as superuser {', '.join(roles)}"
            + (f" and sit in {eaten} of the {ledger.superuser_reserved} reserved slots" if eaten else "")
        ),
        claims=keys(found),
        evidence=(
            Fact(fact="sessions of superusers, without people's tools, backups and monitors", value=len(found)),
            Fact(fact="superuser_reserved_connections", value=ledger.superuser_reserved, source="pg_settings"),
            Fact(fact="reserved slots in use", value=eaten),
            *(
                (Fact(fact="even the reserve is refused", value="sorry, too many clients already", source="login"),)
                if refused_all
                else ()
            ),
        ),
        counter_evidence=(
            Fact(fact="sessions of ordinary roles", value=sum(1 for t in case.tracks if t not in found)),
            Fact(fact="of the superuser sessions, used while we looked", value=len(found) - len(resting)),
            Fact(fact="of the superuser sessions, waiting for a lock", value=waiting),
        ),
        culprits=culprits(found),
        remedies=_remedies(case, found, roles, resting, ledger.superuser_reserved),
        refusal_matches=refused_all and 2 * waiting < len(found),
    )


def superuser_sessions(case: Case, people: int = 2) -> list[Track]:
    """Sessions of superusers that look like an application's."""
    server = case.snapshot.server
    superusers = {r.name for r in server.roles if r.superuser} - PROVIDERS if server is not None else set()
    mine = [
        t
        for t in case.tracks
        if t.session.user in superusers
        and not PASSING.search(t.session.application_name)
        and not is_monitor(t)
        and t.session.application_name != "pgvacancy"
    ]
    spared = {
        t
        for tracks in group(mine, lambda t: t.session.application_name).values()
        if len(tracks) <= people and PEOPLE.search(tracks[0].session.application_name)
        for t in tracks
    }
    return [t for t in mine if t not in spared]


def _confidence(ledger: Ledger, peak_used: int, eaten: int, share: float, *, waits: bool) -> float:
    if waits:
        return 0.45  # what they wait for is the nearer cause
    if not eaten:
        return 0.45  # the reserve is free yet: another cause says better why the ordinary slots are taken
    if peak_used < ledger.max_connections:
        return 0.75 if share >= 0.5 else 0.6
    return 0.92 if share >= 0.5 else 0.8


def _remedies(
    case: Case, found: list[Track], roles: list[str], resting: list[Track], reserve: int
) -> tuple[Advice, ...]:
    oldest = sorted(resting, key=lambda t: -t.state_age_s)
    ended = oldest[: max(1, reserve)]
    limit = case.ledger.ordinary_slots if case.ledger is not None else 0
    advice = []
    if ended:
        advice.append(
            Advice(
                slug="end-idle-sessions",
                difficulty="easy",
                disruption="ends-sessions",
                frees=len(ended),
                command=(
                    f'psql "host=HOST user={_door(case)} dbname=postgres replication=database" -c "SELECT pid, '
                    "pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' "
                    f"AND state = 'idle' AND pid IN ({', '.join(str(t.session.pid) for t in ended)})\""
                ),
                why="gives the reserve back; a replication connection takes no slot and gets in on a full server too",
            )
        )
    return (
        *advice,
        Advice(
            slug="resize-pool",
            difficulty="medium",
            disruption="none",
            why=f"{len(found)} sessions now; all applications together must stay below {limit}",
        ),
        Advice(
            slug="demote-superuser-application",
            difficulty="hard",
            disruption="ends-sessions",
            command=(
                "CREATE ROLE app_login LOGIN; GRANT pg_read_all_data, pg_write_all_data TO app_login; "
                f"-- or narrower grants; then change the DSN that names {sql_in(roles[:1])}"
            ),
            why="the cure: ordinary roles cannot take the reserve (the two predefined roles need PostgreSQL 14+)",
        ),
    )


def _door(case: Case) -> str:
    """A superuser to log in as: ourselves, if we are one."""
    access = case.snapshot.access
    known = case.snapshot.server.role(access.role) if case.snapshot.server is not None else None
    plain = known is not None and known.superuser and re.fullmatch(r"[A-Za-z0-9_.-]+", known.name)
    return known.name if known is not None and plain else "postgres"


_ROLES = (Role(name="postgres", superuser=True), Role(name="app"))
_FULL = Refusal(sqlstate="53300", kind="slots-full", message="sorry, too many clients already", source="login")

EXAMPLES = (
    Example(
        "a DBA and a backup on a quiet server",
        "quiet",
        lambda: snapshot(
            server(100, roles=_ROLES), pool("psql", 2, user="postgres"), pool("pg_dump", 5, user="postgres")
        ),
    ),
    Example(
        "an ordinary application fills what it may, a DBA sits in the reserve",
        "quiet",
        lambda: snapshot(
            server(100, roles=_ROLES), pool("web", 97, idle_s=(0, 2), used=True), pool("psql", 2, user="postgres")
        ),
    ),
    Example(
        "an application that logs in as postgres holds every slot",
        "fires",
        lambda: snapshot(server(100, roles=_ROLES), pool("web", 100, user="postgres"), refusal=_FULL),
    ),
    Example(
        "after it has got a role of its own and a smaller pool",
        "cleared",
        lambda: snapshot(server(100, roles=_ROLES), pool("web", 60, user="app", idle_s=(0, 2), used=True)),
    ),
)
