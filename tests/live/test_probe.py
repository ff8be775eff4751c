"""The wire probe on real servers: every limit truly reached, every way in, and strangers at the other end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgvacancy.lab.binaries import account
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


def missing(what: str) -> Any:
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
def german(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a German locale, made here: the machine need not have one."""
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/de_DE").exists():
        missing("no localedef or no locale sources (apt-get install locales)")
    directory = tmp_path_factory.mktemp("locales")
    subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", directory / "de_DE.UTF-8"], check=True)
    for path in (directory.parent.parent, directory.parent, directory, *directory.rglob("*")):
        path.chmod(path.stat().st_mode | 0o055 if path.is_dir() else 0o644)
    return directory


@pytest.fixture(scope="module", params=["chosen", "distribution", "german"])
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

    def hold(n: int, user: str, **parameters: str) -> None:
        open_.extend(psycopg.connect(cluster.dsn(user, **parameters), autocommit=True) for _ in range(n))

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


def test_reserves_and_the_full_server(cluster: Cluster, held: Callable[..., None]) -> None:
    reserved = 1 if cluster.major >= 16 else 0
    held(8 - 2 - reserved, "plain")
    if reserved:
        assert kind(knock(cluster)) == "reserved-for-role"
        held(1, "keeper")
        assert kind(knock(cluster, "keeper")) == "reserved-for-superuser"
    assert kind(knock(cluster)) == "reserved-for-superuser"
    assert knock(cluster, "postgres").admitted
    until(lambda: knock(cluster, "postgres").admitted)
    held(2, "postgres")
    assert kind(knock(cluster)) == "slots-full"
    assert kind(knock(cluster, "postgres")) == "slots-full"
    # Walsenders have slots of their own.
    assert knock(cluster, "repl", replication=True).admitted


def test_walsender_limit(cluster: Cluster, held: Callable[..., None]) -> None:
    held(2, "repl", replication="true")
    assert kind(knock(cluster, "repl", replication=True)) == "walsender-limit"
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


def test_unix_socket_and_authentication(pg_bin: Path | None) -> None:
    name = f"@pgvacancy-test-{os.getpid()}"
    hba = ("local all all trust", "host all plain 127.0.0.1/32 reject", "host all all 127.0.0.1/32 scram-sha-256")
    made = Cluster(SETTINGS, pg_bin=pg_bin, hba=hba)
    made.create()
    try:
        made.configure(unix_socket_directories=f"{made.directory}, {name}")
        made.start()
        people(made)
        by_path = probe(read_target(made.socket_dsn("plain")))
        assert (by_path.admitted, by_path.server_address) == (True, f"{made.directory}/.s.PGSQL.{made.port}")
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


# --- strangers ---


