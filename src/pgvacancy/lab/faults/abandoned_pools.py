"""A development server reloads, makes its pool anew and forgets to close the one before, until nobody gets in."""

from __future__ import annotations

from pgvacancy.lab.lab import Lab

SIZE = 4
PAUSE_S = 1.0


def fault(lab: Lab) -> None:
    """One process: pools of one size, one after another; it goes on with the newest, which the limit cuts short."""
    lab.client(
        "recreate",
        sessions=SIZE,
        pools=lab.ordinary_slots // SIZE + 1,
        interval=PAUSE_S,
        pick="lifo",
        rate=8.0,
        application_name="shop-dev",
        driver="asyncpg",
    ).ready()
    lab.wait_refused()


def look_alike(lab: Lab) -> None:
    """A pool that grew in bursts of the same size and uses all of its members."""
    bursts = (lab.ordinary_slots - 1) // SIZE
    lab.client(
        "recreate",
        sessions=SIZE,
        pools=bursts,
        interval=PAUSE_S,
        pick="random",
        rate=bursts * SIZE * 1.5,
        application_name="shop",
    ).ready()
    lab.wait("sessions of the first burst to be used again", lambda: _used_again(lab) >= SIZE)


def remedy(lab: Lab) -> None:
    """End everything but the newest pool."""
    lab.cluster.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'shop-dev'"
        " AND backend_start < (SELECT max(backend_start) - interval '0.3 s' FROM pg_stat_activity"
        " WHERE application_name = 'shop-dev')"
    )
    lab.wait_admitted()


def _used_again(lab: Lab) -> int:
    return int(
        lab.cluster.sql(
            "SELECT count(*) FROM (SELECT * FROM pg_stat_activity WHERE application_name = 'shop'"
            f" ORDER BY backend_start LIMIT {SIZE}) AS oldest WHERE state_change > backend_start + interval '1.5 s'"
        )[0][0]
    )
