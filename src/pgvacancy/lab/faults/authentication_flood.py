"""Somebody begins log-ins and never answers the demand for a password."""

from __future__ import annotations

import sys

from pgvacancy.lab.lab import Lab, Process

HBA = (
    "local all all trust",
    "host all report all scram-sha-256",
    "host all all all trust",
    "local replication all trust",
    "host replication all all trust",
)
MIN_LOGIN_S = 1.0


def fault(lab: Lab) -> None:
    """Half-open log-ins take all but two slots of the superusers."""
    flood = Process(
        [
            *(sys.executable, "-m", "pgvacancy.lab.half_open", "--port", str(lab.cluster.port)),
            *("--user", "report", "--sessions", str(lab.ordinary_slots + 1)),
        ]
    )
    lab.processes.append(flood)
    flood.line()
    lab.wait_refused(user="web")


def look_alike(lab: Lab) -> None:
    """As many log-ins as the server can take, all of which finish."""
    lab.client("churn", user="web", sessions=lab.ordinary_slots, think=0.05, interval=0.05, driver="psycopg2").ready()


def remedy(lab: Lab) -> None:
    """Give log-ins a second, and end those that are there."""
    lab.cluster.sql("ALTER SYSTEM SET authentication_timeout = '1s'", "SELECT pg_reload_conf()")
    lab.cluster.sql(
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a USING (pid)"
        " WHERE l.locktype = 'virtualxid' AND (a.pid IS NULL OR a.state = 'starting')"
    )
    lab.wait_admitted(user="web")
