"""The ledger against the truth told by another connection."""

from __future__ import annotations

import pytest

from pgvacancy.lab.lab import Lab
from pgvacancy.model.ledger import make_ledger
from pgvacancy.model.snapshot import Snapshot
from pgvacancy.observe.observation import Request, observe

pytestmark = pytest.mark.matrix


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
