"""A connection per request from more requests at once than there are slots."""

from __future__ import annotations

from pgvacancy.lab.lab import Lab

DRIVERS = ("psycopg2", "psycopg")


def fault(lab: Lab) -> None:
    """Two web servers connect, query and leave for every request; some requests find no slot."""
    requests = lab.ordinary_slots
    for driver in DRIVERS:
        lab.client(
            "churn", user="web", sessions=requests, think=0.3, driver=driver, work="SELECT pg_sleep(0.25)",
            application_name="shop",
        ).ready()  # fmt: skip
    lab.wait_refused()


def look_alike(lab: Lab) -> None:
    """The same number of requests served by a pool that keeps its sessions, just opened, beside a cron job."""
    lab.client("busy", user="web", sessions=lab.ordinary_slots - 2, think=0.05, application_name="shop").ready()
    lab.client("churn", user="report", sessions=1, interval=1.0, application_name="cron").ready()


def remedy(lab: Lab) -> None:
    """A small pool in each process."""
    lab.stop_clients()
    for driver in DRIVERS:
        lab.client(
            "busy", user="web", sessions=lab.ordinary_slots // 4, think=0.05, driver=driver, application_name="shop"
        ).ready()
    lab.wait_admitted()
