"""Honest sessions hold every slot, and those who are refused try again at once."""

from __future__ import annotations

import time
from collections import deque

from pgvacancy.lab.lab import Client, Lab

STORM_S, STORM_REFUSALS = 4.0, 120
"""So many refusals within so many seconds are a storm, also on a machine that is busy with other things."""
DRIVERS = ("psycopg2", "psycopg")


def fault(lab: Lab) -> None:
    """Two applications of eight threads each reconnect without a pause worth the name."""
    _holders(lab, lab.ordinary_slots)
    lab.wait_refused()
    storm = [
        lab.client("retry", user="web", sessions=8, think=0.05, driver=driver, application_name="shop")
        for driver in DRIVERS
    ]
    for client in storm:
        client.ready()
    seen: deque[tuple[float, int]] = deque()

    def raging() -> bool:
        now = time.monotonic()
        seen.append((now, sum(int(c.report()["refused"]) for c in storm)))
        while seen[0][0] < now - STORM_S:
            seen.popleft()
        return seen[-1][1] - seen[0][1] >= STORM_REFUSALS

    lab.wait("a storm of refusals", raging)


def look_alike(lab: Lab) -> None:
    """The same full server with two patient clients that try once or twice a second."""
    _holders(lab, lab.ordinary_slots)
    lab.wait_refused()
    client = lab.client("retry", user="web", sessions=2, think=1.0, application_name="shop")
    client.ready()
    lab.wait("a refusal", lambda: client.report()["refused"])


def remedy(lab: Lab) -> None:
    """The clients back off, and a smaller pool lets them in."""
    lab.stop_clients()
    _holders(lab, lab.ordinary_slots // 2)
    for driver in DRIVERS:
        lab.client("retry", user="web", sessions=2, think=1.0, driver=driver, application_name="shop").ready()
    lab.wait_admitted()


def _holders(lab: Lab, sessions: int) -> Client:
    client = lab.client("pool", user="app", sessions=sessions, rate=sessions * 2, application_name="ledger")
    client.ready()
    return client
