"""Sessions that two causes could claim go to the right one, and advice names only what exists."""

from __future__ import annotations

import re
from dataclasses import replace

import click
import pytest

from pgvacancy import causes
from pgvacancy.causes import diagnose
from pgvacancy.causes._examples import NOW_AT, WINDOW_S, Pair, pool, server, snapshot
from pgvacancy.causes._locks import end_command
from pgvacancy.causes._poolers import example_pooler, wanted_size
from pgvacancy.cli.main import cli
from pgvacancy.model.evidence import ClientProcess, HostEvidence, PeerState
from pgvacancy.model.series import Case
from pgvacancy.model.snapshot import Access, Sample, Session, Snapshot

LOWERED = {"idle-in-transaction.min_idle_s": 2.0, "dead-clients.min_idle_s": 2.0, "idle-sessions.min_idle_s": 2.0}
OFFERED = re.compile(r"pgvacancy ([a-z]+)\b")
KNOWN = set(cli.list_commands(click.Context(cli)))


def found(observed: Snapshot, values: dict[str, float] | None = None) -> list[str]:
    return [f.cause for f in diagnose(observed, values or {}).findings]


def passing(known: int) -> Snapshot:
    """Sixteen sessions of two processes, all others at each reading; the clients of some of them are not known."""
    samples, clients, pid = [], [], 5000
    for n in range(13):
        at = NOW_AT - WINDOW_S + n * WINDOW_S / 12
        rows = []
        for m in range(16):
            pid += 1
            session = pool("shop", 1, user="web", client="127.0.0.1")[0][1]
            rows.append(
                replace(
                    session,
                    pid=pid,
                    client_port=pid,
                    backend_start_at=at - 0.1,
                    state_change_at=at - 0.08,
                    query_start_at=at - 0.08,
                )
            )
            if m < known:
                clients.append(ClientProcess(address="127.0.0.1", port=pid, pid=100 + m % 2, command="python"))
        samples.append(Sample(taken_at=at, sessions=tuple(rows)))
    base = snapshot(server(20), sessions_per_s=64)
    samples[0] = replace(samples[0], counters=base.samples[0].counters)
    samples[-1] = replace(samples[-1], counters=base.samples[-1].counters)
    return replace(base, samples=tuple(samples), host=HostEvidence(clients=tuple(clients)))


@pytest.mark.parametrize("known", [0, 7, 12, 16])
def test_sessions_that_come_and_go_are_no_pools(known: int) -> None:
    assert found(passing(known)) == ["no-pooling"]


def working(clients: int, size: int, unused: int) -> Snapshot:
    """A full server: some clients, nearly all of whose sessions are used."""
    groups: list[list[Pair]] = []
    for n in range(clients):
        groups.append(pool("svc", size - unused, client=f"10.0.0.{n}", idle_s=(0, 1), age_s=900, used=True))
        groups.append(pool("svc", unused, client=f"10.0.0.{n}", idle_s=(4, 9), age_s=900))
    return snapshot(server(clients * size + 3), *groups, pool("svc", 1, client="10.0.0.0", idle_s=0, used=True))


@pytest.mark.parametrize("unused", [0, 1, 2])
def test_pools_with_little_to_spare_are_not_oversized(unused: int) -> None:
    assert "oversized-pools" not in found(working(4, 12, unused))


def test_dead_clients_claim_what_sits_in_a_transaction_too() -> None:
    pairs = pool(
        "loader", 98, client="10.9.0.7", state="idle in transaction", idle_s=(30, 40), xact_start_at=NOW_AT - 50
    )
    gone = tuple(
        PeerState(address="10.9.0.7", port=s.client_port or 0, tcp_state="ESTABLISHED", gone=True, why="no route")
        for _, s in pairs
    )
    observed = snapshot(server(100), pairs)
    assert found(observed, LOWERED)[:1] == ["idle-in-transaction"]
    assert found(replace(observed, host=HostEvidence(peers=gone)), LOWERED) == ["dead-clients"]


