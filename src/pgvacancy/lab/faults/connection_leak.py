"""One worker keeps a session per request for ever, beside a healthy pool under the same name, until nobody gets in."""

from __future__ import annotations

from pgvacancy.lab.lab import Lab

THRESHOLDS = {"connection-leak.min_idle_s": 1.0}
PAUSE_S = 0.15
"""Between two leaks: a filled server after two to three seconds."""


def fault(lab: Lab) -> None:
    """The pool takes a quarter and works; the leak takes the rest, one session at a time, and is then refused."""
    pool = max(2, lab.ordinary_slots // 4)
    lab.client("pool", sessions=pool, application_name="orders", rate=20.0).ready()
    lab.client(
        "hold",
        sessions=lab.ordinary_slots - pool,
        interval=PAUSE_S,
        forever=True,
        application_name="orders",
        driver="psycopg2",
        statement="SELECT balance FROM accounts WHERE id = 7",
    ).ready()
    lab.wait_refused()


def look_alike(lab: Lab) -> None:
    """A pool that is filled at the same pace, stops at its size, and comes back to each of its sessions."""
    size = lab.ordinary_slots - 1
    lab.client("pool", sessions=size, interval=PAUSE_S, application_name="orders", rate=size * 1.0).ready()
    lab.wait("the pool to have used its sessions again", lambda: _used_again(lab) > size * 0.6)


def remedy(lab: Lab) -> None:
    """The mended program: the same pool, and every session given back."""
    lab.stop_clients()
    lab.client("pool", sessions=max(2, lab.ordinary_slots // 4), application_name="orders", rate=20.0).ready()
    lab.client("churn", sessions=1, interval=PAUSE_S, application_name="orders", driver="psycopg2").ready()
    lab.wait_admitted()


def _used_again(lab: Lab) -> int:
    return int(
        lab.cluster.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'orders'"
            " AND state_change > backend_start + interval '1 s'"
        )[0][0]
    )
