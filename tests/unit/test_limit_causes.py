"""The causes that are limits rather than holders: what decides in the corners that no live scenario reaches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pgvacancy.causes import diagnose, load
from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.model.diagnosis import Finding
from pgvacancy.model.evidence import HostEvidence, LogEvidence, PeerState, PoolerEvidence, RefusalCount
from pgvacancy.model.snapshot import Access, Database, Refusal, Role, Snapshot


def found(snap: Snapshot, slug: str, **values: float) -> Finding | None:
    diagnosis = diagnose(snap, {f"{slug}.{k}": v for k, v in values.items()}, (load(slug),))
    assert not diagnosis.crashed
    return next(iter(diagnosis.findings), None)


def role_refusal(name: str, source: Any = "probe") -> Refusal:
    message = f'too many connections for role "{name}"'
    return Refusal(sqlstate="53300", kind="role-limit", message=message, user=name, source=source)


def test_a_limit_of_minus_two_marks_an_invalid_database() -> None:
    srv = replace(server(100), databases=(Database(name="app", connection_limit=-2),))
    assert found(snapshot(srv, pool("web", 20)), "role-or-database-limit") is None


def test_a_role_shut_out_on_purpose_is_quiet_while_only_our_own_probe_is_refused() -> None:
    srv = server(100, roles=[Role(name="old", connection_limit=0)])
    snap = snapshot(srv, pool("web", 20), refusal=role_refusal("old"))
    assert found(snap, "role-or-database-limit") is None
    assert found(replace(snap, refusals=(role_refusal("old", "login"),)), "role-or-database-limit") is not None


def test_superusers_have_no_limit() -> None:
    srv = server(100, roles=[Role(name="app", superuser=True, connection_limit=5)])
    assert found(snapshot(srv, pool("web", 20)), "role-or-database-limit") is None


@pytest.mark.parametrize(("version_num", "fires"), [(160_006, True), (160_007, False), (180_000, False)])
def test_walsenders_count_against_a_role_up_to_the_minors_of_february_2025(version_num: int, *, fires: bool) -> None:
    srv = replace(server(100, roles=[Role(name="app", connection_limit=5)]), version_num=version_num)
    snap = snapshot(srv, pool("web", 3), pool("sub", 2, backend_type="walsender"))
    assert (found(snap, "role-or-database-limit") is not None) is fires


def test_a_full_server_is_the_larger_trouble_than_a_role_at_its_limit() -> None:
    srv = server(100, roles=[Role(name="report", connection_limit=3)])
    snap = snapshot(srv, pool("web", 97), pool("bi", 3, user="report"), refusal=role_refusal("report"))
    finding = found(snap, "role-or-database-limit")
    assert finding is not None
    assert finding.confidence < 0.5
    assert not finding.refusal_matches


def test_a_log_alone_names_the_role() -> None:
    log = LogEvidence(
        last_at=1000.0,
        recent_s=60.0,
        refusals=(
            RefusalCount(kind="role-limit", message='too many connections for role "web"', count=7, last_at=990.0),
        ),
    )
    finding = found(
        Snapshot(taken_at=5000.0, observed_s=0, access=Access(door="none"), log=log), "role-or-database-limit"
    )
    assert finding is not None
    assert "web" in finding.summary


def test_old_lines_of_a_standby_that_was_repaired_are_over() -> None:
    log = LogEvidence(standby_limit_lines=("recovery aborted because of insufficient parameter settings",))
    assert found(snapshot(server(100), pool("web", 3), log=log), "standby-limit") is None
    down = Snapshot(taken_at=0.0, observed_s=0, access=Access(door="none"), log=log)
    finding = found(down, "standby-limit")
    assert finding is not None
    assert finding.refusal_matches


def test_a_client_that_answers_is_not_dead_however_long_it_is_silent() -> None:
    peers = tuple(
        PeerState(address="10.0.0.1", port=20_000 + n, tcp_state="ESTABLISHED", why="the client's machine answers")
        for n in range(97)
    )
    snap = snapshot(server(100), pool("web", 97, idle_s=90_000), host=HostEvidence(peers=peers))
    assert found(snap, "dead-clients", min_idle_s=1) is None


def test_a_copy_that_advances_is_not_dead() -> None:
    reading = pool("loader", 97, state="active", idle_s=900, wait_event_type="Client", wait_event="ClientRead")
    working = [(replace(a, wait_event=None), b) for a, b in reading]
    assert found(snapshot(server(100), reading), "dead-clients") is not None
    assert found(snapshot(server(100), working), "dead-clients") is None


def test_a_pooler_that_cannot_be_read_is_no_evidence() -> None:
    silent = PoolerEvidence(target="10.0.0.5:6432", reachable=False, problem="connection refused")
    assert found(snapshot(server(100), pool("web", 20), poolers=(silent,)), "pooler-misfit") is None


def test_a_poolers_own_refusal_is_named_without_its_console() -> None:
    refusal = Refusal(
        sqlstate="08P01", kind="pooler-client-limit", message="no more connections allowed (max_client_conn)"
    )
    finding = found(snapshot(server(100), pool("web", 20), refusal=refusal), "pooler-misfit")
    assert finding is not None
    assert finding.remedies[0].slug == "raise-pooler-clients"


def test_monitors_backups_and_people_are_no_superuser_application() -> None:
    srv = server(100, roles=[Role(name="postgres", superuser=True)])
    groups = [pool(name, n, user="postgres") for name, n in (("pg_dump", 60), ("postgres_exporter", 38), ("psql", 2))]
    assert found(snapshot(srv, *groups), "superuser-application") is None
