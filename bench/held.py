"""How many sessions the doctor holds, seen by another connection while it runs as a process."""

from __future__ import annotations

import argparse
import json

from bench._process import PGVACANCY, note, run
from bench._server import Witness, server, witness
from bench._table import Table
from pgvacancy.lab.lab import Lab

MAX_CONNECTIONS = 20
OBSERVE_S = 2
RUNS = 3


def measure(options: argparse.Namespace) -> list[Table]:
    """Ordinary, reserved, superuser and replication door."""
    rounds = options.rounds or RUNS
    rows: list[tuple[object, ...]] = []
    with server(MAX_CONNECTIONS, reserved_connections="2") as lab, witness(lab) as seen:
        lab.cluster.sql("CREATE ROLE night LOGIN IN ROLE pg_monitor, pg_use_reserved_connections")
        fillings = (
            ("ordinary", "monitor", ("app", 5)),
            ("reserved", "night", ("app", MAX_CONNECTIONS - 3 - 2 - 1)),
            ("superuser", "postgres", ("postgres", MAX_CONNECTIONS - 3)),
            ("replication", "postgres", ("postgres", MAX_CONNECTIONS - 1)),
        )
        for door, role, (holder, sessions) in fillings:
            note(f"held: the {door} door")
            holding = lab.client("hold", user=holder, sessions=sessions, application_name="shop")
            holding.ready()
            rows += [(door, *_one(lab, seen, role)) for _ in range(rounds)]
            lab.processes.remove(holding)
            holding.stop()
            lab.wait("the slots to be free again", lambda: lab.used_slots <= 1)
    return [
        Table(
            title="Sessions the doctor holds",
            columns=(
                "filled so that the door is", "door taken", "slots held at most (promised: 1)",
                "walsender sessions at most", "sessions over the whole run", "looks by the witness",
            ),
            rows=tuple(rows),
            notes=(
                (
                    f"`pgvacancy doctor --observe {OBSERVE_S}` as a process, PostgreSQL 18, max_connections ="
                    f" {MAX_CONNECTIONS}; a second connection reads pg_stat_activity about every millisecond."
                ),
                (
                    "The start-up probe before the log-in and the probe as an ordinary role after the last reading are"
                    " sessions of their own, one after the other: the column counts them."
                ),
            ),
        )
    ]  # fmt: skip


def _one(lab: Lab, seen: Witness, role: str) -> tuple[object, ...]:
    with seen.watching():
        done = run([PGVACANCY, "doctor", lab.cluster.dsn(role), "--observe", str(OBSERVE_S), "--format", "json"])
    door = json.loads(done.stdout)["access"]["door"] if done.stdout else f"status {done.status}"
    return door, seen.slots, seen.walsenders, len(seen.pids), seen.looks
