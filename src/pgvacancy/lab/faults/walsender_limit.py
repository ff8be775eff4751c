"""More WAL receivers than max_wal_senders allows; the slots of ordinary clients play no part."""

from __future__ import annotations

import tempfile

import psycopg

from pgvacancy.lab.drivers import is_refusal
from pgvacancy.lab.lab import Lab, Process
from pgvacancy.model.errors import MissingProgramError

LIMIT = 3
SERVER = {"max_wal_senders": str(LIMIT)}


def fault(lab: Lab) -> None:
    """As many pg_receivewal as there are places; the next replication client is refused."""
    receive(lab, LIMIT)
    lab.wait("a replication client to be refused", lambda: replication_refused(lab))


def look_alike(lab: Lab) -> None:
    """One place free, replication slots without a connection, and a full server besides."""
    receive(lab, LIMIT - 1)
    names = [f"waiting_{n}" for n in range(3)]
    lab.cluster.sql(*(f"SELECT pg_create_physical_replication_slot('{n}')" for n in names))
    lab.defer(lambda: lab.cluster.sql(*(f"SELECT pg_drop_replication_slot('{n}')" for n in names)))
    size = lab.ordinary_slots
    lab.client("pool", user="web", sessions=size, application_name="web", rate=size * 1.5).ready()
    lab.wait_refused("web")


def remedy(lab: Lab) -> None:
    """Raise max_wal_senders and restart; now one more than before gets in."""
    lab.cluster.restart(max_wal_senders=str(LIMIT + 3))
    receive(lab, LIMIT + 1)
    lab.wait("a replication client to be let in", lambda: not replication_refused(lab))


def receive(lab: Lab, count: int) -> None:
    """Run ``count`` WAL receivers and wait until the server serves them."""
    program = lab.cluster.bin / "pg_receivewal"
    if not program.exists():
        raise MissingProgramError(
            "no WAL receiver to run", seen=f"no pg_receivewal in {lab.cluster.bin}", next="--pg-bin of another server"
        )
    for _ in range(count):
        directory = tempfile.mkdtemp(prefix="wal-", dir=lab.cluster.directory)
        lab.processes.append(Process([str(program), "--no-loop", "-D", directory, "-d", lab.cluster.dsn(database="")]))
    lab.wait(
        f"{count} walsenders",
        lambda: lab.cluster.sql("SELECT 1 FROM pg_stat_replication HAVING count(*) >= " + str(count)),
    )


def replication_refused(lab: Lab) -> bool:
    """Whether a fresh replication client is refused."""
    try:
        psycopg.connect(f"{lab.cluster.dsn()} replication=true", connect_timeout=5).close()
    except psycopg.OperationalError as error:
        if is_refusal(error):
            return True
        raise
    return False