def test_a_session_is_ended_only_in_the_state_it_was_seen_in() -> None:
    root = Session(
        pid=7,
        state="idle in transaction",
        backend_start_at=NOW_AT - 9.000001,
        xact_start_at=NOW_AT - 5.25,
        state_change_at=NOW_AT - 4.5,
    )
    command = end_command(root)
    assert "pid = 7 AND state LIKE 'idle in transaction%'" in command
    assert "backend_start = to_timestamp(1799999990.999999)" in command
    assert "xact_start = to_timestamp(1799999994.750000)" in command
    resting = end_command(replace(root, state="idle", xact_start_at=None))
    assert "state = 'idle' AND" in resting
    assert "state_change = to_timestamp(1799999995.500000)" in resting


def test_the_size_of_a_pool_follows_from_who_waits() -> None:
    waiting = example_pooler(20, size=2)
    roomy = Case(snapshot(server(100), pool("web", 10, used=True)))
    tight = Case(snapshot(server(20), pool("web", 10, used=True)))
    unknown = Case(replace(roomy.snapshot, server=None, samples=()))
    full = Case(snapshot(server(20), pool("web", 17, used=True)))
    assert wanted_size(roomy, waiting.pools[0], 2)[0] == 22
    assert wanted_size(tight, waiting.pools[0], 2)[0] == 2 + 7 - 1
    assert "cut to what fits" in wanted_size(tight, waiting.pools[0], 2)[1]
    size, why = wanted_size(unknown, waiting.pools[0], 2)
    assert size == 22
    assert "not known" in why
    assert wanted_size(full, waiting.pools[0], 2)[0] == 2


def hidden_but(visible: int, hidden: int) -> Snapshot:
    base = snapshot(server(100), pool("web", visible, user="alice", idle_s=(300, 300.5)))
    rows = tuple(
        Session(pid=90_000 + n, user="other", database="app", backend_type=None, hidden=True) for n in range(hidden)
    )
    samples = tuple(replace(s, sessions=(*s.sessions, *rows)) for s in base.samples)
    return replace(base, samples=samples, access=Access(door="ordinary", role="alice"))


def test_silence_about_hidden_sessions_is_no_verdict() -> None:
    diagnosis = diagnose(hidden_but(3, 95), {})
    reasons = {n.cause: n.reason for n in diagnosis.not_checked}
    assert not diagnosis.findings
    assert {"idle-sessions", "lock-pileup", "limit-too-small", "traffic-spike", "connection-leak"} <= set(reasons)
    for cause in ("idle-sessions", "lock-pileup", "limit-too-small"):
        assert 'GRANT pg_read_all_stats TO "alice"' in reasons[cause]
        assert "--observe" not in reasons[cause]


def test_what_is_seen_counts_though_others_are_hidden() -> None:
    assert found(hidden_but(70, 28), LOWERED) == ["idle-sessions"]
    assert not [n for n in diagnose(hidden_but(98, 0), LOWERED).not_checked if "GRANT" in n.reason]


def test_each_reason_is_what_is_really_missing() -> None:
    full = snapshot(server(100), pool("web", 98, used=True))
    once = {n.cause: n.reason for n in diagnose(replace(full, samples=full.samples[-1:]), {}).not_checked}
    assert "--observe" in once["limit-too-small"]
    titles = replace(full, samples=tuple(replace(s, source="host") for s in full.samples))
    reasons = {n.cause: n.reason for n in diagnose(titles, {}).not_checked}
    assert "--observe" not in reasons["limit-too-small"]
    assert "pg_stat_activity" in reasons["limit-too-small"]
    untracked = snapshot(server(100), pool("web", 98, state="disabled"))
    reasons = {n.cause: n.reason for n in diagnose(untracked, {}).not_checked}
    assert "track_activities" in reasons["traffic-spike"]
    assert "--observe" not in reasons["traffic-spike"]


@pytest.mark.parametrize("slug", causes.slugs())
def test_only_commands_that_exist_are_offered(slug: str) -> None:
    cause = causes.load(slug)
    assert set(OFFERED.findall(cause.page)) <= KNOWN
    for example in cause.examples:
        for finding in diagnose(example.build(), {}).findings:
            for advice in finding.remedies:
                assert set(OFFERED.findall(f"{advice.command} {advice.why}")) <= KNOWN, advice
