"""The wire probe over TLS: every sslmode, with certificates made for the occasion."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pytest

from pgvacancy.lab.binaries import account
from pgvacancy.lab.cluster import Cluster, free_port
from pgvacancy.observe.postgres.conninfo import read_target
from pgvacancy.observe.postgres.probe import ProbeResult, probe

SLOTS = 12


@dataclass(frozen=True)
class Shop:
    """A server with TLS, and the files its clients may be given."""

    cluster: Cluster
    files: Path

    def knock(self, *, user: str = "plain", host: str = "localhost", **options: Any) -> ProbeResult:
        words = " ".join(f"{k}={v}" for k, v in options.items())
        return probe(
            read_target(f"host={host} hostaddr=127.0.0.1 port={self.cluster.port} user={user} dbname=postgres {words}")
        )

    def received(self) -> int:
        return self.cluster.log.read_text().count("connection received")


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def certify(directory: Path, name: str, common_name: str) -> None:
    """A key and a certificate signed by the directory's authority."""
    key, request, certificate = (directory / f"{name}.{end}" for end in ("key", "csr", "crt"))
    openssl(
        "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={common_name}"
    )
    extension = directory / f"{name}.ext"
    extension.write_text(f"subjectAltName=DNS:{common_name}\n")
    signed: list[str | Path] = [
        "-CA",
        directory / "ca.crt",
        "-CAkey",
        directory / "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
    ]
    openssl("x509", "-req", "-in", request, "-out", certificate, "-extfile", extension, *signed)


def authority(directory: Path, name: str) -> None:
    key, certificate = directory / f"{name}.key", directory / f"{name}.crt"
    made: list[str | Path] = ["-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2"]
    openssl("req", "-x509", *made, "-subj", f"/CN=pgvacancy test {name}")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    authority(directory, "ca")
    authority(directory, "other")
    certify(directory, "server", "localhost")
    certify(directory, "client", "plain")
    return directory


def built_with_tls() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
    if not found:
        missing("no PostgreSQL of the distribution, which is the one built with TLS (apt-get install postgresql)")
    return found[-1].parent


