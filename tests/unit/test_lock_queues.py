"""Lock queues walked to their roots, on small hand-made readings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgvacancy.causes._locks import PREPARED, piles, waits
from pgvacancy.model.snapshot import Sample, Session


def waiter(pid: int, *blocked_by: int, wait_event: str = "transactionid", lock_mode: str = "ShareLock") -> Session:
    return Session(
        pid=pid,
        state="active",
        wait_event_type="Lock",
        wait_event=wait_event,
        lock_mode=lock_mode,
        blocked_by=blocked_by,
    )


def holder(pid: int, state: str = "idle in transaction") -> Session:
    return Session(pid=pid, state=state)


def reading(*sessions: Session) -> Sample:
    return Sample(taken_at=100.0, sessions=sessions)


def test_a_chain_ends_at_the_one_who_does_not_wait() -> None:
    (pile,) = piles(reading(holder(1), waiter(2, 1), waiter(3, 2), waiter(4, 3)))
    assert pile.root_pids == (1,)
    assert [s.pid for s in pile.waiters] == [2, 3, 4]
    assert pile.gate is None


def test_a_waiting_ddl_is_the_gate() -> None:
    ddl = waiter(2, 1, wait_event="relation", lock_mode="AccessExclusiveLock")
    (pile,) = piles(reading(holder(1, "active"), ddl, *(waiter(n, 2, wait_event="relation") for n in range(3, 9))))
    assert pile.gate == ddl
    assert pile.behind_gate == 6


def test_the_first_of_a_row_queue_is_no_gate() -> None:
    first = waiter(2, 1, wait_event="transactionid")
    queue = [waiter(n, 2, wait_event="tuple", lock_mode="ExclusiveLock") for n in range(3, 9)]
    (pile,) = piles(reading(holder(1), first, *queue))
    assert pile.gate is None


def test_a_prepared_transaction_is_pid_zero() -> None:
    (pile,) = piles(reading(waiter(2, PREPARED), waiter(3, 2)))
    assert pile.root_pids == (PREPARED,)
    assert pile.roots == ()


def test_two_roots_of_the_same_queue_make_one_pile() -> None:
    (pile,) = piles(reading(holder(1), holder(2), waiter(3, 1, 2), waiter(4, 3)))
    assert pile.root_pids == (1, 2)


def test_waiters_beyond_those_resolved_join_the_longest_queue() -> None:
    (pile,) = piles(reading(holder(1), waiter(2, 1), waiter(3, 1), waiter(9)))
    assert [s.pid for s in pile.waiters] == [2, 3, 9]


@given(st.lists(st.tuples(st.integers(1, 12), st.frozensets(st.integers(0, 12), max_size=4)), max_size=12))
def test_any_graph_gives_each_waiter_at_most_one_queue(edges: list[tuple[int, frozenset[int]]]) -> None:
    sessions = {pid: waiter(pid, *sorted(blockers)) for pid, blockers in edges}
    found = piles(reading(*sessions.values()))
    pids = [s.pid for p in found for s in p.waiters]
    assert len(pids) == len(set(pids))
    assert all(waits(s) for p in found for s in p.waiters)
