"""Where to knock: libpq's own reading of strings, environment and service file, and no secret shown."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from pgvacancy.model.errors import ConninfoError
from pgvacancy.observe.postgres.conninfo import Host, Target, read_target

SECRET = "geheim"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("PG") and not name.startswith("PGVACANCY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_conninfo_string() -> None:
    target = read_target(f"host=db1 port=6432 user=app dbname=shop password={SECRET} sslmode=require")
    assert target.hosts == (Host(name="db1", port=6432),)
    assert (target.user, target.database, target.sslmode) == ("app", "shop", "require")
    assert target.conninfo.reveal().startswith("host=db1")


@pytest.mark.parametrize("dsn", [f"host=db1 user=app password={SECRET}", f"postgresql://app:{SECRET}@db1/shop"])
def test_no_form_shows_the_password(dsn: str) -> None:
    target = read_target(dsn)
    for shown in (repr(target), str(target), target.display, target.shareable, f"{target.conninfo}"):
        assert SECRET not in shown
    assert SECRET not in str(dict(target.options))


def test_uri_with_several_hosts() -> None:
    target = read_target("postgresql://app@db1:1111,[::1]:2222,db3/shop")
    assert [(h.name, h.port) for h in target.hosts] == [("db1", 1111), ("::1", 2222), ("db3", 5432)]
    assert target.hosts[1].display == "[::1]:2222"


def test_one_port_serves_all_hosts_and_hostaddr_spares_the_look_up() -> None:
    target = read_target("host=a,b hostaddr=127.0.0.1,127.0.0.2 port=7777")
    assert target.hosts == (
        Host(name="a", address="127.0.0.1", port=7777),
        Host(name="b", address="127.0.0.2", port=7777),
    )


def test_environment_fills_what_the_string_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "envhost")
    monkeypatch.setenv("PGPORT", "1234")
    monkeypatch.setenv("PGUSER", "envuser")
    monkeypatch.setenv("PGSSLMODE", "disable")
    target = read_target("port=4321")
    assert (target.hosts, target.user, target.database, target.sslmode) == (
        (Host(name="envhost", port=4321),),
        "envuser",
        "envuser",
        "disable",
    )
    assert read_target().hosts == (Host(name="envhost", port=1234),)


def test_service_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    services = tmp_path / "services.conf"
    services.write_text(f"[night]\nhost=db9\nport=9999\nuser=svc\ndbname=svcdb\npassword={SECRET}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    target = read_target("service=night port=1")
    assert (target.hosts, target.user, target.database) == ((Host(name="db9", port=1),), "svc", "svcdb")
    assert SECRET not in repr(target)
    monkeypatch.setenv("PGSERVICE", "night")
    assert read_target().hosts == (Host(name="db9", port=9999),)
    with pytest.raises(ConninfoError, match='definition of service "day" not found'):
        read_target("service=day")


def test_default_is_the_compiled_in_socket_directory() -> None:
    (host,) = read_target("user=app").hosts
    assert host.is_unix
    assert host.socket_path.endswith("/.s.PGSQL.5432")


@pytest.mark.parametrize(
    ("dsn", "path"),
    [
        ("host=/run/db port=5433", "/run/db/.s.PGSQL.5433"),
        ("host=@lab", "@lab/.s.PGSQL.5432"),
        ("postgresql://%2Frun%2Fdb/shop", "/run/db/.s.PGSQL.5432"),
    ],
)
def test_sockets(dsn: str, path: str) -> None:
    (host,) = read_target(dsn).hosts
    assert (host.is_unix, host.socket_path) == (True, path)


@pytest.mark.parametrize(
    "dsn",
    [
        "nonsense",
        "hots=db1",
        "host=a,b port=1,2,3",
        "sslmode=bogus",
        "port=99999999",
        "port=abc",
        "postgresql://[::1",
        "host='unclosed",
        "sslrootcert=system sslmode=require",
    ],
)
def test_what_libpq_rejects_is_one_clear_error(dsn: str) -> None:
    with pytest.raises(ConninfoError) as caught:
        read_target(dsn)
    assert caught.value.exit_status == 2
    assert caught.value.seen


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://app:{SECRET}/x@db1/shop",
        f"postgresql://app:{SECRET}%zz@db1/shop",
        f"host=db1 password='{SECRET}",
        f"password={SECRET} sslmode=bogus",
        f"host=db1 password=a {SECRET}",
    ],
)
def test_no_complaint_shows_the_password(dsn: str) -> None:
    with pytest.raises(ConninfoError) as caught:
        read_target(dsn)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.to_json())
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_shareable_form_leads_to_the_same_place() -> None:
    target = read_target(r"host=a,/run/x\ y port=1,2 user='it\'s' dbname='a b' sslmode=verify-full sslrootcert=/ca.crt")
    again: Target = read_target(target.shareable)
    assert (again.hosts, again.user, again.database, again.sslmode) == (
        target.hosts,
        target.user,
        target.database,
        target.sslmode,
    )
    assert again.options["sslrootcert"] == "/ca.crt"


@pytest.mark.parametrize("dsn", ["host=a\x00b", "host=\udcff", "postgresql://\x00@/"])
def test_odd_characters_end_in_an_error_or_a_target(dsn: str) -> None:
    with contextlib.suppress(ConninfoError):
        read_target(dsn).display.encode()
