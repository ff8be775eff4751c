"""Four workers, each with a pool a size too large: the last pools do not even fill, and hardly a member is used."""

from __future__ import annotations

from pgvacancy.lab.lab import Lab

WORKERS = 4


def fault(lab: Lab) -> None:
    """The workers start together; each always takes the session it used last."""
    size = lab.ordinary_slots // WORKERS + 1
    workers = [
        lab.client(
            "pool",
            user="web",
            sessions=size,
            pick="lifo",
            rate=5.0,
            application_name=f"shop-{number}",
            driver="sqlalchemy",
        )
        for number in range(1, WORKERS + 1)
    ]
    for worker in workers:
        worker.ready()
    lab.wait_refused()


def look_alike(lab: Lab) -> None:
    """As many workers with as many sessions, and each session at work again and again."""
    size = (lab.ordinary_slots - 1) // WORKERS
    workers = [
        lab.client("busy", user="web", sessions=size, think=0.2, application_name=f"shop-{number}")
        for number in range(1, WORKERS + 1)
    ]
    for worker in workers:
        worker.ready()


def remedy(lab: Lab) -> None:
    """Pools of a size that fits."""
    lab.stop_clients()
    size = max(1, lab.ordinary_slots // (2 * WORKERS))
    workers = [
        lab.client("pool", user="web", sessions=size, pick="lifo", rate=5.0, application_name=f"shop-{number}")
        for number in range(1, WORKERS + 1)
    ]
    for worker in workers:
        worker.ready()
    lab.wait_admitted()
