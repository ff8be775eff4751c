"""Which process on this machine holds the client end of a connection.

The kernel names a socket by its inode; ``/proc/PID/fd`` names the inodes a process holds. We see the
descriptors of our own user's processes, as root those of all. Clients in another network namespace (containers)
have their sockets in another table and are not found: no conclusion is drawn from that. Nor are clients on Unix
sockets, whose address and port are no identity.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from pgvacancy.model.evidence import ClientProcess
from pgvacancy.observe.host.procfs import descriptors, pids, read_bytes
from pgvacancy.observe.host.sockets import End, Socket

_INTERPRETERS = re.compile(r"(?:python|pypy|node|ruby|perl|php|java|bash|sh|uwsgi)[0-9.]*")
_SECRET = re.compile(r"://|passw|=", re.IGNORECASE)
_LONGEST = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What was found, and whether all could be looked at."""

    clients: tuple[ClientProcess, ...] = ()
    closed_to_us: int = 0
    """Processes whose descriptors belong to another user."""
    missing: int = 0
    """Clients of this machine whose process was not found."""
    stopped_early: bool = False


BUDGET_S = 1.5
"""A loaded machine needs its time: without the clients' processes, one address looks like one client."""


def find_clients(ends: Mapping[End, Socket], *, skip: Collection[int] = (), budget_s: float = BUDGET_S) -> Search:
    """Processes that hold these client ends. ``skip``: the server's own. Stops after ``budget_s`` seconds."""
    wanted = {f"socket:[{s.inode}]": end for end, s in ends.items() if s.inode}
    found: list[ClientProcess] = []
    closed = 0
    deadline = time.monotonic() + budget_s
    # The newest first: clients that come and go are young, and what the machine started with is none of them.
    for pid in sorted(set(pids()) - set(skip), reverse=True) if wanted else ():
        if not wanted or time.monotonic() > deadline:
            break
        held = descriptors(pid)
        if held is None:
            closed += 1
            continue
        mine = [wanted.pop(name) for name in held if name in wanted]
        if mine:
            command = describe(read_bytes(f"/proc/{pid}/cmdline") or b"")
            found += [ClientProcess(address=a, port=p, pid=pid, command=command) for a, p in mine]
    return Search(
        clients=tuple(found),
        closed_to_us=closed,
        missing=len(wanted),
        stopped_early=bool(wanted) and time.monotonic() > deadline,
    )


def describe(cmdline: bytes) -> str:
    """A command line as short as it still tells programs apart, without anything that could be a secret.

    The program's name, and for interpreters the script or module; never other arguments: people put
    passwords there.
    """
    arguments = [a.decode("utf-8", "replace") for a in cmdline.rstrip(b"\0").split(b"\0")]
    if len(arguments) == 1 and " " in arguments[0]:  # a program that wrote a title of its own
        words = arguments[0].split()
        safe = [w for w in words if not _SECRET.search(w)]
        return " ".join([PurePosixPath(safe[0]).name, *safe[1:4]])[:_LONGEST] if safe else "?"
    name = PurePosixPath(arguments[0]).name if arguments[0] else "?"
    script = _script(arguments[1:]) if _INTERPRETERS.fullmatch(name) else ""
    return f"{name} {script}".strip()[:_LONGEST]


def _script(arguments: list[str]) -> str:
    for at, argument in enumerate(arguments):
        if argument in {"-c", "-e", "--eval", "-"}:
            return ""
        if argument == "-m":
            return arguments[at + 1] if at + 1 < len(arguments) else ""
        if not argument.startswith("-"):
            name = PurePosixPath(argument).name
            return "" if _SECRET.search(argument) else name
    return ""
