"""People's tools open sessions, use them a few times and forget them, until nobody gets in."""

from __future__ import annotations

from pgvacancy.lab.lab import Lab

THRESHOLDS = {"idle-sessions.min_idle_s": 2.0}
PEOPLE = ("alice", "bob", "carol", "report")


def fault(lab: Lab) -> None:
    """Several people leave sessions behind; an ordinary client is refused."""
    share, rest = divmod(lab.ordinary_slots, len(PEOPLE))
    for number, person in enumerate(PEOPLE):
        lab.client(
            "hold",
            user=person,
            sessions=share + (rest if number == 0 else 0),
            application_name="DBeaver 24.1 - SQLEditor" if number % 2 else "psql",
            driver="psycopg2" if number % 2 else "psycopg",
        ).ready()
    lab.wait_refused()
    wait_idle(lab, THRESHOLDS["idle-sessions.min_idle_s"])


def look_alike(lab: Lab) -> None:
    """A pool of the same size whose sessions rest between uses, but are used again and again."""
    size = lab.ordinary_slots - 1
    lab.client("pool", user="web", sessions=size, application_name="web", rate=size * 1.5).ready()
    wait_idle(lab, 0.5)


def remedy(lab: Lab) -> None:
    """End what has been idle for longer than the threshold."""
    lab.cluster.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        " AND state = 'idle' AND pid <> pg_backend_pid()"
    )
    lab.wait_admitted()


def wait_idle(lab: Lab, age_s: float) -> None:
    """Wait until the oldest idle session is this old."""
    lab.wait(
        f"an idle age of {age_s} s",
        lambda: lab.cluster.sql(
            "SELECT 1 FROM pg_stat_activity WHERE state = 'idle'"
            f" AND now() - state_change > interval '{age_s + 0.3:g} s' LIMIT 1"
        ),
    )
