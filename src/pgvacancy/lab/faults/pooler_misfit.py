"""A PgBouncer with a pool of two in front of a server with room: clients queue until it gives up on them."""

from __future__ import annotations

from typing import Any

from pgvacancy.lab.lab import Lab
from pgvacancy.lab.pgbouncer import PgBouncer

TOO_SMALL = 2
CLIENTS = 24
STATEMENT = "SELECT pg_sleep(0.2)"


def doctor(lab: Lab) -> dict[str, Any]:
    """The pooler belongs to the picture, once it runs."""
    pooler = lab.beside.get("pooler")
    return {"poolers": (pooler.admin_dsn(),)} if isinstance(pooler, PgBouncer) else {}


def fault(lab: Lab) -> None:
    """More clients than a pool of two can serve in time: PgBouncer turns them away with query_wait_timeout."""
    pooler = pooler_of(lab, pool_size=TOO_SMALL)
    client = lab.client(
        "retry", user="app", port=pooler.port, sessions=CLIENTS, application_name="shop", work=STATEMENT, think=0.01
    )
    client.ready()
    lab.wait("a client to be turned away", lambda: "query_wait_timeout" in client.report()["last_error"])


def look_alike(lab: Lab) -> None:
    """The same pool with clients that it can serve: now and then one waits for a moment."""
    pooler = pooler_of(lab, pool_size=lab.ordinary_slots // 2)
    client = lab.client(
        "busy", user="app", port=pooler.port, sessions=CLIENTS, application_name="shop", work="SELECT 1", think=0.3
    )
    client.ready()
    lab.wait("statements through the pooler", lambda: client.report()["statements"] > CLIENTS)


def remedy(lab: Lab) -> None:
    """Grow the pool on the console: it takes effect at once."""
    pooler: PgBouncer = lab.beside["pooler"]
    wanted = lab.ordinary_slots - 2
    console(pooler, f"SET default_pool_size = {wanted}")
    before = lab.processes[-1]
    before.stop()
    lab.client(
        "retry", user="app", port=pooler.port, sessions=CLIENTS, application_name="shop", work=STATEMENT, think=0.5
    ).ready()
    lab.wait("no client to wait", lambda: not any(int(row["cl_waiting"]) for row in console(pooler, "SHOW POOLS")))


def pooler_of(lab: Lab, *, pool_size: int) -> PgBouncer:
    """Start a pooler in front of the lab's server; it goes with the clients."""
    pooler = PgBouncer(
        {"app": f"host=127.0.0.1 port={lab.cluster.port} dbname=app"},
        {"default_pool_size": str(pool_size), "query_wait_timeout": "1"},
        users=("app", "web"),
    ).__enter__()
    lab.defer(pooler.destroy)
    lab.beside["pooler"] = pooler
    return pooler


def console(pooler: PgBouncer, command: str) -> list[dict[str, str]]:
    """Run a command on the pooler's console, which knows the simple protocol only."""
    import psycopg  # noqa: PLC0415 - only when used
    from psycopg.rows import dict_row  # noqa: PLC0415 - likewise

    with psycopg.connect(pooler.admin_dsn(), autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        cursor = connection.cursor(row_factory=dict_row)
        cursor.execute(command.encode())
        return cursor.fetchall() if cursor.description else []
