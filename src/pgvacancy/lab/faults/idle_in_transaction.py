"""Workers read in a transaction they do not know of, then do something else, until nobody gets in."""

from __future__ import annotations

from pgvacancy.lab.lab import Lab

THRESHOLDS = {"idle-in-transaction.min_idle_s": 2.0}
WORKERS = (("app", "worker", "sqlalchemy"), ("batch", "celery", "psycopg2"))
READ = "SELECT balance FROM accounts WHERE id = 1"


def fault(lab: Lab) -> None:
    """Two applications pause inside transactions; an ordinary client is refused."""
    share, rest = divmod(lab.ordinary_slots, len(WORKERS))
    for number, (user, name, driver) in enumerate(WORKERS):
        lab.client(
            "hold",
            user=user,
            sessions=share + (rest if number == 0 else 0),
            application_name=name,
            driver=driver,
            begin=True,
            statement=READ,
        ).ready()
    lab.wait_refused()
    aged = f"now() - state_change > interval '{THRESHOLDS['idle-in-transaction.min_idle_s'] + 0.3} s'"
    lab.wait(
        "every session to be idle in transaction for long enough",
        lambda: (
            len(lab.cluster.sql(f"SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction' AND {aged}"))
            >= lab.ordinary_slots
        ),
    )


def look_alike(lab: Lab) -> None:
    """A chatty application: always some statements inside a transaction, each transaction short."""
    sessions = lab.ordinary_slots - 1
    lab.client(
        "chat", user="web", sessions=sessions, application_name="web", driver="psycopg2", work=READ, think=0.1
    ).ready()
    lab.wait(
        "many sessions in a transaction at once",
        lambda: (
            len(lab.cluster.sql("SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction'")) >= sessions // 3
        ),
    )


def remedy(lab: Lab) -> None:
    """Give the roles a time limit, and end the transactions that are older than it."""
    lab.cluster.sql(
        *(f"ALTER ROLE {user} SET idle_in_transaction_session_timeout = '2s'" for user, _, _ in WORKERS),
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        " AND state_change < now() - interval '2 s' AND backend_type = 'client backend'",
    )
    lab.wait_admitted()
