"""A calm service of a few sessions; then a job with a client per slot that never pauses, until nobody gets in."""

from __future__ import annotations

import time

from pgvacancy.lab.lab import Lab, Process

BASE = 3
RUN_S = "120"


def fault(lab: Lab) -> None:
    """Fill every free slot with pgbench, reading without pause; an ordinary client is refused."""
    _prepare(lab)
    _calm(lab)
    clients = lab.ordinary_slots - BASE
    jobs = [_pgbench(lab, clients)]

    def filled() -> bool:
        # pgbench gives up when a single log-in is refused, which a check of ours may cause by taking the last slot.
        if jobs[-1].popen.poll() is not None:
            jobs.append(_pgbench(lab, clients))
        return lab.used_slots >= lab.ordinary_slots and lab.refusal() is not None

    lab.wait("pgbench to fill the server, and an ordinary client to be refused", filled)


def look_alike(lab: Lab) -> None:
    """The same number of sessions in a pool at ease, each used about once a second."""
    size = lab.ordinary_slots - 1
    lab.client("pool", user="web", sessions=size, application_name="web", rate=size * 1.5).ready()
    lab.wait("the pool to be open", lambda: lab.used_slots >= size)


def remedy(lab: Lab) -> None:
    """Let a few sessions carry the same traffic."""
    lab.stop_clients()
    _calm(lab)
    _pgbench(lab, 4)
    lab.wait_admitted()
    lab.wait("the job to be at work", lambda: lab.used_slots >= BASE + 4)


def _calm(lab: Lab) -> None:
    lab.client("pool", user="web", sessions=BASE, application_name="web", rate=6).ready()


def _prepare(lab: Lab) -> None:
    made = lab.pgbench("--initialize", "--quiet", "--scale=1")
    deadline = time.monotonic() + 30
    lab.wait("pgbench to make its tables", lambda: made.popen.poll() is not None or time.monotonic() > deadline)


def _pgbench(lab: Lab, clients: int) -> Process:
    return lab.pgbench("--select-only", "--no-vacuum", "--time", RUN_S, "--client", str(clients), "--jobs", "2")
