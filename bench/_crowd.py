"""Many sessions held by one light process: bare sockets, no driver. ``python -m bench._crowd --help``.

Each session logs in (trust), runs one statement of a few hundred characters, as an application's last statement
would be, and rests. With ``--waiters`` one more session locks a table and so many others queue behind it. It prints
one line when it is done (``{"open": n, "refused": n, "waiting": n}``) and leaves when its standard input closes.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgvacancy.lab.lab import Process
from pgvacancy.observe.postgres.wire import TERMINATE, read_reply, startup_message

BATCH = 32
TIMEOUT_S = 60.0
KEEP_FREE_BYTES = 3 * 1024**3
STATEMENT = (
    "SELECT o.id, o.placed_at, o.total, c.name FROM (VALUES (1, now(), 12.5, 7)) AS o(id, placed_at, total, customer)"
    " JOIN (VALUES (7, 'Ada')) AS c(id, name) ON c.id = o.customer WHERE o.placed_at > now() - interval '1 day'"
    " ORDER BY o.placed_at DESC LIMIT 20"
)


def query(text: str) -> bytes:
    """A statement by the simple protocol."""
    body = text.encode() + b"\0"
    return b"Q" + struct.pack("!i", len(body) + 4) + body


def free_memory_bytes() -> int:
    """What the kernel could still give away."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


class Crowd:
    """The sessions."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Open none yet."""
        self._options = options
        self._sockets: list[socket.socket] = []
        self.refused = 0

    def grow(self, count: int) -> None:
        """Open so many more, a few at a time; stop early when memory runs low."""
        left = count
        while left > 0 and free_memory_bytes() > KEEP_FREE_BYTES:
            batch = [self._begin() for _ in range(min(BATCH, left))]
            left -= len(batch)
            for opened in [s for s in batch if self._logged_in(s)]:
                opened.sendall(query(STATEMENT))
                _until_ready(opened)
                self._sockets.append(opened)

    def _begin(self) -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", self._options.port), TIMEOUT_S)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        parameters = {
            "user": self._options.user,
            "database": self._options.database,
            "application_name": self._options.application_name,
        }
        opened.sendall(startup_message(parameters))
        return opened

    def _logged_in(self, opened: socket.socket) -> bool:
        if read_reply(opened.recv).kind == "ready":
            return True
        self.refused += 1
        opened.close()
        return False

    def wait_for_a_lock(self, waiters: int) -> int:
        """One session locks a table, so many others queue for it; how many."""
        before = len(self._sockets)
        self.grow(waiters + 1)
        blocker, *others = self._sockets[before:]
        blocker.sendall(query("BEGIN; LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE"))
        _until_ready(blocker)
        for other in others:
            other.sendall(query("UPDATE accounts SET balance = balance + 1 WHERE id = 7"))
        return len(others)

    @property
    def size(self) -> int:
        """How many are open."""
        return len(self._sockets)

    def leave(self) -> None:
        """Say good-bye, as a driver does."""
        for opened in self._sockets:
            try:
                opened.sendall(TERMINATE)
            except OSError:
                continue
            finally:
                opened.close()


def _until_ready(opened: socket.socket) -> None:
    tail = b""
    while tail[-6:-1] != b"Z\0\0\0\5":  # ReadyForQuery
        chunk = opened.recv(8192)
        if not chunk:
            raise ConnectionError("the server closed a session")
        tail = (tail + chunk)[-6:]


@contextmanager
def crowd(
    port: int, sessions: int, *, waiters: int = 0, user: str = "app", name: str = "shop"
) -> Iterator[dict[str, int]]:
    """Hold sessions while the block runs; what was opened."""
    process = Process(
        [
            *(sys.executable, "-m", "bench._crowd", "--port", str(port), "--sessions", str(sessions)),
            *("--waiters", str(waiters), "--user", user, "--application-name", name),
        ],
        cwd=Path(__file__).parents[1],
        stderr=None,
    )
    try:
        opened: dict[str, int] = json.loads(process.line(300))
        yield opened
    finally:
        process.stop(60)


def main() -> None:
    """Open, say so, wait to be told to leave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--waiters", type=int, default=0)
    parser.add_argument("--user", default="app")
    parser.add_argument("--database", default="app")
    parser.add_argument("--application-name", default="shop")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = options.sessions + options.waiters + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
    here = Crowd(options)
    here.grow(options.sessions)
    waiting = here.wait_for_a_lock(options.waiters) if options.waiters else 0
    sys.stdout.write(json.dumps({"open": here.size, "refused": here.refused, "waiting": waiting}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    here.leave()


if __name__ == "__main__":
    main()
