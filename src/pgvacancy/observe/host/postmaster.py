"""Finding the server that we talk to on this machine: which process it is, if it is here at all.

A loopback address proves nothing by itself: a tunnel or a container's forwarded port looks the same. So a
candidate must have the port in the ``postmaster.pid`` of its working directory, or own the listening socket,
must live in our network namespace, and, where a session told its backend's pid, must be that backend's parent.
Source: https://www.postgresql.org/docs/current/storage-file-layout.html
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgvacancy.observe.host.procfs import Process, descriptors, link, processes, read_bytes, supported
from pgvacancy.observe.host.sockets import is_local, read_table

_COMMANDS = frozenset({"postgres", "postmaster", "edb-postgres"})
_CONTROL = {
    "Database cluster state",
    "Database system identifier",
    "max_connections setting",
    "max_worker_processes setting",
    "max_wal_senders setting",
    "max_prepared_xacts setting",
    "max_locks_per_xact setting",
}
CONTROL_DEADLINE_S = 2.0
LIMITS = ("max_connections", "superuser_reserved_connections", "reserved_connections", "max_wal_senders")
_PERHAPS = "may be the one, but its files are closed to us"


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """The postmaster, or why there is none to be had."""

    pid: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockFile:
    """What ``postmaster.pid`` says."""

    pid: int
    data_directory: str
    port: int | None
    socket_dir: str


def find_postmaster(
    *,
    port: int | None,
    socket_dir: str | None = None,
    data_directory: str | None = None,
    pid: int | None = None,
    host: str | None = None,
) -> int | None:
    """The pid of :func:`locate_postmaster`, without the reason."""
    found = locate_postmaster(port=port, socket_dir=socket_dir, data_directory=data_directory, pid=pid, host=host)
    return found.pid


def locate_postmaster(
    *,
    port: int | None,
    socket_dir: str | None = None,
    data_directory: str | None = None,
    pid: int | None = None,
    host: str | None = None,
) -> Located:
    """Find the postmaster behind an address.

    ``pid``: a backend's pid as SQL told it, or the postmaster's own. ``host``: the address we talk to; None or a
    path is a Unix socket.
    """
    if host is not None and host.startswith("/"):
        socket_dir = socket_dir or host
    if not supported():
        return Located(reason="no Linux /proc on this machine")
    if host and not host.startswith(("/", "@")) and not is_local(host):
        return Located(reason=f"the server's address {host} is not one of this machine's")
    table = processes()
    candidates = [
        p
        for p in table.values()
        if p.command in _COMMANDS and getattr(table.get(p.parent), "command", "") not in _COMMANDS
    ]
    if not candidates:
        return Located(reason="no postmaster in this machine's process table (another container, or hidepid)")
    if pid is not None:
        return _parent_of(pid, table, candidates, port)
    judged = {c.pid: _mismatch(c, port, socket_dir, data_directory) for c in candidates}
    for wanted in (None, _PERHAPS):
        fitting = [found for found, mismatch in judged.items() if mismatch == wanted]
        if len(fitting) > 1:  # servers that share a port number: on TCP only one of them can listen
            fitting = [found for found in fitting if _owns_listener(table[found], port) is None]
        if len(fitting) == 1:
            return Located(pid=fitting[0])
    return Located(
        reason="no postmaster here fits: "
        + "; ".join(f"pid {p} {m or 'fits as well'}" for p, m in list(judged.items())[:4])
    )


def _parent_of(pid: int, table: Mapping[int, Process], candidates: list[Process], port: int | None) -> Located:
    own = {c.pid for c in candidates}
    found = table.get(pid)
    parent = pid if pid in own else found.parent if found is not None else None
    if parent not in own:
        return Located(reason=f"pid {pid}, which the server names, is no PostgreSQL process of this machine")
    # The pid could fit by chance when the server lives in another pid namespace.
    mismatch = _mismatch(table[parent], port, None, None)
    return Located(pid=parent) if mismatch in {None, _PERHAPS} else Located(reason=f"pid {parent} {mismatch}")


def _mismatch(candidate: Process, port: int | None, socket_dir: str | None, data_directory: str | None) -> str | None:
    """Why a postmaster is not the one, or None when it is."""
    theirs, ours = link(candidate.pid, "ns/net"), link(os.getpid(), "ns/net")
    if theirs is not None and theirs != ours:
        return "lives in another network namespace"
    directory = data_directory_of(candidate.pid)
    if data_directory is not None and directory is not None:
        same = os.path.realpath(data_directory) == os.path.realpath(directory)
        return None if same else f"serves {directory}"
    lock = read_lock_file(candidate.pid)
    if lock is not None and (port is None or lock.port == port):
        if socket_dir and lock.socket_dir and os.path.realpath(socket_dir) != os.path.realpath(lock.socket_dir):
            # A server may have several socket directories; only the first stands in the file. The socket's own
            # lock file names the server that made it.
            owner = read_bytes(f"{socket_dir}/.s.PGSQL.{port}.lock") or b""
            same = owner.split(b"\n")[0].strip() == str(candidate.pid).encode()
            return None if same else f"has sockets in {lock.socket_dir}"
        return None
    if lock is not None:
        return f"listens on port {lock.port}"
    return _owns_listener(candidate, port)


def _owns_listener(candidate: Process, port: int | None) -> str | None:
    """For a server of another user, whose files are closed to us: only the table of sockets is left."""
    if port is None:
        return "does not show its port to us"
    listeners = read_table(port).listening(port)
    try:
        uid = Path(f"/proc/{candidate.pid}").stat().st_uid
    except OSError:
        return "has ended"
    held = descriptors(candidate.pid)
    if held is None:
        return _PERHAPS if any(s.uid == uid for s in listeners) else f"does not listen on port {port}"
    owns = any(f"socket:[{s.inode}]" in held for s in listeners)
    return None if owns else f"does not listen on port {port}"


def data_directory_of(postmaster: int) -> str | None:
    """The data directory: the postmaster's working directory. None when it is closed to us."""
    return link(postmaster, "cwd")


