"""PgBouncer in front of a real server: pools that overrun it, a client cap, and what is not the pooler's doing."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pgvacancy.causes import diagnose
from pgvacancy.lab.faults.pooler_misfit import console
from pgvacancy.lab.lab import Lab
from pgvacancy.lab.pgbouncer import PgBouncer
from pgvacancy.model.diagnosis import Diagnosis
from pgvacancy.model.errors import MissingProgramError
from pgvacancy.observe.observation import Request, observe

THRESHOLDS = {"idle-sessions.min_idle_s": 1.0, "slow-queries.min_running_s": 1.0, "connection-leak.min_idle_s": 1.0}
WAIT = "SELECT pg_sleep(0.1)"


def pooler_in_front(lab: Lab, **settings: str) -> PgBouncer:
    try:
        pooler = PgBouncer(
            {"app": f"host=127.0.0.1 port={lab.cluster.port} dbname=app"}, settings, users=("app", "web", "batch")
        )
    except MissingProgramError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    pooler.__enter__()
    lab.defer(pooler.destroy)
    return pooler


def ask(lab: Lab, *poolers: PgBouncer, **fields: Any) -> Diagnosis:
    consoles = tuple(p.admin_dsn() for p in poolers)
    request = Request(dsn=lab.cluster.dsn(), observe_s=2.0, poolers=consoles, **fields)
    return diagnose(observe(request), THRESHOLDS)


def causes_of(diagnosis: Diagnosis) -> list[str]:
    assert not diagnosis.crashed
    return [f.cause for f in diagnosis.findings]


def work_through(lab: Lab, pooler: PgBouncer, user: str, **options: Any) -> None:
    wanted = {"sessions": lab.ordinary_slots, "application_name": "", "work": WAIT, "think": 0.01, **options}
    lab.client("retry", user=user, port=pooler.port, **wanted).ready()


def test_two_pools_of_one_process_overrun_the_server_until_they_are_made_smaller(lab: Lab) -> None:
    size = lab.ordinary_slots * 2 // 3
    pooler = pooler_in_front(lab, default_pool_size=str(size))
    work_through(lab, pooler, "app")
    work_through(lab, pooler, "web", driver="asyncpg")
    lab.wait_refused("batch")

    found = ask(lab, pooler)
    assert causes_of(found)[0] == "pooler-misfit"
    assert "fill the server" in found.findings[0].summary
    assert found.findings[0].slots >= lab.ordinary_slots - 1
    assert {c.user for c in found.findings[0].culprits} == {"app", "web"}
    # The processes tell as well, when nobody gives a console.
    assert causes_of(ask(lab))[0] == "pooler-misfit"

    smaller = lab.ordinary_slots // 3
    console(pooler, f"SET default_pool_size = {smaller}")
    console(pooler, "RECONNECT")
    lab.wait("smaller pools", lambda: lab.used_slots <= 2 * smaller)
    lab.wait_admitted("batch")
    # The smaller pools leave room on the server; that their clients may now wait in them is another matter.
    assert not any("fill the server" in f.summary for f in ask(lab, pooler).findings)


def test_clients_turned_away_by_max_client_conn(lab: Lab) -> None:
    pooler = pooler_in_front(lab, default_pool_size="4", max_client_conn="8")
    client = lab.client("hold", user="app", port=pooler.port, sessions=10, driver="psycopg2", application_name="shop")
    assert client.ready()["refused"] == 2

    found = ask(lab, pooler)
    assert causes_of(found) == ["pooler-misfit"]
    assert found.findings[0].remedies[0].slug == "raise-pooler-clients"

    console(pooler, "SET max_client_conn = 40")
    assert causes_of(ask(lab, pooler)) == []


def test_direct_clients_hold_the_slots_that_the_pool_cannot_get(lab: Lab) -> None:
    lab.client("hold", user="batch", sessions=lab.ordinary_slots - 1, application_name="report").ready()
    pooler = pooler_in_front(lab, default_pool_size="10")
    work_through(lab, pooler, "web", sessions=6)
    lab.wait_refused("app")
    assert "pooler-misfit" not in causes_of(ask(lab, pooler))[:1]


def test_locks_behind_the_pooler_are_not_the_poolers_doing(lab: Lab) -> None:
    lab.client("hold", user="app", begin=True, statement="LOCK TABLE accounts").ready()
    pooler = pooler_in_front(lab, default_pool_size="3")
    lab.client(
        "once", user="web", port=pooler.port, sessions=9, application_name="shop", work="SELECT count(*) FROM accounts"
    ).ready()
    lab.wait("clients that wait", lambda: any(int(row["cl_waiting"]) >= 5 for row in console(pooler, "SHOW POOLS")))
    assert "pooler-misfit" not in causes_of(ask(lab, pooler))