def missing(reason: str) -> NoReturn:
    """Skip at a desk, fail on CI."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def shop(files: Path) -> Iterator[Shop]:
    hba = (
        "local all all trust",
        "hostssl all certified all cert map=any",
        "hostssl all scram all scram-sha-256",
        "hostssl all all all trust",
        "hostnossl all open all trust",
    )
    settings = {"max_connections": str(SLOTS), "superuser_reserved_connections": "2", "log_connections": "on"}
    cluster = Cluster(settings, pg_bin=built_with_tls(), hba=hba)
    cluster.create()
    try:
        for name in ("server.key", "server.crt", "ca.crt"):
            copy = cluster.data / name
            copy.write_bytes((files / name).read_bytes())
            copy.chmod(0o600)
            account().own(copy)
        (cluster.data / "pg_ident.conf").write_text("any plain certified\n")
        cluster.configure(ssl="on", ssl_ca_file="ca.crt")
        cluster.start()
        cluster.sql("CREATE ROLE plain LOGIN", "CREATE ROLE open LOGIN", "CREATE ROLE certified LOGIN")
        yield Shop(cluster, files)
    finally:
        cluster.destroy()


@pytest.fixture(autouse=True)
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("sslmode", ["prefer", "require"])
def test_tls_is_used_where_it_is_offered(shop: Shop, sslmode: str) -> None:
    result = shop.knock(sslmode=sslmode)
    assert (result.outcome, result.admitted, result.tls) == ("free", True, True)


def test_without_tls_a_missing_line_still_proves_a_slot(shop: Shop) -> None:
    for sslmode in ("disable", "allow"):
        result = shop.knock(sslmode=sslmode)
        assert (result.outcome, result.admitted, result.tls) == ("free", False, False)
        assert "28000" in result.detail
        assert shop.knock(user="open", sslmode=sslmode).admitted


def test_verification(shop: Shop) -> None:
    own, other = shop.files / "ca.crt", shop.files / "other.crt"
    assert shop.knock(sslmode="verify-ca", sslrootcert=own).admitted
    assert shop.knock(sslmode="verify-full", sslrootcert=own).admitted
    assert shop.knock(sslmode="verify-ca", sslrootcert=own, host="another.name").admitted

    wrong_name = shop.knock(sslmode="verify-full", sslrootcert=own, host="another.name")
    assert wrong_name.outcome == "tls-failed"
    assert "another.name" in wrong_name.detail
    for sslmode in ("require", "verify-ca", "verify-full"):
        untrusted = shop.knock(sslmode=sslmode, sslrootcert=other)
        assert untrusted.outcome == "tls-failed"
        assert "not trusted" in untrusted.detail

    missing = shop.knock(sslmode="verify-full", sslrootcert=shop.files / "nowhere.crt")
    assert missing.outcome == "tls-failed"
    assert "nowhere.crt" in missing.detail


def test_a_root_certificate_at_home_turns_verification_on(shop: Shop, empty_home: Path) -> None:
    home = empty_home / ".postgresql"
    home.mkdir()
    (home / "root.crt").write_bytes((shop.files / "other.crt").read_bytes())
    assert shop.knock(sslmode="require").outcome == "tls-failed"
    # As with libpq, "prefer" then goes on without TLS.
    result = shop.knock(user="open", sslmode="prefer")
    assert (result.admitted, result.tls) == (True, False)


def test_pgbouncer_over_tls(shop: Shop, files: Path) -> None:
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        missing("no pgbouncer (apt-get install pgbouncer)")
    home = shop.cluster.directory / "pooler"
    home.mkdir(mode=0o755)
    port = free_port()
    (home / "users.txt").write_text('"plain" "geheim"\n')
    for name in ("server.key", "server.crt"):
        (home / name).write_bytes((files / name).read_bytes())
    (home / "pgbouncer.ini").write_text(
        f"[databases]\npostgres = host=127.0.0.1 port={shop.cluster.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = scram-sha-256\nauth_file = {home}/users.txt\nclient_tls_sslmode = require\n"
        f"client_tls_key_file = {home}/server.key\nclient_tls_cert_file = {home}/server.crt\n"
    )
    for path in (home, *home.iterdir()):
        account().own(path)

    def through(sslmode: str) -> ProbeResult:
        return probe(read_target(f"host=127.0.0.1 port={port} user=plain dbname=postgres sslmode={sslmode}"))

    with subprocess.Popen(
        [program, home / "pgbouncer.ini"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **account().popen_options(),  # type: ignore[call-overload]
    ) as process:
        try:
            until(lambda: through("prefer").outcome != "unreachable")
            asked = through("prefer")
            assert (asked.outcome, asked.admitted, asked.tls, asked.looks_like_pooler) == ("free", False, True, True)
            refused = through("disable")
            assert (refused.outcome, refused.looks_like_pooler) == ("tls-failed", True)
            # "allow" asks again with TLS where the answer was that TLS is required.
            assert through("allow").tls
        finally:
            process.kill()


def test_scram_of_the_server_itself(shop: Shop) -> None:
    result = shop.knock(user="scram", sslmode="require")
    assert (result.outcome, result.tls, result.looks_like_pooler) == ("free", True, False)


def test_client_certificate(shop: Shop) -> None:
    without = shop.knock(user="certified", sslmode="require")
    assert (without.outcome, without.admitted) == ("free", False)
    files: dict[str, Any] = {"sslcert": shop.files / "client.crt", "sslkey": shop.files / "client.key"}
    assert shop.knock(user="certified", sslmode="require", **files).admitted
    broken = shop.knock(user="certified", sslmode="require", sslcert=files["sslcert"], sslkey=shop.files / "ca.crt")
    assert broken.outcome == "tls-failed"


def test_a_protected_key_does_not_ask_on_the_terminal(shop: Shop, tmp_path: Path) -> None:
    key = tmp_path / "protected.key"
    openssl("rsa", "-aes256", "-passout", "pass:geheim", "-in", shop.files / "client.key", "-out", key)
    files: dict[str, Any] = {"sslcert": shop.files / "client.crt", "sslkey": key}
    assert shop.knock(user="certified", sslmode="require", **files).outcome == "tls-failed"
    assert shop.knock(user="certified", sslmode="require", sslpassword="geheim", **files).admitted


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "the condition did not come about"
        time.sleep(0.02)


def filled(shop: Shop, held: list[psycopg.Connection[Any]]) -> bool:
    """Take one slot more; processes that are just ending still hold theirs."""
    with contextlib.suppress(psycopg.OperationalError):
        held.append(psycopg.connect(shop.cluster.dsn("postgres"), autocommit=True))
    return len(held) == SLOTS


def test_a_refusal_over_tls_is_an_answer_and_is_not_asked_for_twice(shop: Shop) -> None:
    held: list[psycopg.Connection[Any]] = []
    try:
        until(lambda: filled(shop, held))
        before = shop.received()
        result = shop.knock(sslmode="prefer")
        assert (result.outcome, result.tls) == ("refused", True)
        assert result.refusal is not None
        assert result.refusal.kind == "slots-full"
        assert shop.knock(sslmode="allow").refusal is not None
        assert shop.received() - before == 2
    finally:
        for connection in held:
            connection.close()
        until(lambda: shop.knock(user="open", sslmode="disable").admitted)


def test_a_server_without_tls(pg_bin: Path | None) -> None:
    with Cluster({"ssl": "off"} if pg_bin else None, pg_bin=pg_bin) as cluster:
        assert not probe(read_target(cluster.dsn(sslmode="prefer"))).tls
        assert probe(read_target(cluster.dsn(sslmode="prefer"))).admitted
        result = probe(read_target(cluster.dsn(sslmode="require")))
        assert result.outcome == "tls-failed"
        assert "the server offers none" in result.detail
