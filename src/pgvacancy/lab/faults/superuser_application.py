"""An application whose DSN says postgres fills every slot, those kept for emergencies included."""

from __future__ import annotations

import psycopg

from pgvacancy.lab.lab import Lab

THRESHOLDS = {"idle-sessions.min_idle_s": 2.0}


def fault(lab: Lab) -> None:
    """Two processes of the application open all there is; now even a superuser is refused."""
    every = lab.ordinary_slots + reserve(lab)
    for number, driver in enumerate(("psycopg2", "psycopg")):
        share = every // 2 if number else every - every // 2
        lab.client("hold", user="postgres", sessions=share, application_name="shop", driver=driver).ready()
    lab.wait_refused()
    lab.wait_refused("postgres", "postgres")


def look_alike(lab: Lab) -> None:
    """An ordinary role fills what ordinary roles may have, and two people sit in the reserve."""
    size = lab.ordinary_slots
    lab.client("pool", user="app", sessions=size, application_name="shop", rate=size * 1.5).ready()
    lab.client("hold", user="postgres", sessions=2, application_name="psql").ready()
    lab.wait_refused()


def remedy(lab: Lab) -> None:
    """End the application's sessions, through the door that needs no slot."""
    door = f"{lab.cluster.dsn()} replication=database"
    with psycopg.connect(door, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND state = 'idle' AND usename = 'postgres'"
        )
    lab.wait_admitted()


def reserve(lab: Lab) -> int:
    """superuser_reserved_connections."""
    return int(lab.cluster.sql("SHOW superuser_reserved_connections")[0][0])
