"""The ledger against the truth told by another connection."""

from __future__ import annotations

import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pgvacancy.lab.cluster import Cluster
from pgvacancy.lab.half_open import begin_login, startup_packet
from pgvacancy.lab.lab import Lab, Process
from pgvacancy.model.ledger import make_ledger
from pgvacancy.model.snapshot import Snapshot
from pgvacancy.observe.host.backends import read_backends
from pgvacancy.observe.observation import Request, observe

pytestmark = pytest.mark.matrix

ASKS_REPORT = (
    "local all all trust",
    "host all report all scram-sha-256",
    "host replication report all scram-sha-256",
    "host all all all trust",
    "host replication all all trust",
)
"""pg_hba lines by which the role ``report`` is asked for a password, and nobody else."""


@pytest.fixture(scope="module")
def cluster(pg_bin: Path | None) -> Iterator[Cluster]:
    with Cluster({"max_connections": "20"}, pg_bin=pg_bin, hba=ASKS_REPORT) as started:
        yield started


@pytest.fixture
def half_open(lab: Lab) -> Iterator[Callable[..., None]]:
    """Begins log-ins of ``report`` that are never finished; they end with the test."""
    with ExitStack() as stack:

        def begin(count: int, **parameters: str) -> None:
            for _ in range(count):
                opened = begin_login("127.0.0.1", lab.cluster.port, startup_packet("report", "app", **parameters))
                assert opened is not None, "the server asks for a password"
                stack.enter_context(opened)

        yield begin
    lab.wait("half-open log-ins to be gone", lambda: not titles(lab)["authenticating"] + titles(lab)["walsender"])


def titles(lab: Lab) -> Counter[str]:
    """What the server's processes say they are."""
    return Counter(b.kind for b in read_backends(lab.cluster.pid))


def look(lab: Lab, user: str = "postgres", **fields: object) -> Snapshot:
    return observe(Request(dsn=lab.cluster.dsn(user), observe_s=0, **fields))  # type: ignore[arg-type]


def ledger_of(snapshot: Snapshot):  # type: ignore[no-untyped-def]  # noqa: ANN201 - a test's shorthand
    assert snapshot.server is not None
    return make_ledger(snapshot.server, snapshot.samples[-1], snapshot.access)


def test_counts_what_another_connection_counts(lab: Lab) -> None:
    lab.client("hold", sessions=5).ready()
    lab.client("hold", user="alice", sessions=3, driver="psycopg2").ready()
    truth = lab.used_slots
    ledger = ledger_of(look(lab))
    assert truth == 8
    assert ledger.used == truth + 1, "our own session counts"
    assert ledger.own == 1
    assert (ledger.free_superuser, ledger.free_ordinary) == (20 - 9, 17 - 9)


def test_doors_are_named_by_the_slot_they_take(lab: Lab) -> None:
    assert look(lab).access.door == "ordinary"
    lab.client("hold", sessions=lab.ordinary_slots).ready()
    lab.wait_refused()
    assert look(lab).access.door == "superuser"
    lab.client("hold", user="postgres", sessions=3).ready()
    lab.wait("every slot to be taken", lambda: "too many clients" in (lab.refusal("postgres") or ""))
    last = look(lab)
    assert last.access.door == "replication"
    ledger = ledger_of(last)
    assert (ledger.used, ledger.own, ledger.free_superuser) == (20, 0, 0)
    assert [r.kind for r in last.refusals][:1] == ["slots-full"]


def test_a_role_that_sees_only_itself_gets_a_range(lab: Lab) -> None:
    lab.client("hold", user="alice", sessions=6).ready()
    seen = look(lab, "bob")
    ledger = ledger_of(seen)
    assert not seen.access.sees_all_sessions
    assert ledger.hidden == 6
    assert (ledger.used_at_least, ledger.used) == (1, 7)
    assert any("pg_read_all_stats" in g.reason for g in seen.gaps)


def test_one_session_and_it_leaves(lab: Lab) -> None:
    before = lab.used_slots
    held: list[int] = []

    def progress(_share: float, _word: str) -> None:
        held.append(lab.used_slots - before)

    observe(Request(dsn=lab.cluster.dsn(), observe_s=0.6), progress)
    assert held
    assert max(held) == 1
    lab.wait("our session to leave", lambda: lab.used_slots == before)


@pytest.mark.parametrize("user", ["postgres", "bob"])
def test_unfinished_log_ins_count_whoever_looks(lab: Lab, half_open: Callable[..., None], user: str) -> None:
    lab.client("hold", user=user, sessions=2).ready()
    half_open(4)
    with ExitStack() as stack:
        for _ in range(2):  # no start-up packet yet: a process, but no slot
            stack.enter_context(socket.create_connection(("127.0.0.1", lab.cluster.port)))
        lab.wait("the processes of those who say nothing", lambda: titles(lab)["connecting"] == 2)
        ledger = ledger_of(look(lab, user))
        assert titles(lab)["authenticating"] == 4
    assert (ledger.authenticating, ledger.used, ledger.used_at_least, ledger.hidden) == (4, 2 + 4 + 1, 7, 0)


def test_unfinished_replication_log_ins_take_no_slot(lab: Lab, half_open: Callable[..., None]) -> None:
    half_open(3)
    half_open(1, replication="database")
    half_open(1, replication="true")
    lab.wait("their titles", lambda: (titles(lab)["authenticating"], titles(lab)["walsender"]) == (3, 2))
    ledger = ledger_of(look(lab))
    # Up to 16 nothing in the catalogue tells them apart, and the ledger errs on the side of fewer free slots.
    unfinished = 3 if lab.cluster.major >= 17 else 5
    assert (ledger.authenticating, ledger.used) == (unfinished, unfinished + 1)


def test_server_full_of_unfinished_log_ins(lab: Lab) -> None:
    lab.client("hold", sessions=2).ready()
    flood = Process(
        [
            *(sys.executable, "-m", "pgvacancy.lab.half_open", "--port", str(lab.cluster.port)),
            *("--user", "report", "--sessions", "18"),
        ]
    )
    lab.processes.append(flood)
    flood.line()
    assert titles(lab)["authenticating"] == 18
    seen = look(lab)
    ledger = ledger_of(seen)
    assert seen.access.door == "replication"
    assert (ledger.authenticating, ledger.used, ledger.own, ledger.free_superuser) == (18, 20, 0, 0)
    assert [r.kind for r in seen.refusals][:1] == ["slots-full"]
