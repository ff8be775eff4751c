"""A statement got slow, and its copies fill the server; nobody holds a lock."""

from __future__ import annotations

from pgvacancy.lab.lab import Lab

THRESHOLDS = {"slow-queries.min_running_s": 2.0}
HEAVY = "SELECT count(*) FROM generate_series(1, 2000000000) AS a WHERE a % 7 = 3"
"""Computes for minutes: a function scan that is spread to no worker. Two copies, for the machine's sake."""
WAITING = "SELECT pg_sleep(120), id FROM accounts WHERE balance = 0"
"""Stands for a statement that waits for its disk."""


def fault(lab: Lab) -> None:
    """Copies of slow statements, most waiting, two computing; an ordinary client is refused."""
    lab.client("once", user="report", sessions=2, application_name="report", driver="psycopg2", work=HEAVY).ready()
    lab.client(
        "once", user="web", sessions=lab.ordinary_slots - 2, application_name="web", driver="asyncpg", work=WAITING
    ).ready()
    lab.wait_refused()
    aged = f"now() - query_start > interval '{THRESHOLDS['slow-queries.min_running_s'] + 0.3} s'"
    lab.wait(
        "every statement to have run for long enough",
        lambda: (
            len(lab.cluster.sql(f"SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND {aged}"))
            >= lab.ordinary_slots
        ),
    )


def look_alike(lab: Lab) -> None:
    """One long report, and a pool in brisk use beside it."""
    lab.client("once", user="report", sessions=1, application_name="report", work=WAITING).ready()
    sessions = lab.ordinary_slots - 2
    lab.client(
        "busy", user="web", sessions=sessions, application_name="web", work="SELECT pg_sleep(0.05)", think=0.2
    ).ready()
    lab.wait(
        "the report to be slow",
        lambda: lab.cluster.sql(
            "SELECT 1 FROM pg_stat_activity WHERE usename = 'report' AND now() - query_start > interval '2 s'"
        ),
    )


def remedy(lab: Lab) -> None:
    """Limit the statements of these roles and cancel what runs."""
    lab.cluster.sql(
        *(f"ALTER ROLE {role} SET statement_timeout = '1s'" for role in ("web", "report")),
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend'"
        " AND usename IN ('web', 'report')",
    )
    lab.wait_admitted()
