"""A private PostgreSQL: made from a template in a moment, on loopback only, gone without a trace.

``with Cluster(...) as cluster:`` runs a server that dies with us, also when we are killed (Linux tells it by
PR_SET_PDEATHSIG). ``Cluster(..., keep=True)`` runs one that outlives us, for ``pgvacancy lab up``.

* fsync is off and JIT is off: it is a laboratory, not a store.
* Settings stand in a file, never on the command line, so that ALTER SYSTEM and restarts behave as in the field.
* ``initdb`` runs once per major and authentication; further clusters are copies of that directory.

Source: https://www.postgresql.org/docs/current/app-initdb.html
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pgvacancy.lab.binaries import account, binaries, lab_root, major_of
from pgvacancy.model.errors import LabError

START_DEADLINE_S = 30.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)

DEFAULTS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "jit": "off",
    "shared_buffers": "16MB",
    "max_wal_size": "128MB",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] %e %u@%d %h ",
    "lc_messages": "C",
}


def free_port() -> int:
    """A TCP port free on loopback right now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def die_with_parent(sig: int = signal.SIGKILL) -> None:
    """To be called in a child before exec: have the kernel send ``sig`` when the parent ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(sig))


class Cluster:
    """One private server with its data directory.

    ``settings`` go to a file over :data:`DEFAULTS`; ``hba`` replaces the default pg_hba lines (trust on
    loopback and the socket); ``directory`` must not exist yet when given.
    """

    def __init__(  # noqa: PLR0913 - every part of a server may matter to a scenario
        self,
        settings: Mapping[str, str] | None = None,
        *,
        pg_bin: Path | None = None,
        hba: tuple[str, ...] = (),
        directory: Path | None = None,
        data: Path | None = None,
        keep: bool = False,
    ) -> None:
        """Prepare, without touching the disk."""
        self.settings = {**DEFAULTS, **(settings or {})}
        self.hba = hba
        self.keep = keep
        self.bin = binaries(pg_bin)
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._directory = directory
        self._ready_made = data
        self._attached: int | None = None

    @classmethod
    def attach(  # noqa: PLR0913, PLR0917 - what describes a running server
        cls, directory: Path, pg_bin: Path, port: int, settings: Mapping[str, str], hba: tuple[str, ...], pid: int
    ) -> Cluster:
        """A server that another process of ours started and that still runs."""
        cluster = cls(settings, pg_bin=pg_bin, hba=hba, directory=directory, keep=True)
        cluster.port = port
        cluster._attached = pid
        return cluster

    # --- names ---

    @property
    def pid(self) -> int:
        """The postmaster. Raises RuntimeError when it was never started."""
        if self.process is not None:
            return self.process.pid
        if self._attached is None:
            msg = "the cluster has not been started"
            raise RuntimeError(msg)
        return self._attached

    @property
    def major(self) -> int:
        """The server's major version."""
        return major_of(self.bin)

    @property
    def directory(self) -> Path:
        """The directory that holds everything of this server."""
        if self._directory is None:
            msg = "the cluster has not been created yet"
            raise RuntimeError(msg)
        return self._directory

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """The server's log: its standard error."""
        return self.directory / "server.log"

    def dsn(self, user: str = "postgres", database: str = "postgres", **parameters: str) -> str:
        """A conninfo string over TCP on loopback."""
        extra = "".join(f" {k}={v}" for k, v in parameters.items())
        return f"host=127.0.0.1 port={self.port} user={user} dbname={database}{extra}"

    def socket_dsn(self, user: str = "postgres", database: str = "postgres") -> str:
        """A conninfo string over the Unix socket."""
        return f"host={self.directory} port={self.port} user={user} dbname={database}"

    def url(self, user: str = "postgres", database: str = "postgres") -> str:
        """The same as a URI."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    # --- life ---

    def __enter__(self) -> Cluster:
        """Create and start."""
        try:
            self.create()
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

    def create(self) -> None:
        """Make the data directory: a copy of the template, or of ``data`` when a backup was given."""
        owner = account()
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="c-", dir=lab_root()))
        else:
            self._directory.mkdir(mode=0o700)
        self.directory.chmod(0o755)
        owner.own(self.directory)
        source = self._ready_made or _template(self.bin)
        self._run(["cp", "-R", str(source), str(self.data)])
        self.data.chmod(0o700)
        lines = self.hba or (
            "local all all trust",
            "host all all all trust",
            "local replication all trust",
            "host replication all all trust",
        )
        (self.data / "pg_hba.conf").write_text("\n".join(lines) + "\n")
        self.configure()

    def configure(self, **settings: str) -> None:
        """Write the settings file, with changes. Reload or restart to have them take effect."""
        self.settings.update(settings)
        self.port = self.port or free_port()
        values = {"port": str(self.port), "unix_socket_directories": str(self.directory), **self.settings}
        text = "".join(f"{k} = '{v.replace(chr(39), chr(39) * 2)}'\n" for k, v in values.items())
        path = self.data / "lab.conf"
        path.write_text(text)
        account().own(path)
        main = self.data / "postgresql.conf"
        if "include 'lab.conf'" not in main.read_text():
            with main.open("a") as f:
                f.write("include 'lab.conf'\n")

    def start(self) -> None:
        """Start and wait until the server says that it is ready."""
        options: dict[str, Any] = dict(account().popen_options())
        options["start_new_session" if self.keep else "preexec_fn"] = True if self.keep else _server_dies_with_us
        for attempt in range(3):
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [self.bin / "postgres", "-D", self.data],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.directory,
                    **options,
                )
            if self._wait_ready():
                return
            if attempt < 2 and "could not bind" in self.log_tail():
                self.port = 0
                self.configure()
                continue
            break
        raise LabError(
            "the private server did not start",
            seen=self.log_tail(400).replace("\n", " | "),
            tried=f"{self.bin / 'postgres'} -D {self.data}",
            next=f"see {self.log}",
        )

    def _wait_ready(self) -> bool:
        deadline = time.monotonic() + START_DEADLINE_S
        pid_file = self.data / "postmaster.pid"
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                return False
            try:
                lines = pid_file.read_text().splitlines()
            except OSError:
                lines = []
            # The eighth line is the status; "ready" is padded with blanks.
            if len(lines) > 7 and lines[7].strip() in {"ready", "standby"}:
                return True
            time.sleep(0.01)
        return False

    def stop(self, how: int = signal.SIGINT) -> None:
        """Stop: SIGINT is a fast shutdown, SIGQUIT an immediate one."""
        if self.process is None:
            self._stop_attached(how)
            return
        if self.process.poll() is not None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(15)

    def _stop_attached(self, how: int) -> None:
        """Stop a server that is not our child, and wait until it has gone."""
        if self._attached is None:
            return
        pid, self._attached = self._attached, None
        deadline = time.monotonic() + START_DEADLINE_S
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
            while time.monotonic() < deadline:
                os.kill(pid, 0)
                time.sleep(0.02)

    def restart(self, **settings: str) -> None:
        """Stop, change settings, start."""
        self.stop()
        self.configure(**settings)
        self.start()

    def destroy(self) -> None:
        """Stop the server and remove everything of it."""
        self.stop(signal.SIGQUIT)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    # --- looking at it ---

    def log_tail(self, size: int = 2000) -> str:
        """The end of the server's log."""
        try:
            return self.log.read_text(errors="replace")[-size:]
        except OSError:
            return ""

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of the server's own programs as the lab's account."""
        return self._run([str(self.bin / program), *arguments])

    def sql(self, *statements: str, database: str = "postgres", user: str = "postgres") -> list[tuple[Any, ...]]:
        """Run statements over the Unix socket in a short session; rows of the last one."""
        import psycopg  # noqa: PLC0415 - only when used

        with psycopg.connect(self.socket_dsn(user, database), autocommit=True) as connection:
            cursor = None
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor is not None and cursor.description else []

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(  # type: ignore[call-overload]
            command, capture_output=True, text=True, check=False, cwd="/", **account().popen_options()
        )
        if done.returncode != 0:
            raise LabError(
                f"{Path(command[0]).name} failed",
                seen=(done.stderr or done.stdout).strip()[-400:],
                tried=" ".join(command),
            )
        result: subprocess.CompletedProcess[str] = done
        return result


def _server_dies_with_us() -> None:
    die_with_parent(signal.SIGQUIT)


def _template(pg_bin: Path) -> Path:
    """The initialised directory every cluster of this server is copied from; made once."""
    root = lab_root() / "templates"
    root.mkdir(mode=0o711, exist_ok=True)
    stamp = int((pg_bin / "postgres").stat().st_mtime)
    target = root / f"pg{major_of(pg_bin)}-{stamp}" / "data"
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        owner = account()
        home = Path(tempfile.mkdtemp(dir=root))
        home.chmod(0o755)
        owner.own(home)
        command = [pg_bin / "initdb", "-D", home / "data", "-U", "postgres", "-A", "trust", "--no-sync"]
        done = subprocess.run(  # type: ignore[call-overload]
            [*command, "-E", "UTF8", "--locale=C"],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
            **owner.popen_options(),
        )
        if done.returncode != 0:
            shutil.rmtree(home, ignore_errors=True)
            raise LabError("initdb failed", seen=done.stderr.strip()[-400:], tried=" ".join(map(str, command)))
        home.rename(target.parent)
        return target
