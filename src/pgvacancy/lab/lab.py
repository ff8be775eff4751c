"""The laboratory: a private server, and real clients in processes of their own that use or misuse it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from pgvacancy.lab.binaries import client_program
from pgvacancy.lab.cluster import Cluster, die_with_parent
from pgvacancy.lab.drivers import is_refusal
from pgvacancy.model.errors import LabError

ROLES = ("app", "web", "batch", "report", "alice", "bob", "carol")
"""Ordinary login roles every lab has; ``monitor`` is a member of pg_monitor besides."""
DATABASE = "app"
READY_DEADLINE_S = 30.0


class Process:
    """A child of ours that speaks lines: a client or a relay."""

    def __init__(self, arguments: list[str], **options: Any) -> None:  # noqa: ANN401 - options of Popen
        """Start it; it dies with us."""
        self.popen = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=options.pop("stderr", subprocess.DEVNULL),
            text=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - prctl() only, which is safe between fork and exec
            **options,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process."""
        return self.popen.pid

    def _read(self) -> None:
        for line in self.popen.stdout or ():
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, deadline_s: float = READY_DEADLINE_S) -> str:
        """The next line it prints."""
        try:
            line = self._lines.get(timeout=deadline_s)
        except queue.Empty:
            raise LabError(
                "a lab process is silent", seen=f"pid {self.pid}, {deadline_s:.0f} s", tried=str(self.popen.args)
            ) from None
        if line is None:
            raise LabError("a lab process ended early", seen=f"status {self.popen.wait()}", tried=str(self.popen.args))
        return line

    def stop(self, deadline_s: float = 5.0) -> None:
        """Ask it to leave by closing its input; kill it when it does not."""
        with contextlib.suppress(OSError):
            if self.popen.stdin is not None:
                self.popen.stdin.close()
        try:
            self.popen.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self._let_go()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.popen.kill()
        self.popen.wait()
        self._let_go()

    def _let_go(self) -> None:
        """Close our ends of its pipes."""
        self._reader.join(5)
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Client(Process):
    """A running :mod:`pgvacancy.lab.client`."""

    def ready(self, deadline_s: float = READY_DEADLINE_S) -> dict[str, Any]:
        """Wait until its first round is done; what it has done so far."""
        return self._event("ready", deadline_s)

    def report(self) -> dict[str, Any]:
        """What it has done so far, asked for now."""
        if self.popen.stdin is not None:
            self.popen.stdin.write("report\n")
            self.popen.stdin.flush()
        return self._event("report", READY_DEADLINE_S)

    def _event(self, name: str, deadline_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + deadline_s
        while True:
            line: dict[str, Any] = json.loads(self.line(max(0.1, deadline - time.monotonic())))
            if line["event"] == name:
                return line


class Lab:
    """A private server with roles and a database, and the processes that use it."""

    def __init__(self, cluster: Cluster) -> None:
        """Take a started cluster; :meth:`furnish` it once."""
        self.cluster = cluster
        self.processes: list[Process] = []
        self.cleanups: list[Callable[[], object]] = []
        self.beside: dict[str, Any] = {}
        """What a scenario runs beside the server (a standby, a pooler) until the clients are stopped."""

    def furnish(self) -> None:
        """Make the roles, the database and a small table. Does nothing when they are there."""
        if self.cluster.sql("SELECT 1 FROM pg_database WHERE datname = 'app'"):
            return
        self.cluster.sql(
            *(f"CREATE ROLE {r} LOGIN" for r in ROLES),
            "CREATE ROLE monitor LOGIN IN ROLE pg_monitor",
            f"CREATE DATABASE {DATABASE} OWNER app",
        )
        self.cluster.sql(
            "CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL)",
            "INSERT INTO accounts SELECT n, 0 FROM generate_series(1, 1000) AS n",
            "GRANT ALL ON accounts TO PUBLIC",
            "ANALYZE accounts",
            database=DATABASE,
        )

    # --- what there is ---

    @property
    def ordinary_slots(self) -> int:
        """How many sessions ordinary roles can have."""
        row = self.cluster.sql(
            "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
            " - coalesce(current_setting('reserved_connections', true), '0')::int"
        )[0]
        return int(row[0])

    @property
    def used_slots(self) -> int:
        """Client backends right now, by a connection of its own."""
        row = self.cluster.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )[0]
        return int(row[0])

    # --- clients ---

    def client(self, behaviour: str, *, user: str = "app", database: str = DATABASE, **options: Any) -> Client:  # noqa: ANN401 - options of the client program
        """Start a client process. Options are those of the client program, plus ``port`` and ``host`` for relays.

        ``begin=True`` becomes ``--begin``; ``application_name='x'`` becomes ``--application-name x``.
        """
        host, port = options.pop("host", "127.0.0.1"), options.pop("port", self.cluster.port)
        prefix = options.pop("prefix", [])
        dsn = f"host={host} port={port} user={user} dbname={database}"
        arguments = [*prefix, sys.executable, "-m", "pgvacancy.lab.client", behaviour, "--dsn", dsn]
        for name, value in options.items():
            flag = f"--{name.replace('_', '-')}"
            if value is True:
                arguments.append(flag)
            elif value is not False and value is not None:
                arguments += [flag, str(value)]
        client = Client(arguments)
        self.processes.append(client)
        return client

    def relay(self, source: str) -> int:
        """Start a relay that reaches the server from ``source`` (in 127.0.0.0/8); its port on loopback."""
        process = Process(
            [sys.executable, "-m", "pgvacancy.lab.relay", "--source", source, "--to", str(self.cluster.port)]
        )
        self.processes.append(process)
        return int(process.line())

    def pgbench(self, *arguments: str, user: str = "app", database: str = DATABASE) -> Process:
        """Start pgbench against the lab: the server's own, or another when it comes without."""
        environment = {**os.environ, "PGAPPNAME": "pgbench"}
        process = Process(
            [
                str(client_program("pgbench", self.cluster.bin)),
                *("-h", "127.0.0.1", "-p", str(self.cluster.port), "-U", user),
                *arguments,
                database,
            ],
            env=environment,
        )
        self.processes.append(process)
        return process

    def defer(self, cleanup: Callable[[], object]) -> None:
        """Have something undone when the clients are stopped."""
        self.cleanups.append(cleanup)

    def stop_clients(self) -> None:
        """End every process started here, and wait until the server has their slots back."""
        for process in reversed(self.processes):
            with contextlib.suppress(OSError):
                if process.popen.stdin is not None:
                    process.popen.stdin.close()
        for process in reversed(self.processes):
            process.stop()
        self.processes.clear()
        for cleanup in reversed(self.cleanups):
            cleanup()
        self.cleanups.clear()
        self.beside.clear()

    # --- waiting ---

    def wait(self, what: str, condition: Callable[[], object], deadline_s: float = READY_DEADLINE_S) -> None:
        """Poll a condition until it holds."""
        deadline = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > deadline:
                raise LabError(f"the lab waited in vain for: {what}", seen=f"{deadline_s:.0f} s")
            time.sleep(0.05)

    def refusal(self, user: str = "app", database: str = DATABASE, **options: Any) -> str | None:  # noqa: ANN401 - host, port
        """Let a fresh ordinary client try: the refusal it gets, or None when it is let in."""
        import psycopg  # noqa: PLC0415 - only when used

        host, port = options.get("host", "127.0.0.1"), options.get("port", self.cluster.port)
        try:
            psycopg.connect(
                host=host, port=port, user=user, dbname=database, application_name="lab-check", connect_timeout=5
            ).close()
        except psycopg.OperationalError as error:
            if is_refusal(error):
                return str(error)
            raise
        return None

    def wait_refused(self, user: str = "app", database: str = DATABASE, deadline_s: float = READY_DEADLINE_S) -> None:
        """Wait until ordinary clients are truly refused."""
        self.wait("an ordinary client to be refused", lambda: self.refusal(user, database), deadline_s)

    def wait_admitted(self, user: str = "app", database: str = DATABASE, deadline_s: float = READY_DEADLINE_S) -> None:
        """Wait until an ordinary client is let in again."""
        self.wait("an ordinary client to be let in", lambda: self.refusal(user, database) is None, deadline_s)