def read_lock_file(postmaster: int) -> LockFile | None:
    """``postmaster.pid`` of a running postmaster; None when closed to us, incomplete or somebody else's."""
    raw = read_bytes(f"/proc/{postmaster}/cwd/postmaster.pid")
    if raw is None:
        return None
    lines = raw.decode("utf-8", "replace").splitlines()
    if len(lines) < 5 or lines[0].strip().lstrip("-") != str(postmaster):
        return None
    port = lines[3].strip()
    return LockFile(
        pid=postmaster,
        data_directory=lines[1],
        port=int(port) if port.isdigit() else None,
        socket_dir=lines[4].strip(),
    )


def server_log_path(postmaster: int) -> Path | None:
    """The log when standard error is a regular file (``pg_ctl -l``); None for a pipe, a terminal or journald."""
    target = link(postmaster, "fd/2")
    if target is None:
        return None
    path = Path(target)
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return path if stat.S_ISREG(mode) else None


def read_control(postmaster: int) -> tuple[dict[str, str], str]:
    """Selected lines of ``pg_controldata``, and the reason when there are none.

    The program is taken from beside the server's own executable, so that the versions agree, and as root it runs
    as the server's user: root must not run what another user may have put there. On a standby the limits are
    those of the primary, as its WAL recorded them.
    Source: https://www.postgresql.org/docs/current/app-pgcontroldata.html
    """
    output, reason = _run_beside(postmaster, "pg_controldata")
    return (parse_control(output), "") if output is not None else ({}, reason)


def read_limits(postmaster: int) -> dict[str, str]:
    """The limits a running server was started with, without asking it: files first, its command line over them.

    ``postgres -C`` shows what the files say; what was given on the command line stands in postmaster.opts.
    Source: https://www.postgresql.org/docs/current/app-postgres.html
    """
    found: dict[str, str] = {}
    for name in LIMITS:
        output, _ = _run_beside(postmaster, "postgres", "-C", name)
        if output is not None:
            found[name] = output.strip()
    given = (read_bytes(f"/proc/{postmaster}/cwd/postmaster.opts") or b"").decode("utf-8", "replace")
    for name, value in re.findall(r"[\"\s](?:-c\"?\s+\"?|--)([\w-]+)=([^\"\s]+)", given):
        if name.replace("-", "_") in LIMITS:
            found[name.replace("-", "_")] = value
    return found


def _run_beside(postmaster: int, program: str, *arguments: str) -> tuple[str | None, str]:
    """What a program from beside the server's executable prints about its data directory, or why nothing."""
    executable, directory = link(postmaster, "exe"), data_directory_of(postmaster)
    if executable is None or directory is None:
        return None, "the server's executable or data directory is not shown to us"
    path = Path(executable).with_name(program)
    if not path.exists():
        return None, f"no {program} beside {executable}"
    try:
        owner = Path(f"/proc/{postmaster}").stat()
        drop: dict[str, Any] = {}
        if os.geteuid() == 0:
            drop = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        done = subprocess.run(
            [path, "-D", directory, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CONTROL_DEADLINE_S,
            check=False,
            cwd="/",
            env={"LC_ALL": "C"},
            **drop,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return None, f"{program} did not run: {type(e).__name__}"
    if done.returncode != 0:
        return None, f"{program}: {(done.stderr.strip() or 'failed').splitlines()[-1]}"
    return done.stdout, ""


def parse_control(text: str) -> dict[str, str]:
    """The selected lines as a mapping, names as printed."""
    pairs = re.findall(r"^([^:\n]+):[ \t]*(.*)$", text, re.MULTILINE)
    return {name: value.strip() for name, value in pairs if name in _CONTROL}
