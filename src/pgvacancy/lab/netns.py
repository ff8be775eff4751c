"""A second machine in miniature: a network namespace joined to ours by a cable that can be cut.

Clients in it have an address of their own; :meth:`Namespace.cut` makes them vanish without a farewell, as a
host that lost its power does. Needs root (CAP_NET_ADMIN) and the ``ip`` program of iproute2.
Source: https://man7.org/linux/man-pages/man8/ip-netns.8.html
"""

from __future__ import annotations

import ipaddress
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

from pgvacancy.lab.cluster import die_with_parent
from pgvacancy.model.errors import LabError, MissingProgramError

NETWORK = ipaddress.ip_network("10.203.0.0/16")
"""Private addresses; every namespace takes the two of a /30 out of it."""
PREFIX = "pgv-"
_PLACES = 2**14
_PROGRAM = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")


def unavailable() -> str:
    """Why no namespace can be made here; empty when one can."""
    if _PROGRAM is None:
        return "the ip program (iproute2) is not installed"
    if os.geteuid() != 0:
        return "making a network namespace needs root"
    name = f"{PREFIX}{_owner()}-try"
    done = _run("netns", "add", name)
    if done.returncode != 0:
        return f"no network namespace can be made: {done.stderr.strip()}"
    _run("netns", "delete", name)
    return ""


class Namespace:
    """``with Namespace() as far:`` and ``far.popen([...])`` runs a client on the far machine."""

    def __init__(self) -> None:
        """Prepare; nothing is made before the context is entered."""
        self.name = ""
        self.host_address = ""
        """Our end: what a client in the namespace connects to."""
        self.address = ""
        """The far end: what a server sees as the client's address."""
        self.device = ""
        self.far_device = ""
        self.processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Namespace:
        """Make it, having removed what dead runs left behind."""
        remove_stale()
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End its processes and remove it."""
        self.close()

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        stdin: int | IO[str] | None = subprocess.PIPE,
        stdout: int | IO[str] | None = subprocess.PIPE,
        stderr: int | IO[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Run a program inside. It ends with us, at the latest when the namespace is left."""
        process = subprocess.Popen(
            [_PROGRAM or "ip", "netns", "exec", self.name, *command],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            text=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one C call, prepared before the fork
        )
        self.processes.append(process)
        return process

    def cut(self, how: Literal["down", "delete"] = "down") -> None:
        """Cut the cable: nothing more goes either way.

        ``down`` switches the far end off, so our end loses its carrier; ``delete`` removes the cable with our
        address on it.
        """
        if how == "down":
            _ip("-n", self.name, "link", "set", "dev", self.far_device, "down")
        else:
            _ip("link", "delete", self.device)

    def mend(self) -> None:
        """Undo :meth:`cut` with ``down``."""
        _ip("-n", self.name, "link", "set", "dev", self.far_device, "up")

    def close(self) -> None:
        """End every process in it and remove it. May be called again."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    try:
                        stream.close()
                    except BrokenPipeError:  # it ended with unread input
                        continue
        self.processes.clear()
        if self.name:
            _remove(self.name, self.device)
            self.name = ""

    def _make(self) -> None:
        problem = unavailable()
        if problem:
            error = MissingProgramError if "installed" in problem else LabError
            raise error(
                "no second machine can be made for this scenario", seen=problem, next="run as root with iproute2"
            )
        for place in random.sample(range(_PLACES), 32):
            base = NETWORK[4 * place]
            device = f"pgv{place:x}h"
            if _taken(base):
                continue
            # The device's name follows from the place: of two runs that pick one place the second fails here.
            far = f"pgv{place:x}c"
            name = f"{PREFIX}{_owner()}-{place:x}"
            _ip("netns", "add", name)
            self.name = name
            if not _try("link", "add", device, "type", "veth", "peer", "name", far, "netns", name):
                _remove(name, "")
                self.name = ""
                continue
            self.device, self.far_device = device, far
            self.host_address, self.address = str(base + 1), str(base + 2)
            _ip("address", "add", f"{self.host_address}/30", "dev", device)
            _ip("link", "set", "dev", device, "up")
            _ip("-n", name, "address", "add", f"{self.address}/30", "dev", far)
            _ip("-n", name, "link", "set", "dev", far, "up")
            _ip("-n", name, "link", "set", "dev", "lo", "up")
            return
        raise LabError("no free address for a second machine", seen=f"32 places tried in {NETWORK}")


def remove_stale() -> None:
    """Remove the namespaces of runs that have ended without doing so."""
    for name in _names():
        owner, _, place = name.removeprefix(PREFIX).rpartition("-")
        if owner and not _alive(owner):
            _remove(name, f"pgv{place}h")


def _names() -> list[str]:
    done = _run("netns", "list")
    words = (line.split() for line in done.stdout.splitlines())
    return [w[0] for w in words if w and w[0].startswith(PREFIX)]


def _owner() -> str:
    """This process, told apart from a later one with the same pid by its start time."""
    return f"{os.getpid()}.{_start_ticks(os.getpid())}"


def _alive(owner: str) -> bool:
    pid, _, ticks = owner.partition(".")
    return pid.isdigit() and ticks == _start_ticks(int(pid))


def _start_ticks(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _remove(name: str, device: str) -> None:
    for pid in _run("netns", "pids", name).stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not _run("netns", "pids", name).stdout.strip():
            break
        time.sleep(0.02)
    if device:
        _try("link", "delete", device)
    _try("netns", "delete", name)


def _taken(base: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    done = _run("-4", "-o", "address", "show")
    return any(f" {base + n}/" in done.stdout for n in range(4))


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([_PROGRAM or "ip", *arguments], capture_output=True, text=True, check=False)


def _try(*arguments: str) -> bool:
    return _run(*arguments).returncode == 0


def _ip(*arguments: str) -> None:
    done = _run(*arguments)
    if done.returncode != 0:
        raise LabError(
            "the second machine cannot be set up", seen=done.stderr.strip(), tried=f"ip {' '.join(arguments)}"
        )
