"""The kernel's TCP table, as far as it concerns one server port.

Source: https://docs.kernel.org/networking/proc_net_tcp.html (the fields), tcp(7) (the states)
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

End = tuple[str, int]
"""Address and port."""

STATES = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
    12: "NEW_SYN_RECV",
}
MAX_LINES = 300_000
"""Lines read at most: a machine with more sockets is told about, not studied."""
_FILES = ("/proc/net/tcp", "/proc/net/tcp6")
_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x301
_ERROR, _DONE = 2, 3
_GET_FLAGS, _GET_ADDRESS, _UP = 0x8913, 0x8915, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket:
    """One row. IPv4 addresses mapped into IPv6 are given as IPv4."""

    local: End
    remote: End
    state: str
    unacknowledged_bytes: int
    """Sent, or waiting to be sent, and not acknowledged by the peer."""
    unread: int
    """Bytes not read; for a LISTEN row connections not accepted."""
    retransmits: int
    """Consecutive retransmissions without an answer."""
    probes: int
    """Consecutive keepalive or window probes without an answer."""
    uid: int
    inode: int
    """0 when no process holds it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows that have the server's port at either end."""

    sockets: tuple[Socket, ...]
    complete: bool
    """False when a file could not be read or was too long: then absence proves nothing."""

    def listening(self, port: int) -> tuple[Socket, ...]:
        """The listeners on a port."""
        return tuple(s for s in self.sockets if s.state == "LISTEN" and s.local[1] == port)

    def server_ends(self, port: int) -> dict[End, Socket]:
        """The server's ends by the client's address and port."""
        return {s.remote: s for s in self.sockets if s.local[1] == port and s.state not in {"LISTEN", "TIME_WAIT"}}

    def client_ends(self, port: int) -> dict[End, Socket]:
        """The ends of clients on this machine by their own address and port."""
        return {s.local: s for s in self.sockets if s.remote[1] == port and s.state != "LISTEN"}

    def time_wait(self, port: int) -> int:
        """Closed connections of a port that the kernel still remembers."""
        return sum(1 for s in self.sockets if s.state == "TIME_WAIT" and port in {s.local[1], s.remote[1]})


def read_table(port: int, files: Iterable[str] = _FILES) -> Table:
    """Read the rows that concern a port, in the network namespace we are in."""
    wanted = f":{port:04X}"
    sockets: list[Socket] = []
    complete = True
    for name in files:
        try:
            with Path(name).open(encoding="ascii", errors="replace") as lines:
                next(lines, None)  # headings
                for number, line in enumerate(lines):
                    if number >= MAX_LINES:
                        complete = False
                        break
                    if wanted in line:
                        found = parse_row(line, port)
                        if found is not None:
                            sockets.append(found)
        except FileNotFoundError:
            continue  # a kernel without IPv6
        except OSError:
            complete = False
    return Table(sockets=tuple(sockets), complete=complete)


def parse_row(line: str, port: int) -> Socket | None:
    """One line of the table, or None when it has nothing to do with the port or cannot be read."""
    fields = line.split()
    try:
        local, remote = _end(fields[1]), _end(fields[2])
        if port not in {local[1], remote[1]}:
            return None
        unacknowledged, unread = fields[4].split(":")
        return Socket(
            local=local,
            remote=remote,
            state=STATES.get(int(fields[3], 16), fields[3]),
            unacknowledged_bytes=int(unacknowledged, 16),
            unread=int(unread, 16),
            retransmits=int(fields[6], 16),
            uid=int(fields[7]),
            probes=int(fields[8]),
            inode=int(fields[9]),
        )
    except (IndexError, ValueError):
        return None


def normalise(address: str) -> str:
    """One spelling per address: no netmask, no zone, IPv4 mapped into IPv6 as IPv4. Names are left alone."""
    text = address.partition("/")[0].partition("%")[0]
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def is_loopback(address: str) -> bool:
    """Whether an address can only be this machine's own."""
    try:
        return ipaddress.ip_address(normalise(address)).is_loopback
    except ValueError:
        return False


def is_local(address: str) -> bool:
    """Whether an address belongs to this network namespace: whether we may bind to it."""
    if is_loopback(address):
        return True
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if _binds_anything(family):
        return False  # every address would seem to be ours
    try:
        with socket.socket(family, socket.SOCK_STREAM) as s:
            s.bind((address.partition("/")[0], 0))
    except (OSError, UnicodeError):
        return False
    return True


def switched_off(address: str) -> str | None:
    """The interface whose first IPv4 address this is, when that interface is switched off; else None.

    Its address stays ours, but nothing reaches it, and what is sent from it leaves another way.
    Source: https://man7.org/linux/man-pages/man7/netdevice.7.html
    """
    import fcntl  # noqa: PLC0415 - missing on systems where this is never called

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            try:
                answer = fcntl.ioctl(s, _GET_ADDRESS, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    (flags,) = struct.unpack_from("=H", fcntl.ioctl(s, _GET_FLAGS, request), 16)
                    return None if flags & _UP else name
            except OSError:  # it has no IPv4 address, or went away
                continue
    return None


def accept_queue(port: int) -> tuple[int, int] | None:
    """Connections waiting to be accepted and the room for them, of the fullest TCP listener of a port.

    None where the kernel does not answer socket diagnosis requests.
    Source: https://man7.org/linux/man-pages/man7/sock_diag.7.html
    """
    found: list[tuple[int, int]] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            found += _listeners(family, port)
        except OSError:
            continue
    return max(found, key=lambda q: q[0] / max(1, q[1]), default=None)


def _listeners(family: int, port: int) -> list[tuple[int, int]]:
    request = struct.pack("=BBBxI48s", family, socket.IPPROTO_TCP, 0, 1 << 10, b"")
    header = struct.pack("=IHHII", 16 + len(request), _DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
    found: list[tuple[int, int]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as s:  # 4: NETLINK_SOCK_DIAG
        s.settimeout(0.5)
        s.send(header + request)
        while True:
            answer = s.recv(65536)
            at = 0
            while at + 16 <= len(answer):
                length, kind = struct.unpack_from("=IH", answer, at)
                if kind in {_DONE, _ERROR} or length < 16:
                    return found
                (source_port,) = struct.unpack_from("!H", answer, at + 20)
                queued, room = struct.unpack_from("=II", answer, at + 16 + 4 + 48 + 4)
                if source_port == port:
                    found.append((queued, room))
                at += (length + 3) & ~3


def _binds_anything(family: int) -> bool:
    name = "ipv6" if family == socket.AF_INET6 else "ipv4"
    try:
        return Path(f"/proc/sys/net/{name}/ip_nonlocal_bind").read_text(encoding="ascii").strip() != "0"
    except OSError:
        return False


def _end(text: str) -> End:
    address, port = text.split(":")
    return _address(address), int(port, 16)


@lru_cache(maxsize=65536)
def _address(text: str) -> str:
    """Addresses stand as 32-bit words in the machine's own byte order."""
    words = bytes.fromhex(text)
    if sys.byteorder == "little":
        words = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
    return normalise(str(ipaddress.ip_address(words)))
