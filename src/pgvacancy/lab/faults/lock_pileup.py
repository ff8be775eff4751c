"""Somebody leaves a transaction open that holds a row; everybody else queues behind it until nobody gets in."""

from __future__ import annotations

from pgvacancy.lab.lab import DATABASE, Lab

UPDATE = "UPDATE accounts SET balance = balance + 1 WHERE id = 1"
OWNERS = (("web", "psycopg"), ("app", "psycopg2"), ("batch", "asyncpg"))
HELD_S = 1.5


def fault(lab: Lab) -> None:
    """A row lock held by a session that is idle in transaction, and a queue behind it."""
    lab.client("hold", user="alice", sessions=1, application_name="psql", begin=True, statement=UPDATE).ready()
    _queue(lab, UPDATE, lab.ordinary_slots - 1)


def fault_behind_ddl(lab: Lab) -> None:
    """A long reader, a migration that waits for it, and plain SELECTs that queue behind the migration."""
    reader = "SELECT pg_sleep(120) FROM accounts LIMIT 1"
    lab.client("once", user="report", sessions=1, application_name="report", work=reader).ready()
    lab.wait("the reader to run", lambda: _count(lab, "state = 'active' AND query LIKE 'SELECT pg_sleep%'") == 1)
    ddl = "ALTER TABLE accounts ADD COLUMN note text"
    # ALTER TABLE belongs to the owner, who is the superuser that made the table.
    lab.client("once", user="postgres", sessions=1, application_name="migrate", driver="psycopg2", work=ddl).ready()
    lab.wait("the migration to wait", lambda: _count(lab, "wait_event_type = 'Lock'") == 1)
    _queue(lab, "SELECT balance FROM accounts WHERE id = 1", lab.ordinary_slots - 2)


def look_alike(lab: Lab) -> None:
    """A hot row: everybody updates it in short transactions, the waits are short and the queue moves."""
    sessions = lab.ordinary_slots - 1
    lab.client("busy", user="web", sessions=sessions, application_name="web", work=UPDATE, think=0.02).ready()
    lab.wait("every session to be open", lambda: lab.used_slots >= sessions)


def remedy(lab: Lab) -> None:
    """End the root, and only the root; then everybody gets through and the pools shrink again."""
    root = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
        " AND backend_type = 'client backend' AND pid IN"
        " (SELECT unnest(pg_blocking_pids(pid)) FROM pg_stat_activity WHERE wait_event_type = 'Lock')"
    )
    _drain(lab, root)


def remedy_behind_ddl(lab: Lab) -> None:
    """Cancel the statement that waits at the head of the queue, not the reader."""
    _drain(lab, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE%'")


def _queue(lab: Lab, statement: str, sessions: int) -> None:
    share, rest = divmod(sessions, len(OWNERS))
    for number, (owner, driver) in enumerate(OWNERS):
        count = share + (rest if number == 0 else 0)
        lab.client("once", user=owner, sessions=count, application_name=owner, driver=driver, work=statement).ready()
    lab.wait_refused()
    lab.wait("everybody to wait", lambda: _count(lab, "wait_event_type = 'Lock'") >= sessions)
    lab.wait(
        f"a queue of {HELD_S} s",
        lambda: (
            _count(lab, f"wait_event_type = 'Lock' AND query_start < clock_timestamp() - interval '{HELD_S} s'")
            >= sessions
        ),
    )


def _drain(lab: Lab, act: str) -> None:
    lab.cluster.sql(act)
    lab.wait("the queue to drain", lambda: _count(lab, "wait_event_type = 'Lock'") == 0)


def _count(lab: Lab, condition: str) -> int:
    row = lab.cluster.sql(
        f"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        f" AND datname = '{DATABASE}' AND {condition}"
    )[0]
    return int(row[0])
