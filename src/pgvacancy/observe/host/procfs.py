"""Reading ``/proc`` with care: processes end between two reads, and not everything is ours to see.

Source: https://docs.kernel.org/filesystems/proc.html
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    command: str
    start_ticks: int
    """Clock ticks between boot and the start of the process."""


def supported() -> bool:
    """Whether this machine has a Linux ``/proc``."""
    return sys.platform == "linux" and (PROC / "self" / "stat").exists()


def read_bytes(path: str) -> bytes | None:
    """A whole file, or None when it is gone or closed to us. Cheaper than ``Path.read_bytes`` by far."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks)
    except OSError:  # the process ended while we read
        return None
    finally:
        os.close(fd)


def pids() -> Iterator[int]:
    """Every process we may see."""
    with os.scandir(PROC) as entries:
        yield from (int(e.name) for e in entries if e.name.isdigit())


def process(pid: int) -> Process | None:
    """One process, or None when it has ended."""
    raw = read_bytes(f"/proc/{pid}/stat")
    if raw is None:
        return None
    # The command stands in parentheses and may itself contain blanks and parentheses.
    head, _, tail = raw.rpartition(b")")
    fields = tail.split()
    if len(fields) < 20:
        return None
    command = head.partition(b"(")[2].decode("utf-8", "replace")
    return Process(pid=pid, parent=int(fields[1]), command=command, start_ticks=int(fields[19]))


def processes() -> dict[int, Process]:
    """The process table."""
    found = (process(pid) for pid in pids())
    return {p.pid: p for p in found if p is not None}


@cache
def boot_at() -> float:
    """The instant the machine started, seconds since the epoch.

    Taken once: start times that follow from it identify sessions from one reading to the next.
    """
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def start_at(found: Process, boot: float) -> float:
    """The instant a process started, seconds since the epoch, to a hundredth."""
    return boot + found.start_ticks / os.sysconf("SC_CLK_TCK")


def link(pid: int, name: str) -> str | None:
    """Where a link such as ``cwd``, ``exe`` or ``ns/net`` points; None when it is closed to us."""
    try:
        return os.readlink(f"/proc/{pid}/{name}")  # noqa: PTH115 - an opened socket's link is no path
    except OSError:
        return None


def descriptors(pid: int) -> list[str] | None:
    """What a process has open, as ``socket:[inode]``, ``pipe:[inode]`` or a path.

    None when that is not ours to see; empty when the process has ended.
    """
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)  # noqa: PTH208 - thousands of names: no object for each
    except PermissionError:
        return None
    except OSError:
        return []
    found = (link(pid, f"fd/{name}") for name in names)
    return [target for target in found if target is not None]
