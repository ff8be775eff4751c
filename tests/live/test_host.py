"""Host evidence of a real server: processes, client processes, and peers that really vanish."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgvacancy.lab import netns
from pgvacancy.lab.cluster import Cluster
from pgvacancy.model.evidence import BackendProcess, HostEvidence
from pgvacancy.model.snapshot import Session
from pgvacancy.observe import host

CLIENT = """
import sys, psycopg
connection = psycopg.connect(sys.argv[1], autocommit=True)
print(connection.execute("SELECT inet_client_port()").fetchone()[0], flush=True)
sys.stdin.read()
"""
Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="module")
def cluster(pg_bin: Path | None) -> Iterator[Cluster]:
    settings = {"max_connections": "20", "listen_addresses": "*", "cluster_name": "a lab: x", "deadlock_timeout": "60s"}
    with Cluster(settings, pg_bin=pg_bin) as made:
        yield made


@pytest.fixture
def far() -> Iterator[netns.Namespace]:
    problem = netns.unavailable()
    if problem:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    with netns.Namespace() as made:
        yield made


def until(check: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if check():
            return
        time.sleep(0.02)
    pytest.fail(f"waited in vain until {what}")


def postmaster(cluster: Cluster) -> int:
    found = host.find_postmaster(port=cluster.port, host="127.0.0.1")
    assert found is not None
    return found


def watched(cluster: Cluster, between: Callable[[], object] = lambda: None) -> HostEvidence:
    watch = host.HostWatch.start(postmaster(cluster), cluster.port)
    between()
    evidence, gaps = watch.finish()
    assert evidence is not None
    assert not [g for g in gaps if g.probe != "host:pg_controldata"]
    return evidence


def port_of(connection: Connection) -> int:
    with socket.socket(fileno=os.dup(connection.fileno())) as s:
        return int(s.getsockname()[1])


def backend(evidence: HostEvidence, pid: int) -> BackendProcess:
    return next(b for b in evidence.backends if b.pid == pid)


def pid_of(connection: Connection) -> int:
    return connection.info.backend_pid


def rows_of(cluster: Cluster) -> tuple[Session, ...]:
    """The sessions as a sample from titles shows them."""
    return host.sample_from_backends(host.read_backends(postmaster(cluster)), taken_at=0.0).sessions


# --- the postmaster ---


def test_the_postmaster_is_found_by_every_way(cluster: Cluster) -> None:
    assert cluster.process is not None
    wanted = cluster.process.pid
    assert host.find_postmaster(port=cluster.port) == wanted
    assert host.find_postmaster(port=cluster.port, socket_dir=str(cluster.directory)) == wanted
    assert host.find_postmaster(port=cluster.port, data_directory=str(cluster.data)) == wanted
    with psycopg.connect(cluster.dsn()) as connection:
        assert host.find_postmaster(port=cluster.port, pid=pid_of(connection), host="127.0.0.1") == wanted


def test_another_server_is_not_taken_for_ours(cluster: Cluster) -> None:
    elsewhere = host.locate_postmaster(port=cluster.port, host="192.0.2.77")
    assert elsewhere.pid is None
    assert "not one of this machine's" in elsewhere.reason
    # A tunnel: the address is ours, but the backend that the server names is no process of this machine.
    tunnel = host.locate_postmaster(port=cluster.port, pid=os.getpid(), host="127.0.0.1")
    assert tunnel.pid is None
    assert "no PostgreSQL process of this machine" in tunnel.reason
    assert host.find_postmaster(port=1) is None
    assert host.find_postmaster(port=cluster.port, socket_dir="/nonexistent") is None
    assert host.find_postmaster(port=cluster.port, data_directory="/nonexistent") is None


def test_two_servers_with_one_port_differ_by_their_socket(cluster: Cluster, pg_bin: Path | None) -> None:
    with Cluster({"listen_addresses": "", "port": str(cluster.port)}, pg_bin=pg_bin) as second:
        assert second.process is not None
        assert host.find_postmaster(port=cluster.port, socket_dir=str(second.directory)) == second.process.pid
        assert cluster.process is not None
        assert host.find_postmaster(port=cluster.port, host=str(cluster.directory)) == cluster.process.pid
        assert host.find_postmaster(port=cluster.port, host="127.0.0.1") == cluster.process.pid


def test_the_log_is_standard_error_when_that_is_a_file(cluster: Cluster) -> None:
    assert host.server_log_path(postmaster(cluster)) == cluster.log
    with psycopg.connect(cluster.dsn()) as connection:
        assert host.server_log_path(pid_of(connection)) == cluster.log
    assert host.server_log_path(2**22 + 1) is None


# --- processes ---


def test_backends_are_what_pg_stat_activity_shows(cluster: Cluster) -> None:
    with (
        psycopg.connect(cluster.dsn(), autocommit=True) as idle,
        closing(psycopg.connect(cluster.dsn())) as waiting,
        psycopg.connect(cluster.socket_dsn()) as open_,
        psycopg.connect(cluster.dsn(replication="database"), autocommit=True) as sender,
        socket.create_connection(("127.0.0.1", cluster.port)),
    ):
        open_.execute("SELECT pg_advisory_xact_lock(1)")
        waiting.pgconn.send_query(b"SELECT pg_advisory_xact_lock(1)")
        until(lambda: any(s.wait_event_type == "Lock" for s in rows_of(cluster)), "the title says waiting")
        rows = {s.pid: s for s in rows_of(cluster)}
        truth = idle.execute(
            "SELECT pid, usename, datname, host(client_addr), client_port, backend_type,"
            " extract(epoch FROM backend_start)::float8 FROM pg_stat_activity WHERE backend_type IN"
            " ('client backend', 'walsender', 'checkpointer')"
        ).fetchall()
        for pid, user, database, address, port, kind, started in truth:
            row = rows[pid]
            assert row.backend_type == kind
            if kind != "checkpointer":
                assert (row.user, row.client_addr, row.client_port) == (user, address, port)
            if kind == "client backend":  # a walsender's title tells its database from some major after 15 on
                assert row.database == database
            assert row.backend_start_at == pytest.approx(started, abs=2.0)
        assert (rows[pid_of(idle)].state, rows[pid_of(open_)].state) == ("idle", "idle in transaction")
        assert (rows[pid_of(waiting)].state, rows[pid_of(waiting)].query) == ("active", "SELECT")
        assert rows[pid_of(sender)].backend_type == "walsender"
        slots = {s.pid for s in rows.values() if s.backend_type == "client backend"}
        assert slots == {r[0] for r in truth if r[5] == "client backend"}, "a silent socket holds no slot"
        assert {s.pid: s.backend_start_at for s in rows_of(cluster)} == {
            s.pid: s.backend_start_at for s in rows.values()
        }


def test_a_log_in_that_does_not_finish_is_authenticating(pg_bin: Path | None) -> None:
    with Cluster(
        {"max_connections": "8"}, pg_bin=pg_bin, hba=("local all all trust", "host all all all md5")
    ) as closed:
        with socket.create_connection(("127.0.0.1", closed.port)) as s:
            body = (196608).to_bytes(4, "big") + b"user\0postgres\0database\0postgres\0\0"
            s.sendall((len(body) + 4).to_bytes(4, "big") + body)
            assert s.recv(1) == b"R"
            found = host.read_backends(postmaster(closed))
        assert [(b.user, b.activity) for b in found if b.kind == "authenticating"] == [("postgres", "authentication")]
        sample = host.sample_from_backends(found, taken_at=0.0)
        assert [s.backend_type for s in sample.sessions if s.state == "starting"] == ["client backend"]


def test_used_and_unused_sessions_are_told_apart(cluster: Cluster) -> None:
    with psycopg.connect(cluster.dsn(), autocommit=True) as used, psycopg.connect(cluster.dsn()) as unused:
        until(
            lambda: {b.activity for b in host.read_backends(postmaster(cluster)) if b.user} == {"idle"},
            "both sessions rest",
        )
        evidence = watched(cluster, lambda: used.execute("SELECT 1"))
        assert backend(evidence, pid_of(used)).used is True
        assert backend(evidence, pid_of(unused)).used is False


def test_the_machine_is_described(cluster: Cluster) -> None:
    evidence = watched(cluster)
    assert evidence.cores == os.cpu_count()
    assert evidence.memory_bytes > 2**26
    assert evidence.data_directory == str(cluster.data)
    assert evidence.listen_backlog > 0
    assert evidence.listen_queue == 0
    if (cluster.bin / "pg_controldata").exists():
        assert evidence.control["max_connections setting"] == "20"
        assert evidence.control["Database cluster state"] == "in production"


def test_a_server_that_ends_meanwhile_is_a_gap(pg_bin: Path | None) -> None:
    with Cluster({"max_connections": "8"}, pg_bin=pg_bin) as short:
        watch = host.HostWatch.start(postmaster(short), short.port)
        short.stop()
        evidence, gaps = watch.finish()
    assert evidence is None
    assert [g.probe for g in gaps] == ["host"]


# --- clients and peers ---


def test_clients_on_this_machine_are_named(cluster: Cluster) -> None:
    command = [sys.executable, "-c", CLIENT, cluster.dsn(password="geheim")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        port = int(client.stdout.readline())
        found = {(c.address, c.port): c for c in watched(cluster).clients}
        client.stdin.close()
    assert found["127.0.0.1", port].pid == client.pid
    assert found["127.0.0.1", port].command.startswith("python")
    assert "geheim" not in repr(found)


def test_live_clients_on_loopback_are_not_gone(cluster: Cluster) -> None:
    with psycopg.connect(cluster.dsn()) as connection:
        found = host.peers([("127.0.0.1", port_of(connection)), ("127.0.0.1", 1)], cluster.port)
        assert [(p.port, p.tcp_state, p.gone) for p in found] == [(port_of(connection), "ESTABLISHED", False)]


def far_client(cluster: Cluster, far: netns.Namespace) -> int:
    dsn = f"host={far.host_address} port={cluster.port} user=postgres dbname=postgres"
    client = far.popen([sys.executable, "-c", CLIENT, dsn])
    assert client.stdout is not None
    return int(client.stdout.readline())


def test_a_peer_that_vanished_is_gone_and_a_live_one_is_not(cluster: Cluster, far: netns.Namespace) -> None:
    ports = {far_client(cluster, far), far_client(cluster, far)}
    sessions = [(far.address, port) for port in ports]
    alive = host.peers(sessions, cluster.port)
    assert {(p.address, p.port, p.gone) for p in alive} == {(far.address, port, False) for port in ports}
    far.cut()
    gone = host.peers(sessions, cluster.port)
    assert {(p.port, p.tcp_state, p.gone) for p in gone} == {(port, "ESTABLISHED", True) for port in ports}
    assert all("neighbour" in p.why or "route" in p.why for p in gone)
    far.mend()
    until(lambda: not any(p.gone for p in host.peers(sessions, cluster.port)), "the mended cable is believed")


def test_a_watch_that_began_early_hears_the_kernels_verdict(cluster: Cluster, far: netns.Namespace) -> None:
    port = far_client(cluster, far)
    far.cut()
    watch = host.HostWatch.start(postmaster(cluster), cluster.port)
    begun = time.monotonic()
    watch.watch_peers([(far.address, port), (None, -1)])
    until(lambda: time.monotonic() - begun > 2.8, "most of an observation window has passed")
    evidence, _ = watch.finish()
    assert evidence is not None
    assert [(p.gone, "EHOSTUNREACH" in p.why) for p in evidence.peers] == [(True, True)]
    assert evidence.forks_per_s is not None


def test_a_server_address_that_went_away_takes_its_sessions_along(cluster: Cluster, far: netns.Namespace) -> None:
    port = far_client(cluster, far)
    far.cut("delete")
    (peer,) = host.peers([(far.address, port)], cluster.port)
    assert peer.gone
    assert far.host_address in peer.why


def test_an_interface_that_is_switched_off_takes_its_sessions_along(cluster: Cluster, far: netns.Namespace) -> None:
    port = far_client(cluster, far)
    subprocess.run(["ip", "link", "set", "dev", far.device, "down"], check=True)
    (peer,) = host.peers([(far.address, port)], cluster.port)
    assert peer.gone
    assert far.device in peer.why


def test_what_a_dead_run_left_is_removed(far: netns.Namespace) -> None:
    name = f"{netns.PREFIX}{2**22 + 1}.1-3fff"
    subprocess.run(["ip", "netns", "add", name], check=True)
    netns.remove_stale()
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert name not in listed
    assert far.name in listed
