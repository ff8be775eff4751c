"""Watchers that open a session per scrape and database and keep them all."""

from __future__ import annotations

from pgvacancy.lab.lab import Lab

SCRAPE = "SELECT datname, numbackends, xact_commit FROM pg_stat_database"
AGENTS = (("postgres_exporter", "psycopg2"), ("datadog-agent", "psycopg"))


def fault(lab: Lab) -> None:
    """Two agents hold most of the slots beside a small, busy application."""
    application = max(2, lab.ordinary_slots // 4)
    lab.client("busy", user="web", sessions=application, think=0.1, application_name="shop").ready()
    share, rest = divmod(lab.ordinary_slots - application, len(AGENTS))
    for number, (name, driver) in enumerate(AGENTS):
        lab.client(
            "hold",
            user="monitor",
            database="postgres" if number else "app",
            sessions=share + (rest if number == 0 else 0),
            interval=0.05,
            statement=SCRAPE,
            application_name=name,
            driver=driver,
        ).ready()
    lab.wait_refused()


def look_alike(lab: Lab) -> None:
    """The same watchers with one session each, on a server that is busy with something else."""
    lab.client("busy", user="web", sessions=lab.ordinary_slots - 2, think=0.1, application_name="shop").ready()
    for name, driver in AGENTS:
        lab.client(
            "pool", user="monitor", sessions=1, rate=2, work=SCRAPE, application_name=name, driver=driver
        ).ready()


def remedy(lab: Lab) -> None:
    """Cap the watchers' role and end what they forgot."""
    lab.cluster.sql(
        "ALTER ROLE monitor CONNECTION LIMIT 3",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'monitor' AND state = 'idle'",
    )
    lab.wait_admitted()
