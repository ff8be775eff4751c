"""Bad weather: the doctor answers, or says in five lines why it cannot; it never falls over."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from pgvacancy.causes import diagnose
from pgvacancy.lab.cluster import Cluster
from pgvacancy.lab.lab import Lab
from pgvacancy.lab.pgbouncer import ADMIN, PgBouncer
from pgvacancy.model.errors import LoginError, PoolerError, UnreachableError
from pgvacancy.model.report import to_json
from pgvacancy.observe.observation import Request, observe


def test_every_slot_taken_and_no_right_to_replicate(lab: Lab) -> None:
    lab.client("hold", sessions=lab.ordinary_slots).ready()
    lab.client("hold", user="postgres", sessions=3).ready()
    lab.wait("every slot to be taken", lambda: "too many clients" in (lab.refusal("postgres") or ""))
    snapshot = observe(Request(dsn=lab.cluster.dsn("alice"), observe_s=0.3))
    report = to_json(diagnose(snapshot))
    assert report["access"]["door"] == "none"
    assert report["refusal"]["kind"] == "slots-full"
    assert report["severity"] == "critical"
    # We run on the server's machine: the process table still tells who holds the slots.
    assert report["ledger"]["used"] == 20


def test_elsewhere_nothing_but_the_refusal_is_known(lab: Lab) -> None:
    lab.client("hold", sessions=lab.ordinary_slots).ready()
    lab.client("hold", user="postgres", sessions=3).ready()
    lab.wait("every slot to be taken", lambda: "too many clients" in (lab.refusal("postgres") or ""))
    report = to_json(diagnose(observe(Request(dsn=lab.cluster.dsn("alice"), observe_s=0, host=False))))
    assert report["access"]["door"] == "none"
    assert report["ledger"] is None
    assert report["severity"] == "critical"
    assert report["not_checked"]


def test_a_pooler_that_cannot_be_read_is_said(lab: Lab) -> None:
    snapshot = observe(Request(dsn=lab.cluster.dsn(), poolers=("host=127.0.0.1 port=1 user=x",), observe_s=0))
    assert any(g.probe == "pooler" for g in snapshot.gaps)


def test_limits_are_read_from_the_machine_when_nobody_gets_in(lab: Lab) -> None:
    snapshot = observe(Request(dsn=lab.cluster.dsn(), host_only=True, observe_s=0))
    assert snapshot.server is not None
    assert snapshot.server.settings["max_connections"] == "20"
    assert snapshot.server.settings["superuser_reserved_connections"] == "3"


def test_another_door(lab: Lab) -> None:
    lab.client("hold", sessions=lab.ordinary_slots).ready()
    lab.wait_refused()
    request = Request(dsn=lab.cluster.dsn("alice"), other_dsns=(lab.cluster.dsn(),), observe_s=0)
    snapshot = observe(request)
    assert snapshot.access.door == "superuser"
    assert snapshot.access.role == "postgres"


def test_unknown_role_and_wrong_database(lab: Lab) -> None:
    with pytest.raises(LoginError, match="nobody_here"):
        observe(Request(dsn=lab.cluster.dsn("nobody_here"), observe_s=0))
    with pytest.raises(LoginError, match="no_such_db"):
        observe(Request(dsn=lab.cluster.dsn(database="no_such_db"), observe_s=0))


def test_activities_not_tracked(pg_bin: Path | None) -> None:
    with Cluster({"max_connections": "12", "track_activities": "off"}, pg_bin=pg_bin) as cluster:
        lab = Lab(cluster)
        lab.furnish()
        lab.client("hold", sessions=lab.ordinary_slots).ready()
        lab.wait_refused()
        report = to_json(diagnose(observe(Request(dsn=cluster.dsn(), observe_s=0.3))))
        lab.stop_clients()
    assert report["ledger"]["used"] == 10
    assert any("track_activities" in g["reason"] for g in report["gaps"])
    assert "idle-sessions" in {n["cause"] for n in report["not_checked"]}


def test_server_goes_away_while_we_look(pg_bin: Path | None) -> None:
    with Cluster({"max_connections": "12"}, pg_bin=pg_bin) as cluster:
        stopper = threading.Timer(0.6, lambda: cluster.stop(signal.SIGQUIT))
        stopper.start()
        snapshot = observe(Request(dsn=cluster.dsn(), observe_s=5))
        stopper.join()
        assert snapshot.interrupted is not None
        assert snapshot.samples
        to_json(diagnose(snapshot))
        with pytest.raises(UnreachableError):
            observe(Request(dsn=cluster.dsn(), observe_s=0))


def test_a_pooler_where_a_server_is_expected(lab: Lab) -> None:
    target = f"host=127.0.0.1 port={lab.cluster.port} dbname=app user=app"
    with PgBouncer({"app": target}, users=("app", "postgres")) as pooler:
        at = f"host=127.0.0.1 port={pooler.port}"
        console = observe(Request(dsn=f"{at} user={ADMIN} dbname=app", observe_s=0.3))
        assert not console.samples
        assert console.poolers[0].reachable
        assert any("pooler" in g.reason for g in console.gaps)
        with pytest.raises(PoolerError, match="--pgbouncer"):
            observe(Request(dsn=f"{at} user=app dbname=app", observe_s=0))
        # Nothing of ours may stay behind on a connection that others use next.
        assert lab.cluster.sql("SHOW default_transaction_read_only")[0][0] == "off"


def test_refusals_of_the_log_count_when_nothing_else_answers(pg_bin: Path | None) -> None:
    with Cluster({"max_connections": "12"}, pg_bin=pg_bin) as cluster:
        lab = Lab(cluster)
        lab.furnish()
        lab.client("hold", sessions=lab.ordinary_slots).ready()
        lab.wait_refused()
        lab.stop_clients()
        cluster.stop()
        report = to_json(diagnose(observe(Request(dsn=cluster.dsn(), logs=(cluster.log,), observe_s=0))))
    assert report["refusal"]["kind"] == "reserved-for-superuser"
    assert report["refusal"]["source"] == "log"
    assert report["severity"] == "critical"


def test_log_of_a_server_that_is_down(pg_bin: Path | None) -> None:
    with Cluster({"max_connections": "12"}, pg_bin=pg_bin) as cluster:
        cluster.stop()
        snapshot = observe(Request(dsn=cluster.dsn(), logs=(cluster.log,), observe_s=0))
    assert snapshot.log is not None
    assert not snapshot.refusals
    assert any("cannot be reached" in g.reason for g in snapshot.gaps)
