"""The drivers the lab's clients use, behind one small face."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Protocol


class Session(Protocol):
    """An open session."""

    def execute(self, sql: str) -> None:
        """Run a statement in autocommit and throw the rows away."""

    def close(self) -> None:
        """Close, quietly also when it is broken."""


class _DbApi:
    """psycopg 3 and psycopg2 look alike enough."""

    def __init__(self, connection: Any) -> None:  # noqa: ANN401 - two drivers
        self._connection = connection

    def execute(self, sql: str) -> None:
        cursor = self._connection.cursor()
        try:
            cursor.execute(sql)
            if cursor.description:
                cursor.fetchall()
        finally:
            with contextlib.suppress(Exception):
                cursor.close()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()


class _SqlAlchemy:
    """A connection checked out of an engine of its own."""

    def __init__(self, engine: Any, connection: Any) -> None:  # noqa: ANN401 - imported only when used
        self._engine = engine
        self._connection = connection

    def execute(self, sql: str) -> None:
        self._connection.exec_driver_sql(sql)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()
        with contextlib.suppress(Exception):
            self._engine.dispose()


class _Asyncpg:
    """asyncpg, driven from threads through one event loop."""

    _loop: asyncio.AbstractEventLoop | None = None
    _lock = threading.Lock()

    def __init__(self, connection: Any) -> None:  # noqa: ANN401 - the driver has no stubs
        self._connection = connection

    @classmethod
    def run(cls, coroutine: Any) -> Any:  # noqa: ANN401 - the driver has no stubs
        with cls._lock:
            if cls._loop is None:
                cls._loop = asyncio.new_event_loop()
                threading.Thread(target=cls._loop.run_forever, daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, cls._loop).result()

    def execute(self, sql: str) -> None:
        self.run(self._connection.execute(sql))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.run(self._connection.close(timeout=1))


def _psycopg(dsn: str, name: str) -> Session:
    import psycopg  # noqa: PLC0415 - one driver a process

    return _DbApi(psycopg.connect(dsn, autocommit=True, application_name=name, connect_timeout=5))


def _psycopg2(dsn: str, name: str) -> Session:
    import psycopg2  # noqa: PLC0415 - one driver a process

    connection = psycopg2.connect(dsn, application_name=name, connect_timeout=5)
    connection.autocommit = True
    return _DbApi(connection)


def _asyncpg(dsn: str, name: str) -> Session:
    import asyncpg  # noqa: PLC0415 - one driver a process
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - only to read the string

    parts = conninfo_to_dict(dsn)
    return _Asyncpg(
        _Asyncpg.run(
            asyncpg.connect(
                host=parts.get("host"),
                port=int(str(parts["port"])),
                user=parts.get("user"),
                database=parts.get("dbname"),
                ssl=False,
                timeout=5,
                server_settings={"application_name": name},
            )
        )
    )


def _sqlalchemy(dsn: str, name: str) -> Session:
    import sqlalchemy  # noqa: PLC0415 - one driver a process

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: _raw(dsn, name), pool_size=1, max_overflow=0
    )
    return _SqlAlchemy(engine, engine.connect().execution_options(isolation_level="AUTOCOMMIT"))


def _raw(dsn: str, name: str) -> Any:  # noqa: ANN401 - what the pool wants
    import psycopg  # noqa: PLC0415 - one driver a process

    return psycopg.connect(dsn, application_name=name, connect_timeout=5)


DRIVERS: dict[str, Callable[[str, str], Session]] = {
    "psycopg": _psycopg,
    "psycopg2": _psycopg2,
    "asyncpg": _asyncpg,
    "sqlalchemy": _sqlalchemy,
}


def connect(driver: str, dsn: str, name: str) -> Session:
    """Open a session with a driver, under an application_name."""
    return DRIVERS[driver](dsn, name)


def errors(driver: str) -> tuple[type[Exception], ...]:
    """What a driver raises when an attempt or a statement fails."""
    if driver == "asyncpg":
        import asyncpg  # noqa: PLC0415 - one driver a process

        return (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncio.TimeoutError)
    if driver == "psycopg2":
        import psycopg2  # noqa: PLC0415 - one driver a process

        return (psycopg2.Error, OSError)
    import psycopg  # noqa: PLC0415 - one driver a process

    if driver == "sqlalchemy":
        import sqlalchemy  # noqa: PLC0415 - one driver a process

        return (sqlalchemy.exc.SQLAlchemyError, psycopg.Error, OSError)
    return (psycopg.Error, OSError)


_REFUSALS = (
    "too many clients",
    "remaining connection slots",
    "too many connections",
    "max_wal_senders",
    "max_client_conn",
)


def is_refusal(error: Exception) -> bool:
    """Whether an attempt failed for lack of a slot. libpq's drivers hide the SQLSTATE, asyncpg tells it."""
    if getattr(error, "sqlstate", None) == "53300":
        return True
    return any(text in str(error) for text in _REFUSALS)
