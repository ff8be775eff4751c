"""The reader against a real PgBouncer in front of a real server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from pgvacancy.lab.cluster import Cluster
from pgvacancy.lab.pgbouncer import ADMIN, PgBouncer
from pgvacancy.observe.pgbouncer import PoolerReader, detect, has_console, is_pgbouncer, read_pooler


@pytest.fixture(scope="module", autouse=True)
def _pgbouncer_is_installed() -> None:
    if shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") is None:
        reason = "pgbouncer is not installed"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def cluster(pg_bin: Path | None) -> Iterator[Cluster]:
    with Cluster({"max_connections": "20"}, pg_bin=pg_bin) as made:
        yield made


@pytest.fixture
def pooler(cluster: Cluster) -> Iterator[PgBouncer]:
    settings = {"default_pool_size": "2", "max_client_conn": "12"}
    target = {"app": f"host=127.0.0.1 port={cluster.port} dbname=postgres"}
    with PgBouncer(target, settings, users=("postgres", "bob")) as made:
        yield made


def crowd(stack: ExitStack, pooler: PgBouncer, *, working: int, waiting: int) -> None:
    """Clients that keep a server connection, and clients that queue for one."""
    for n in range(working + waiting):
        connection = psycopg.connect(pooler.dsn())
        stack.callback(connection.close)
        if n < working:
            connection.execute("SELECT 1")
        else:
            connection.pgconn.send_query(b"SELECT 1")


def test_clients_that_wait_are_seen_at_every_reading(cluster: Cluster, pooler: PgBouncer) -> None:
    with ExitStack() as stack:
        crowd(stack, pooler, working=2, waiting=8)
        stack.enter_context(psycopg.connect(pooler.dsn(), autocommit=True))
        found = read_pooler(pooler.admin_dsn(), readings=3, interval_s=0.1)
        held = cluster.sql("SELECT pid FROM pg_stat_activity WHERE client_port > 0 AND backend_type = 'client backend'")
    assert (found.reachable, found.problem) == (True, "")
    assert found.version[0] in "123456789"
    assert found.waiting_samples == (8, 8, 8)
    (pool,) = found.pools
    assert (pool.database, pool.user, pool.mode, pool.pool_size) == ("app", "postgres", "transaction", 2)
    assert (pool.clients_active, pool.clients_waiting, pool.servers_active) == (3, 8, 2)
    assert pool.max_wait_s > 0
    assert found.config["max_client_conn"] == "12"
    assert found.clients == 12, "eleven and the console"
    assert found.idle_clients == 1
    assert found.server_addresses == (f"127.0.0.1:{cluster.port}",)
    assert set(found.server_pids) == {pid for (pid,) in held}
    assert found.wait_s_per_s is not None
    assert found.busy_servers is not None


def test_the_console_opens_when_no_client_gets_in(pooler: PgBouncer) -> None:
    with ExitStack() as stack:
        crowd(stack, pooler, working=2, waiting=10)
        with pytest.raises(psycopg.OperationalError, match="max_client_conn"):
            psycopg.connect(pooler.dsn())
        found = read_pooler(pooler.admin_dsn(), readings=1)
    assert (found.reachable, found.clients, found.config["max_client_conn"]) == (True, 13, "12")


def test_a_dsn_of_an_ordinary_database_leads_to_the_console_all_the_same(pooler: PgBouncer) -> None:
    assert read_pooler(pooler.dsn(ADMIN, options="-cgeqo=off"), readings=1).problem == ""


def test_who_may_not_use_the_console_is_told_what_to_change(pooler: PgBouncer) -> None:
    found = read_pooler(pooler.dsn("bob"))
    assert not found.reachable
    assert "admin_users or stats_users" in found.problem
    assert "\n" not in found.problem


def test_a_wrong_password_is_a_problem_and_never_shown(cluster: Cluster) -> None:
    target = {"app": f"host=127.0.0.1 port={cluster.port} dbname=postgres"}
    with PgBouncer(target, {"auth_type": "md5"}, users={ADMIN: "right"}) as pooler:
        found = read_pooler(pooler.dsn(ADMIN, password="geheim"))
        assert read_pooler(pooler.dsn(ADMIN, password="right"), readings=1).reachable
    assert not found.reachable
    assert "authentication failed" in found.problem
    assert "geheim" not in repr(found)


def test_a_server_is_not_taken_for_a_pooler(cluster: Cluster) -> None:
    found = read_pooler(cluster.dsn())
    assert not found.reachable
    assert "not a PgBouncer" in found.problem
    cluster.sql("CREATE DATABASE pgbouncer")
    assert "not a PgBouncer" in read_pooler(cluster.dsn()).problem


def test_nobody_there_is_a_problem() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        refused = read_pooler(f"host=127.0.0.1 port={port} user=x")
        s.listen()
        silent = read_pooler(f"host=127.0.0.1 port={port} user=x", connect_timeout_s=2)
    assert "refused" in refused.problem
    assert silent.problem == "no answer within 2 s"
    assert not silent.reachable


def test_a_pooler_that_hangs_is_left_alone_in_time(pooler: PgBouncer) -> None:
    reader = PoolerReader(pooler.admin_dsn(), answer_timeout_s=0.3)
    assert reader.open()
    assert reader.read()
    assert pooler.process is not None
    pooler.process.send_signal(signal.SIGSTOP)
    try:
        assert not reader.read()
        found = reader.finish()
    finally:
        pooler.process.send_signal(signal.SIGCONT)
    assert found.problem == "no answer to SHOW POOLS within 0.3 s"
    assert found.reachable
    assert found.pools == ()
    assert found.waiting_samples == (0,)


def test_a_pooler_that_goes_away_leaves_what_was_read(pooler: PgBouncer) -> None:
    with ExitStack() as stack:
        crowd(stack, pooler, working=2, waiting=1)
        reader = PoolerReader(pooler.admin_dsn())
        assert reader.open()
        assert reader.read()
        pooler.stop()
        assert not reader.read()
    found = reader.finish()
    assert (found.reachable, found.waiting_samples) == (True, (1,))
    assert "went away" in found.problem


def test_a_pooler_is_told_from_a_server(cluster: Cluster, pooler: PgBouncer) -> None:
    with psycopg.connect(cluster.dsn(), autocommit=True) as direct:
        assert detect(direct) == "server"
        assert not is_pgbouncer(direct)
    with psycopg.connect(cluster.dsn(replication="database"), autocommit=True) as sender:
        assert detect(sender) == "server"
    with psycopg.connect(pooler.dsn(), autocommit=True) as through:
        assert detect(through) == "pooler"
    with psycopg.connect(pooler.admin_dsn(), autocommit=True) as console:
        assert detect(console) == "console"
    assert has_console(pooler.admin_dsn())
    assert not has_console(cluster.dsn())


def test_a_private_pooler_leaves_nothing_behind(cluster: Cluster) -> None:
    with PgBouncer({"app": f"host=127.0.0.1 port={cluster.port} dbname=postgres"}) as pooler:
        assert pooler.process is not None
        pid, directory = pooler.process.pid, pooler.directory
        with psycopg.connect(pooler.dsn()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not directory.exists()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
