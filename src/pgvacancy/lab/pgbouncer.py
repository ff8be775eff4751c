"""A private PgBouncer on loopback, in front of a private server.

``with PgBouncer({"app": "host=127.0.0.1 port=5433 dbname=postgres"}) as pooler:`` runs one that dies with us.
Source: https://www.pgbouncer.org/config.html
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pgvacancy.lab.binaries import account, lab_root
from pgvacancy.lab.cluster import die_with_parent, free_port
from pgvacancy.model.errors import LabError, MissingProgramError

START_DEADLINE_S = 10.0
ADMIN = "pgv_admin"
"""The role that may use the console; it needs not exist on the server."""

DEFAULTS: Mapping[str, str] = {
    "listen_addr": "127.0.0.1",
    "auth_type": "trust",
    "admin_users": ADMIN,
    "pool_mode": "transaction",
    "max_client_conn": "100",
    "default_pool_size": "20",
    # Drivers send these at every start; PgBouncer refuses what it does not track.
    "ignore_startup_parameters": "extra_float_digits",
    "server_tls_sslmode": "disable",
    "client_tls_sslmode": "disable",
}


class PgBouncer:
    """One private pooler. ``databases`` map a name to a target conninfo, ``users`` a role to its secret.

    With the default ``auth_type = trust`` the secrets of the roles may be empty.
    """

    def __init__(
        self,
        databases: Mapping[str, str],
        settings: Mapping[str, str] | None = None,
        *,
        users: Mapping[str, str] | Iterable[str] = ("postgres",),
        directory: Path | None = None,
    ) -> None:
        """Prepare, without touching the disk."""
        self.databases = dict(databases)
        self.settings = {**DEFAULTS, **(settings or {})}
        secrets = dict(users) if isinstance(users, Mapping) else dict.fromkeys(users, "")
        self.users = {ADMIN: "", **secrets}
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._directory = directory
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise MissingProgramError(
                "no PgBouncer to run", seen="pgbouncer is not on the path", next="apt-get install pgbouncer"
            )
        self.program = program

    @property
    def directory(self) -> Path:
        """Where its files are."""
        if self._directory is None:
            msg = "the pooler has not been started yet"
            raise RuntimeError(msg)
        return self._directory

    @property
    def log(self) -> Path:
        """Its log."""
        return self.directory / "pgbouncer.log"

    def dsn(self, user: str = "postgres", database: str | None = None, **parameters: str) -> str:
        """A conninfo string through the pooler; the first database when none is named."""
        name = database or next(iter(self.databases))
        extra = "".join(f" {k}={v}" for k, v in parameters.items())
        return f"host=127.0.0.1 port={self.port} user={user} dbname={name}{extra}"

    def admin_dsn(self) -> str:
        """A conninfo string of the console."""
        return f"host=127.0.0.1 port={self.port} user={ADMIN} dbname=pgbouncer"

    def __enter__(self) -> PgBouncer:
        """Start."""
        try:
            self.start()
        except BaseException:
            self.destroy()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop and remove."""
        self.destroy()

    def render(self) -> str:
        """The configuration file."""
        values = {
            **self.settings,
            "listen_port": str(self.port),
            "unix_socket_dir": str(self.directory),
            "auth_file": str(self.directory / "users.txt"),
        }
        databases = "".join(f"{name} = {target}\n" for name, target in self.databases.items())
        settings = "".join(f"{name} = {value}\n" for name, value in values.items())
        return f"[databases]\n{databases}\n[pgbouncer]\n{settings}"

    def write(self) -> None:
        """Write the files, readable by the lab's account alone. SIGHUP or restart to have changes take effect."""
        users = "".join(f'"{_doubled(name)}" "{_doubled(secret)}"\n' for name, secret in self.users.items())
        for name, text in (("users.txt", users), ("pgbouncer.ini", self.render())):
            path = self.directory / name
            path.touch(mode=0o600)
            path.write_text(text)
            account().own(path)

    def start(self) -> None:
        """Start and wait until it accepts connections."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="b-", dir=lab_root()))
        self.directory.mkdir(exist_ok=True)
        self.directory.chmod(0o755)
        account().own(self.directory)
        options: dict[str, Any] = dict(account().popen_options())
        for _ in range(3):
            self.port = self.port or free_port()
            self.write()
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [self.program, "-q", self.directory / "pgbouncer.ini"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.directory,
                    preexec_fn=die_with_parent,  # noqa: PLW1509 - one C call, prepared before the fork
                    **options,
                )
            if self._wait_ready(self.process):
                return
            if "Address already in use" not in self.log_tail():
                break
            self.port = 0
        raise LabError(
            "the private PgBouncer did not start",
            seen=self.log_tail(400).strip().replace("\n", " | "),
            tried=f"{self.program} {self.directory / 'pgbouncer.ini'}",
        )

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return False
            if self._answers():
                return True
            time.sleep(0.01)
        return False

    def _answers(self) -> bool:
        # Whatever it would say to a log-in: the configuration may let nobody in, and that is a scenario too.
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(str(self.directory / f".s.PGSQL.{self.port}"))
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def reload(self) -> None:
        """Write the files again and have them read."""
        self.write()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Stop at once. SIGQUIT and SIGTERM changed their meaning in 1.23, SIGKILL never did."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def destroy(self) -> None:
        """Stop it and remove everything of it."""
        self.stop()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def log_tail(self, size: int = 2000) -> str:
        """The end of its log."""
        try:
            return self.log.read_text(errors="replace")[-size:]
        except OSError:
            return ""


def _doubled(text: str) -> str:
    return text.replace('"', '""')
