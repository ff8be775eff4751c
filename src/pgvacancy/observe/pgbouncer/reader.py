"""What a PgBouncer shows about itself, read alongside the server.

A waiting client at one instant is nothing: a pool that is used well has some now and then. So several readings are
taken, and counters are compared between the first and the last.
Source: https://www.pgbouncer.org/usage.html#show-commands
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pgvacancy.model.evidence import PoolerEvidence, PoolReading
from pgvacancy.observe.pgbouncer.console import (
    ANSWER_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    DATABASE,
    Console,
    ConsoleError,
    NotShownError,
    Row,
    connect,
    parameters_of,
)

SETTINGS = frozenset(
    {
        "auth_type",
        "client_idle_timeout",
        "client_login_timeout",
        "conffile",
        "default_pool_size",
        "idle_transaction_timeout",
        "listen_addr",
        "listen_backlog",
        "listen_port",
        "max_client_conn",
        "max_db_client_connections",
        "max_db_connections",
        "max_prepared_statements",
        "max_user_client_connections",
        "max_user_connections",
        "min_pool_size",
        "peer_id",
        "pool_mode",
        "query_timeout",
        "query_wait_timeout",
        "reserve_pool_size",
        "reserve_pool_timeout",
        "server_connect_timeout",
        "server_idle_timeout",
        "server_lifetime",
        "server_login_retry",
        "server_reset_query",
        "server_tls_sslmode",
        "so_reuseport",
        "transaction_timeout",
        "unix_socket_dir",
    }
)
"""The settings kept. The others say nothing about room, and some (``auth_ldap_options``) may hold a secret."""


@dataclass(frozen=True, slots=True)
class _Reading:
    at: float
    """Monotonic seconds."""
    pools: tuple[Row, ...]
    stats: tuple[Row, ...]
    lists: dict[str, int]


class PoolerReader:
    """``open()``, ``read()`` as often as wanted, ``finish()``. Holds one session on the console.

    Nothing but a DSN that cannot be read raises: what goes wrong with the pooler stands in
    :attr:`PoolerEvidence.problem`.
    """

    def __init__(
        self,
        dsn: str,
        *,
        connect_timeout_s: int = CONNECT_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare. Raises :class:`~pgvacancy.model.errors.ConninfoError`."""
        self._dsn = dsn
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self.target = target_of(dsn)
        self.problem = ""
        self._console: Console | None = None
        self._version = ""
        self._config: dict[str, str] = {}
        self._readings: list[_Reading] = []
        self._databases: list[Row] = []
        self._servers: list[Row] = []
        self._clients: list[Row] | None = None
        self._users: list[Row] = []

    def open(self) -> bool:
        """Enter the console and read what does not change. False, and :attr:`problem` set, when that fails."""
        try:
            self._console = connect(self._dsn, timeout_s=self._connect_timeout_s)
            self._version = _version(self._show("VERSION"))
            self._config = {
                key: row.get("value") or "" for row in self._show("CONFIG") if (key := row.get("key") or "") in SETTINGS
            }
            self._read_details()
        except ConsoleError as e:
            self._fail(e)
        return self._console is not None

    def read(self) -> bool:
        """Take one reading. False when the pooler cannot be read any more."""
        if self._console is None:
            return False
        try:
            pools = tuple(r for r in self._console.show("POOLS", timeout_s=self._answer_timeout_s) if not _is_own(r))
            stats = tuple(r for r in self._show("STATS") if not _is_own(r))
            lists = {r.get("list") or "": _int(r.get("items")) for r in self._show("LISTS")}
        except ConsoleError as e:
            self._fail(e)
            return False
        self._readings.append(_Reading(self._clock(), pools, stats, lists))
        return True

    def finish(self) -> PoolerEvidence:
        """Leave the console and put everything together. Takes a reading when there is none yet."""
        try:
            if not self._readings:
                self.read()
            if self._console is not None:
                self._read_details()
        except ConsoleError as e:
            self._fail(e)
        self.close()
        return self._evidence()

    def close(self) -> None:
        """Leave the console. May be called again."""
        if self._console is not None:
            self._console.close()
            self._console = None

    def _fail(self, error: ConsoleError) -> None:
        self.problem = str(error)
        self.close()

    def _show(self, what: str) -> list[Row]:
        """Rows of a view that may be missing in this version or closed to this user."""
        if self._console is None:
            return []
        try:
            return self._console.show(what, timeout_s=self._answer_timeout_s)
        except NotShownError:
            return []

    def _read_details(self) -> None:
        self._databases = self._show("DATABASES")
        self._users = self._show("USERS")
        self._servers = self._show("SERVERS")
        self._clients = self._show("CLIENTS")

    def _evidence(self) -> PoolerEvidence:
        last = self._readings[-1] if self._readings else None
        lists = last.lists if last else {}
        return PoolerEvidence(
            target=self.target,
            version=self._version,
            reachable=last is not None,
            problem=self.problem,
            config=self._config,
            pools=pools_of(last.pools, self._databases, self._users) if last else (),
            waiting_samples=tuple(sum(_int(r.get("cl_waiting")) for r in reading.pools) for reading in self._readings),
            clients=lists.get("used_clients", 0),
            login_clients=lists.get("login_clients", 0),
            idle_clients=None if self._clients is None else sum(1 for r in self._clients if _is_idle(r)),
            server_addresses=addresses_of(self._servers, self._databases),
            server_pids=tuple(sorted({pid for r in self._servers if (pid := _int(r.get("remote_pid"))) > 0})),
            wait_s_per_s=self._growth("total_wait_time"),
            busy_servers=self._growth("total_xact_time"),
        )

    def _growth(self, counter: str) -> float | None:
        """Seconds per second by which a counter of microseconds grew; None when it was reset or read only once."""
        if len(self._readings) < 2:
            return None
        first, last = self._readings[0], self._readings[-1]
        elapsed = last.at - first.at
        before = {r.get("database"): r.get(counter) for r in first.stats}
        after = {r.get("database"): r.get(counter) for r in last.stats}
        if elapsed < 0.05 or not after or None in after.values() or not before.keys() <= after.keys():
            return None
        deltas = [_int(value) - _int(before.get(name)) for name, value in after.items()]
        return None if min(deltas) < 0 else sum(deltas) / 1e6 / elapsed


