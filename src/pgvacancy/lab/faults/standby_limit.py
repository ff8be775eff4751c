"""The primary's max_connections is raised first: its standby cannot follow."""

from __future__ import annotations

from typing import Any

from pgvacancy.lab.cluster import Cluster
from pgvacancy.lab.lab import Lab
from pgvacancy.lab.standby import standby_of

RAISED_BY = 20


def doctor(lab: Lab) -> dict[str, Any]:
    """The patient is the standby; one that is down can be judged by its log alone."""
    standby = standby_of(lab)
    return {"dsn": standby.dsn(), "logs": (standby.log,)}


def fault(lab: Lab) -> None:
    """Raise the primary and restart it. The standby pauses (14+) or ends (13)."""
    standby = standby_of(lab)
    raised = int(lab.cluster.sql("SHOW max_connections")[0][0]) + RAISED_BY
    lab.cluster.restart(max_connections=str(raised))
    lab.wait("the standby to stop following", lambda: stopped(standby))


def look_alike(lab: Lab) -> None:
    """Replay paused by hand, on a standby whose slots are all taken."""
    standby = standby_of(lab)
    standby.sql("SELECT pg_wal_replay_pause()")
    size = lab.ordinary_slots
    lab.client("pool", user="report", port=standby.port, sessions=size, application_name="bi", rate=size * 1.5).ready()
    lab.wait("a client of the standby to be refused", lambda: lab.refusal("report", port=standby.port))


def remedy(lab: Lab) -> None:
    """Give the standby what its primary has, and restart it."""
    standby = standby_of(lab)
    standby.restart(max_connections=lab.cluster.settings["max_connections"])
    lab.cluster.sql("CREATE TABLE after_the_remedy ()")
    lab.wait(
        "the standby to follow again", lambda: standby.sql("SELECT 1 FROM pg_class WHERE relname = 'after_the_remedy'")
    )


def stopped(standby: Cluster) -> bool:
    """Whether it is paused or has ended."""
    if standby.process is None or standby.process.poll() is not None:
        return True
    function = "pg_get_wal_replay_pause_state() = 'paused'" if standby.major >= 14 else "false"
    return bool(standby.sql(f"SELECT {function}")[0][0])
