"""Cloud functions: a process and a session for each invocation, frozen after its one statement."""

from __future__ import annotations

import sys

from pgvacancy.lab.lab import DATABASE, Lab, Process

OBSERVE_S = 3.0
LOOK_S = 2.0


def fault(lab: Lab) -> None:
    """More invocations than slots, each frozen for some seconds."""
    _crowd(lab, lab.ordinary_slots, "--rate", "8", "--freeze", "5")
    lab.wait_refused(user="web")


def look_alike(lab: Lab) -> None:
    """The same number of processes, each steadily at work on its one session."""
    _crowd(lab, lab.ordinary_slots - 1, "--rate", "0", "--busy", "--think", "0.2")
    lab.wait("the fleet at work", lambda: lab.used_slots >= lab.ordinary_slots - 1)


def remedy(lab: Lab) -> None:
    """Have the server close what its frozen owners cannot (14+; before that a limit has to do)."""
    lab.cluster.sql(
        "ALTER ROLE app SET idle_session_timeout = '500ms'"
        if lab.cluster.major >= 14
        else f"ALTER ROLE app CONNECTION LIMIT {lab.ordinary_slots // 3}",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app' AND state = 'idle'",
    )
    lab.wait_admitted(user="web")


def _crowd(lab: Lab, size: int, *arguments: str) -> None:
    dsn = f"host=127.0.0.1 port={lab.cluster.port} user=app dbname={DATABASE}"
    crowd = Process([sys.executable, "-m", "pgvacancy.lab.functions", "--dsn", dsn, "--crowd", str(size), *arguments])
    lab.processes.append(crowd)
    crowd.line()
