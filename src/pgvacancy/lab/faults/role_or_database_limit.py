"""A role with a CONNECTION LIMIT and a pool that is larger, on a server with plenty of room."""

from __future__ import annotations

from pgvacancy.lab.lab import Lab

THRESHOLDS = {"idle-sessions.min_idle_s": 2.0}
ROLE = "web"


def fault(lab: Lab) -> None:
    """The pool wants three sessions more than its role may have; a fresh client of that role is refused."""
    limit = limit_role(lab)
    lab.client("pool", user=ROLE, sessions=limit + 3, application_name="shop", driver="asyncpg", rate=3).ready()
    lab.wait_refused(ROLE)


def look_alike(lab: Lab) -> None:
    """The same limit, a pool that stays below it, and a database marked by a limit nobody reaches."""
    limit = limit_role(lab)
    lab.client("pool", user=ROLE, sessions=limit - 1, application_name="shop", driver="sqlalchemy", rate=20).ready()
    lab.wait_admitted(ROLE)


def remedy(lab: Lab) -> None:
    """Raise the role's limit, within the room that the server has."""
    lab.cluster.sql(f"ALTER ROLE {ROLE} CONNECTION LIMIT {lab.ordinary_slots // 2 + 4}")
    lab.wait_admitted(ROLE)


def limit_role(lab: Lab) -> int:
    """Fence the role for as long as the clients run."""
    limit = max(2, lab.ordinary_slots // 3)
    lab.cluster.sql(f"ALTER ROLE {ROLE} CONNECTION LIMIT {limit}")
    lab.defer(lambda: lab.cluster.sql(f"ALTER ROLE {ROLE} CONNECTION LIMIT -1"))
    return limit
