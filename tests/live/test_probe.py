"""The wire probe on real servers: every limit truly reached, every way in, and strangers at the other end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pytest

from pgvacancy.lab.binaries import account, lab_root
from pgvacancy.lab.cluster import Cluster, free_port
from pgvacancy.observe.postgres.conninfo import read_target
from pgvacancy.observe.postgres.probe import ProbeResult, probe

DEADLINE_S = 10.0
SETTINGS = {
    "max_connections": "8",
    "superuser_reserved_connections": "2",
    "max_wal_senders": "2",
    "wal_level": "replica",
    "log_connections": "on",
}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition did not come about"
        time.sleep(0.02)


def missing(what: str) -> NoReturn:
    """Skip at a desk, fail on CI."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(what)
    pytest.skip(what)


def distribution_server() -> Path:
    """A server of the distribution: the one built with TLS and with translations."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
    return found[-1].parent if found else missing("no PostgreSQL of the distribution (apt-get install postgresql)")


def make(pg_bin: Path | None, **settings: str) -> Cluster:
    cluster = Cluster({**SETTINGS, **settings}, pg_bin=pg_bin)
    if cluster.major >= 16:
        cluster.settings["reserved_connections"] = "1"
    return cluster


def people(cluster: Cluster) -> None:
    cluster.sql(
        "CREATE ROLE plain LOGIN",
        "CREATE ROLE lim LOGIN CONNECTION LIMIT 0",
        "CREATE ROLE keeper LOGIN",
        "CREATE ROLE repl LOGIN REPLICATION",
        "CREATE ROLE secret LOGIN PASSWORD 'geheim'",
    )
    cluster.sql("CREATE DATABASE small CONNECTION LIMIT 0")
    if cluster.major >= 16:
        cluster.sql("GRANT pg_use_reserved_connections TO keeper")


@pytest.fixture(scope="module")
def german() -> Iterator[Path]:
    """A directory with a German locale, made here: the machine need not have one."""
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/de_DE").exists():
        missing("no localedef or no locale sources (apt-get install locales)")
    directory = Path(tempfile.mkdtemp(prefix="locale-", dir=lab_root()))
    directory.chmod(0o755)
    try:
        subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", directory / "de_DE.UTF-8"], check=True)
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module", params=[pytest.param("chosen", marks=pytest.mark.matrix), "distribution", "german"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if request.param == "chosen":
        made = make(request.getfixturevalue("pg_bin"))
    elif request.param == "distribution":
        made = make(distribution_server())
    else:
        made = make(distribution_server(), lc_messages="de_DE.UTF-8")
        os.environ["LOCPATH"] = str(request.getfixturevalue("german"))
    try:
        with made:
            people(made)
            yield made
    finally:
        os.environ.pop("LOCPATH", None)


def knock(cluster: Cluster, user: str = "plain", database: str = "postgres", **options: Any) -> ProbeResult:
    return probe(read_target(cluster.dsn(user, database)), **options)


def kind(result: ProbeResult) -> str:
    assert result.outcome == "refused", result
    assert result.refusal is not None
    return result.refusal.kind


def sessions(cluster: Cluster) -> int:
    ((count,),) = cluster.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender') "
        "AND pid <> pg_backend_pid()"
    )
    return int(count)


@pytest.fixture
def held(cluster: Cluster) -> Iterator[Callable[..., None]]:
    """Opens sessions; closes them at the end and waits until their slots are free."""
    open_: list[psycopg.Connection[Any]] = []

    def entered(user: str, parameters: dict[str, str]) -> bool:
        try:
            open_.append(psycopg.connect(cluster.dsn(user, **parameters), autocommit=True))
        except psycopg.OperationalError:
            return False
        return True

    def hold(n: int, user: str, **parameters: str) -> None:
        # A session that has just said good-bye, a probe's too, keeps its slot until its process has ended.
        for _ in range(n):
            until(lambda: entered(user, parameters))

    until(lambda: sessions(cluster) == 0)
    yield hold
    for connection in open_:
        connection.close()
    until(lambda: knock(cluster, "postgres").admitted and sessions(cluster) == 0)


def test_free_and_no_session_kept(cluster: Cluster) -> None:
    result = knock(cluster)
    assert (result.outcome, result.admitted, result.looks_like_pooler, result.tls) == ("free", True, False, False)
    assert result.server_address == f"127.0.0.1:{cluster.port}"
    assert "does not prove an ordinary slot" in knock(cluster, "postgres").detail
    assert "walsender slot was free" in knock(cluster, "repl", replication=True).detail
    until(lambda: sessions(cluster) == 0)


def test_limits_of_role_and_database(cluster: Cluster) -> None:
    assert kind(knock(cluster, "lim")) == "role-limit"
    assert kind(knock(cluster, "plain", "small")) == "database-limit"
    assert knock(cluster, "lim").refusal.sqlstate == "53300"  # type: ignore[union-attr]


def test_unknown_role_and_database_prove_a_slot(cluster: Cluster) -> None:
    for result in (knock(cluster, "nobody"), knock(cluster, "plain", "nowhere")):
        assert (result.outcome, result.admitted) == ("free", False)
        assert "the log-in failed after one was taken" in result.detail


def comes(cluster: Cluster, wanted: str, user: str = "plain", **options: Any) -> None:
    """Wait for a refusal of that kind: processes that are just ending still count."""

    def seen() -> bool:
        result = knock(cluster, user, **options)
        return result.refusal is not None and result.refusal.kind == wanted

    until(seen)


def test_reserves_and_the_full_server(cluster: Cluster, held: Callable[..., None]) -> None:
    reserved = 1 if cluster.major >= 16 else 0
    held(8 - 2 - reserved, "plain")
    if reserved:
        comes(cluster, "reserved-for-role")
        held(1, "keeper")
        comes(cluster, "reserved-for-superuser", "keeper")
    comes(cluster, "reserved-for-superuser")
    until(lambda: knock(cluster, "postgres").admitted)
    held(2, "postgres")
    comes(cluster, "slots-full")
    assert kind(knock(cluster, "postgres")) == "slots-full"
    # Walsenders have slots of their own.
    assert knock(cluster, "repl", replication=True).admitted


def test_walsender_limit(cluster: Cluster, held: Callable[..., None]) -> None:
    held(2, "repl", replication="true")
    comes(cluster, "walsender-limit", "repl", replication=True)
    assert knock(cluster).admitted


def test_cap_on_processes_is_told_from_taken_slots(cluster: Cluster) -> None:
    with contextlib.ExitStack() as stack:
        result = knock(cluster)
        in_a_row = 0
        # A process that is just ending counts too: once refused is not yet full.
        for _ in range(90):
            stack.enter_context(socket.create_connection(("127.0.0.1", cluster.port)))
            result = knock(cluster)
            in_a_row = in_a_row + 1 if result.outcome == "refused" else 0
            if in_a_row == 5:
                break
        assert kind(result) == "slots-full"
        assert "cap on server processes" in result.detail
    until(lambda: knock(cluster).admitted)


def test_server_that_cannot_fork(cluster: Cluster) -> None:
    assert cluster.process is not None

    def limit(soft: str) -> None:
        # Only its own account may limit a process without further privileges; the hard limit stays as it is.
        subprocess.run(
            ["prlimit", f"--pid={cluster.process.pid}", f"--nproc={soft}:"],  # type: ignore[union-attr]
            check=True,
            **account().popen_options(),  # type: ignore[call-overload]
        )

    before = Path(f"/proc/{cluster.process.pid}/limits").read_text().split("Max processes")[1].split()[0]
    limit("0")
    try:
        result = knock(cluster)
    finally:
        limit(before)
    assert kind(result) == "fork-failed"
    assert result.refusal is not None
    assert result.refusal.sqlstate is None
    assert not result.looks_like_pooler
    assert knock(cluster).admitted


def test_stopped_server_is_silent(cluster: Cluster) -> None:
    assert cluster.process is not None
    cluster.process.send_signal(signal.SIGSTOP)
    try:
        result = knock(cluster, timeout_s=0.3)
    finally:
        cluster.process.send_signal(signal.SIGCONT)
    assert result.outcome == "unreachable"
    assert "silence for 0.3 s" in result.detail


@pytest.mark.matrix
def test_unix_socket_and_authentication(pg_bin: Path | None) -> None:
    name = f"@pgvacancy-test-{os.getpid()}"
    hba = ("local all all trust", "host all plain 127.0.0.1/32 reject", "host all all 127.0.0.1/32 scram-sha-256")
    made = Cluster(SETTINGS, pg_bin=pg_bin, hba=hba)
    made.create()
    try:
        abstract = made.major >= 14
        if abstract:
            made.configure(unix_socket_directories=f"{made.directory}, {name}")
        made.start()
        people(made)
        by_path = probe(read_target(made.socket_dsn("plain")))
        assert (by_path.admitted, by_path.server_address) == (True, f"{made.directory}/.s.PGSQL.{made.port}")
        if abstract:
            assert probe(read_target(f"host={name} port={made.port} user=plain dbname=postgres")).admitted
        # Over a socket TLS is never asked for, whatever sslmode says.
        assert probe(read_target(f"{made.socket_dsn('plain')} sslmode=verify-full")).admitted

        asked = knock(made, "secret")
        assert (asked.outcome, asked.admitted) == ("free", False)
        assert "before authentication (SASL)" in asked.detail
        no_line = knock(made, "plain")
        assert (no_line.outcome, no_line.admitted, no_line.looks_like_pooler) == ("free", False, False)
        assert "28000" in no_line.detail

        gone = probe(read_target(f"host={made.directory} port=1 user=plain"))
        assert gone.outcome == "unreachable"
        assert "there is no socket" in gone.detail
    finally:
        made.destroy()


@pytest.mark.matrix
def test_shutting_down_and_gone(pg_bin: Path | None) -> None:
    with make(pg_bin) as made:
        with psycopg.connect(made.dsn()):
            assert made.process is not None
            made.process.send_signal(signal.SIGTERM)
            until(lambda: knock(made).outcome == "starting-up")
            result = knock(made)
            assert result.refusal is not None
            assert (result.refusal.kind, result.refusal.sqlstate) == ("starting-up", "57P03")
        made.process.wait(DEADLINE_S)
        result = knock(made)
        assert result.outcome == "unreachable"
        assert "connection refused" in result.detail


def test_several_hosts(pg_bin: Path | None) -> None:
    closed = free_port()
    with make(pg_bin) as made:
        target = read_target(f"host=127.0.0.1,localhost port={closed},{made.port} user=postgres")
        result = probe(target)
        assert result.admitted
        assert result.server_address.startswith(f"localhost:{made.port}")
    result = probe(read_target(f"host=127.0.0.1,127.0.0.2 port={closed},{closed} user=x"))
    assert result.outcome == "unreachable"
    assert result.detail.count("connection refused") == 2