@contextlib.contextmanager
def stranger(*replies: bytes, hang: bool = False, greet: bool = False) -> Iterator[int]:
    """A service on loopback: takes what it gets and answers each connection with the next of ``replies``."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)

        def serve() -> None:
            for reply in replies:
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        if greet:
                            connection.sendall(reply)
                        connection.settimeout(DEADLINE_S)
                        connection.recv(4096)
                        if not greet:
                            connection.sendall(reply)
                        if hang:
                            done.wait(DEADLINE_S)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            done.set()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def ask(port: int, sslmode: str = "prefer", timeout_s: float = 1.0) -> ProbeResult:
    return probe(read_target(f"host=127.0.0.1 port={port} user=u sslmode={sslmode}"), timeout_s=timeout_s)


@pytest.mark.parametrize("sslmode", ["disable", "allow", "prefer", "require"])
@pytest.mark.parametrize(
    ("said", "name"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "HTTP"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "SSH"),
        (b"\x4a\x00\x00\x00\x0a8.0.36\x00\x01", "MySQL"),
        (os.urandom(3) + b"\x00" * 40, "not PostgreSQL"),
    ],
)
@pytest.mark.parametrize("greet", [True, False])
def test_a_stranger_is_named(said: bytes, name: str, sslmode: str, *, greet: bool) -> None:
    if said[:1] in b"SNERv" and not said.startswith(b"SSH"):
        said = b"\x00" + said
    with stranger(said, said, hang=True, greet=greet) as port:
        result = ask(port, sslmode)
    assert result.outcome == "not-postgres", result
    assert name.lower() in result.detail.lower()


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require"])
def test_silence_after_accept(sslmode: str) -> None:
    with stranger(b"", b"", hang=True) as port:
        result = ask(port, sslmode, timeout_s=0.3)
    assert result.outcome == "unreachable"
    assert "silence for 0.3 s" in result.detail
    assert result.elapsed_ms < 5_000


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require"])
def test_accepted_and_closed(sslmode: str) -> None:
    with stranger(b"", b"") as port:
        result = ask(port, sslmode)
    assert result.outcome == "unreachable"
    assert "closed" in result.detail


def test_a_fork_failure_in_place_of_the_answer_about_tls() -> None:
    said = b"Ecould not fork new process for connection: Resource temporarily unavailable\n\0"
    with stranger(said, greet=True) as port:
        assert kind(ask(port, "require")) == "fork-failed"


def test_a_name_that_does_not_resolve() -> None:
    result = probe(read_target("host=no-such-host.invalid user=u"), timeout_s=5)
    assert result.outcome == "unreachable"
    assert "no-such-host.invalid" in result.detail
    bad = probe(read_target(f"host={'a' * 70}..b user=u"))
    assert bad.outcome == "unreachable"


def test_a_full_accept_queue_of_a_socket(tmp_path: Path) -> None:
    path = tmp_path / ".s.PGSQL.5432"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)  # noqa: FBT003 - the standard library's signature
            with contextlib.suppress(BlockingIOError):
                client.connect(str(path))
        result = probe(read_target(f"host={tmp_path} user=u"))
    assert result.outcome == "unreachable"
    assert "accept queue is full" in result.detail


def test_no_answer_to_the_attempt_to_connect() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)  # noqa: FBT003 - the standard library's signature
            with contextlib.suppress(BlockingIOError):
                client.connect(listener.getsockname())
        result = ask(listener.getsockname()[1], timeout_s=0.3)
    assert result.outcome == "unreachable"
    assert "no answer to the attempt to connect" in result.detail


# --- PgBouncer ---


@pytest.fixture
def pooled(pg_bin: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        missing("no pgbouncer (apt-get install pgbouncer)")
    with make(pg_bin) as made:
        people(made)
        home = made.directory / "pooler"
        home.mkdir(mode=0o755)
        account().own(home)
        port = free_port()
        (home / "users.txt").write_text('"plain" ""\n"postgres" ""\n')
        (home / "pgbouncer.ini").write_text(
            "[databases]\n"
            f"shop = host=127.0.0.1 port={made.port} dbname=postgres\n"
            f"dead = host=127.0.0.1 port={free_port()}\n"
            f"full = host=127.0.0.1 port={made.port} dbname=small\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {home}\n"
            f"auth_type = trust\nauth_file = {home}/users.txt\nadmin_users = postgres\n"
            "max_client_conn = 3\nquery_wait_timeout = 1\n"
        )
        with subprocess.Popen(
            [program, home / "pgbouncer.ini"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **account().popen_options(),  # type: ignore[call-overload]
        ) as process:
            try:
                until(lambda: ask(port).outcome != "unreachable")
                yield home, port
            finally:
                process.kill()


def test_pgbouncer(pooled: tuple[Path, int]) -> None:
    home, port = pooled

    def through(database: str, user: str = "plain", host: str = "127.0.0.1", **options: Any) -> ProbeResult:
        return probe(read_target(f"host={host} port={port} user={user} dbname={database}"), **options)

    console = through("pgbouncer", "postgres")
    assert (console.outcome, console.looks_like_pooler) == ("free", True)
    assert "console" in console.detail
    # Its keys are random: one in a thousand looks like a process id, four in a row do not.
    entered = [through("shop", host=host) for host in ("127.0.0.1", str(home)) * 2]
    assert all(r.admitted for r in entered)
    assert any(r.looks_like_pooler for r in entered)

    unknown = through("nowhere")
    assert (kind(unknown), unknown.looks_like_pooler) == ("other", True)
    assert kind(through("dead")) in {"pooler-wait-timeout", "pooler-login-failing"}
    assert kind(through("full")) in {"database-limit", "pooler-wait-timeout", "pooler-login-failing"}
    silent = through("dead", timeout_s=0.3)
    assert silent.outcome == "unreachable" or kind(silent) == "pooler-login-failing"

    with contextlib.ExitStack() as stack:
        # Clients that have just left may still be counted.
        for _ in range(3):
            with contextlib.suppress(psycopg.OperationalError):
                stack.enter_context(psycopg.connect(f"host=127.0.0.1 port={port} user=plain dbname=shop"))
        until(lambda: through("shop").outcome == "refused")
        refused = through("shop")
        assert (kind(refused), refused.looks_like_pooler) == ("pooler-client-limit", True)
        assert refused.refusal is not None
        assert refused.refusal.sqlstate == "08P01"