def read_pooler(
    dsn: str,
    *,
    readings: int = 4,
    interval_s: float = 1.0,
    connect_timeout_s: int = CONNECT_TIMEOUT_S,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> PoolerEvidence:
    """Look at a pooler for ``(readings - 1) * interval_s`` seconds.

    Raises :class:`~pgvacancy.model.errors.ConninfoError` when the DSN cannot be read; everything else that goes
    wrong stands in ``problem``.
    """
    reader = PoolerReader(dsn, connect_timeout_s=connect_timeout_s, answer_timeout_s=answer_timeout_s)
    try:
        if reader.open():
            for number in range(readings):
                if number:
                    time.sleep(interval_s)
                if not reader.read():
                    break
        return reader.finish()
    finally:
        reader.close()


def target_of(dsn: str) -> str:
    """Where a DSN leads, without secrets: ``host:port``."""
    given = parameters_of(dsn)
    host = given.get("hostaddr") or given.get("host") or "localhost"
    return f"{host}:{given.get('port') or '5432'}"


def pools_of(pools: Sequence[Row], databases: Sequence[Row], users: Sequence[Row]) -> tuple[PoolReading, ...]:
    """Rows of SHOW POOLS with the size in force: the user's own (1.23 and later), else the database's."""
    by_database = {r.get("name"): r.get("pool_size") for r in databases}
    by_user = {r.get("name"): r.get("pool_size") for r in users}
    found = []
    for r in pools:
        size = by_user.get(r.get("user")) or by_database.get(r.get("database"))
        found.append(
            PoolReading(
                database=r.get("database") or "",
                user=r.get("user") or "",
                mode=r.get("pool_mode") or "",
                clients_active=_int(r.get("cl_active")),
                clients_waiting=_int(r.get("cl_waiting")),
                servers_active=_int(r.get("sv_active")),
                servers_idle=_int(r.get("sv_idle")),
                servers_used=_int(r.get("sv_used")),
                servers_login=_int(r.get("sv_login")),
                max_wait_s=_int(r.get("maxwait")) + _int(r.get("maxwait_us")) / 1e6,
                pool_size=_int(size) if size else None,
            )
        )
    return tuple(found)


def addresses_of(servers: Sequence[Row], databases: Sequence[Row]) -> tuple[str, ...]:
    """``host:port`` of the servers behind a pooler: those configured, by name, and those connected, by address."""
    configured = {(r.get("host") or "unix", r.get("port")) for r in databases if r.get("name") != DATABASE}
    connected = {(r.get("addr") or "unix", r.get("port")) for r in servers}
    return tuple(sorted(f"{host}:{port}" for host, port in configured | connected if port))


def _version(rows: Sequence[Row]) -> str:
    """``PgBouncer 1.18.0`` → ``1.18.0``."""
    text = next((v for r in rows for v in r.values() if v), "")
    return text.removeprefix("PgBouncer").strip()


def _is_own(row: Row) -> bool:
    return row.get("database") == DATABASE


def _is_idle(row: Row) -> bool:
    # Up to 1.24 an idle client is called active; what it lacks is a link to a server.
    return row.get("state") in {"active", "idle"} and not row.get("link") and not _is_own(row)


def _int(value: str | None) -> int:
    try:
        return int(value or 0)
    except ValueError:
        return 0
