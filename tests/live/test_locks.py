"""Lock queues on a real server: who is named as the blocker, and does acting upon it help."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgvacancy.causes import diagnose
from pgvacancy.cli._trial import laboratory
from pgvacancy.lab.faults import lock_pileup
from pgvacancy.lab.lab import Lab
from pgvacancy.lab.scenario import load_scenario
from pgvacancy.model.diagnosis import Diagnosis
from pgvacancy.observe.observation import Request, observe


@pytest.fixture
def queue() -> Iterator[Lab]:
    """A server of its own: a queue leaves nothing behind for others."""
    with laboratory(load_scenario("lock-pileup"), max_prepared_transactions="2") as lab:
        yield lab


def look(lab: Lab) -> Diagnosis:
    return diagnose(observe(Request(dsn=lab.cluster.dsn(), observe_s=2.0)))


def pid_of(lab: Lab, condition: str) -> int:
    statement = f"SELECT pid FROM pg_stat_activity WHERE {condition}"  # noqa: S608 - conditions of this file only
    return int(lab.cluster.sql(statement)[0][0])


def test_the_session_idle_in_transaction_is_the_culprit(queue: Lab) -> None:
    lock_pileup.fault(queue)
    root = pid_of(queue, "state = 'idle in transaction'")
    finding = look(queue).findings[0]
    assert finding.cause == "lock-pileup"
    assert f"ending pid {root} frees {queue.ordinary_slots} slots" in finding.summary
    assert finding.culprits[0].application_name == "psql"
    assert "pg_terminate_backend" in finding.remedies[0].command
    assert finding.slots == queue.ordinary_slots


def test_a_waiting_ddl_statement_is_cancelled_before_the_reader_is_touched(queue: Lab) -> None:
    lock_pileup.fault_behind_ddl(queue)
    ddl = pid_of(queue, "query LIKE 'ALTER TABLE%' AND wait_event_type = 'Lock'")
    finding = look(queue).findings[0]
    assert finding.cause == "lock-pileup"
    assert f"cancelling pid {ddl} lets {queue.ordinary_slots - 2} sessions through" in finding.summary
    assert [c.application_name for c in finding.culprits[:2]] == ["migrate", "report"]
    assert finding.remedies[0].command == f"SELECT pg_cancel_backend({ddl});"
    lock_pileup.remedy_behind_ddl(queue)
    assert "lock-pileup" not in [f.cause for f in look(queue).findings]
    assert pid_of(queue, "usename = 'report' AND state = 'active'"), "the reader was left alone"


def test_a_prepared_transaction_blocks_without_a_pid(queue: Lab) -> None:
    queue.cluster.sql("BEGIN", lock_pileup.UPDATE, "PREPARE TRANSACTION 'forgotten'", database="app")
    sessions = queue.ordinary_slots
    queue.client("once", user="web", sessions=sessions, driver="psycopg2", work=lock_pileup.UPDATE).ready()
    queue.wait_refused()
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    queue.wait("everybody to wait", lambda: len(queue.cluster.sql(waiting)) >= sessions)
    finding = look(queue).findings[0]
    assert finding.cause == "lock-pileup"
    assert "a prepared transaction" in finding.summary
    assert "pg_prepared_xacts" in finding.remedies[0].command
    queue.cluster.sql("ROLLBACK PREPARED 'forgotten'", database="app")
