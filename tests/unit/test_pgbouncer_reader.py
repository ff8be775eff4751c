"""What is made of PgBouncer's rows, of every version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pgvacancy.model.errors import ConninfoError
from pgvacancy.observe.pgbouncer import reader as reader_module
from pgvacancy.observe.pgbouncer.console import ConsoleError, NotShownError, Row, _reason, one_line
from pgvacancy.observe.pgbouncer.reader import PoolerReader, addresses_of, pools_of, target_of

POOL: Row = {
    "database": "app",
    "user": "shop",
    "cl_active": "3",
    "cl_waiting": "7",
    "sv_active": "2",
    "maxwait": "1",
    "maxwait_us": "500000",
    "pool_mode": "transaction",
}
QUIET: Row = {**POOL, "cl_waiting": "0"}


class FakeConsole:
    """Answers from tables. A list of answers is used up, one each time."""

    def __init__(self, **views: Sequence[Row | Sequence[Row]]) -> None:
        self.views: dict[str, Any] = dict(views)
        self.closed = False
        self.fails: dict[str, ConsoleError] = {}

    def show(self, what: str, *, timeout_s: float = 0) -> list[Row]:
        if what in self.fails:
            raise self.fails[what]
        rows = self.views.get(what)
        if rows is None:
            raise NotShownError(f"SHOW {what}: unsupported after {timeout_s}")
        if rows and isinstance(rows[0], list):
            self.views[what] = rows[1:] or rows
            rows = rows[0]
        return list(rows)

    def close(self) -> None:
        self.closed = True


def opened(monkeypatch: pytest.MonkeyPatch, console: FakeConsole) -> PoolerReader:
    clock = iter(float(n) for n in range(1000))
    monkeypatch.setattr(reader_module, "connect", lambda *_, **__: console)
    reader = PoolerReader("host=127.0.0.1 port=6432 user=stats password=geheim", clock=lambda: next(clock))
    assert reader.open()
    return reader


def stats(waited: int, busy: int) -> list[Row]:
    return [
        {"database": "app", "total_wait_time": str(waited), "total_xact_time": str(busy)},
        {"database": "pgbouncer", "total_wait_time": "99", "total_xact_time": "99"},
    ]


def test_readings_become_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    console = FakeConsole(
        VERSION=[{"version": "PgBouncer 1.18.0"}],
        CONFIG=[{"key": "max_client_conn", "value": "100"}, {"key": "auth_ldap_options", "value": "ldapbindpasswd=x"}],
        POOLS=[[POOL], [QUIET]],
        STATS=[stats(1_000_000, 0), stats(4_000_000, 500_000)],
        LISTS=[{"list": "used_clients", "items": "11"}, {"list": "login_clients", "items": "2"}],
        DATABASES=[
            {"name": "app", "host": "db1", "port": "5432", "pool_size": "2"},
            {"name": "pgbouncer", "port": "1"},
        ],
        SERVERS=[{"addr": "10.0.0.5", "port": "5432", "remote_pid": "77"}, {"addr": "10.0.0.5", "port": "5432"}],
        CLIENTS=[
            {"database": "app", "state": "active", "link": ""},
            {"database": "app", "state": "active", "link": "0x1"},
            {"database": "app", "state": "waiting", "link": ""},
            {"database": "pgbouncer", "state": "active", "link": ""},
        ],
    )
    reader = opened(monkeypatch, console)
    assert reader.read()
    assert reader.read()
    found = reader.finish()
    assert console.closed
    assert (found.version, found.reachable, found.problem) == ("1.18.0", True, "")
    assert found.config == {"max_client_conn": "100"}, "only settings that tell about room, and never a secret"
    assert found.waiting_samples == (7, 0)
    assert (found.clients, found.login_clients, found.idle_clients) == (11, 2, 1)
    assert found.server_addresses == ("10.0.0.5:5432", "db1:5432")
    assert found.server_pids == (77,)
    assert (found.wait_s_per_s, found.busy_servers) == (3.0, 0.5)
    assert found.pools[0].pool_size == 2


def test_counters_that_went_back_give_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = opened(monkeypatch, FakeConsole(POOLS=[POOL], STATS=[stats(9, 9), stats(1, 1)]))
    reader.read()
    reader.read()
    found = reader.finish()
    assert (found.wait_s_per_s, found.busy_servers) == (None, None)
    assert found.version == "", "a view that is refused is left out"


def test_going_away_keeps_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    console = FakeConsole(POOLS=[POOL])
    reader = opened(monkeypatch, console)
    assert reader.read()
    console.fails["POOLS"] = ConsoleError("the console went away")
    assert not reader.read()
    assert not reader.read()
    found = reader.finish()
    assert (found.reachable, found.problem, found.waiting_samples) == (True, "the console went away", (7,))


def test_pools_that_are_not_shown_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = opened(monkeypatch, FakeConsole())
    assert not reader.read()
    assert reader.finish().reachable is False
    assert "SHOW POOLS" in reader.problem


def test_a_users_own_size_wins() -> None:
    databases: list[Row] = [{"name": "app", "pool_size": "20"}]
    users: list[Row] = [{"name": "shop", "pool_size": "4"}, {"name": "other", "pool_size": None}]
    assert pools_of([POOL], databases, users)[0].pool_size == 4
    assert pools_of([{**POOL, "user": "other"}], databases, users)[0].pool_size == 20
    only = pools_of([POOL], [], [])[0]
    assert (only.pool_size, only.max_wait_s, only.clients_waiting, only.servers_login) == (None, 1.5, 7, 0)


def test_a_server_behind_a_socket_has_an_address_too() -> None:
    assert addresses_of([{"addr": "unix", "port": "5432"}], [{"name": "app", "host": None, "port": "5432"}]) == (
        "unix:5432",
    )


def test_a_target_has_no_secret() -> None:
    assert target_of("postgresql://me:geheim@db1:6432/x") == "db1:6432"
    assert target_of("user=me") == "localhost:5432"


def test_a_string_that_is_none_is_refused_without_quoting_it() -> None:
    with pytest.raises(ConninfoError) as caught:
        PoolerReader("host=x geheim")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('connection failed: connection to server at "::1", port 1 failed: FATAL:  not allowed', "not allowed"),
        (
            'connection failed: connection to server at "::1", port 1 failed: Connection refused\n\tIs it?',
            "Connection refused",
        ),
        ("ERROR:  x\nLINE 1: y", "x"),
        ("", "str"),
    ],
)
def test_an_error_is_told_in_one_line(text: str, wanted: str) -> None:
    assert one_line(text) == wanted


def test_a_refusal_is_explained() -> None:
    assert "stats_users" in _reason("not allowed")
    assert "PostgreSQL" in _reason('Datenbank "pgbouncer" existiert nicht')
    assert _reason("Connection refused") == "Connection refused"
