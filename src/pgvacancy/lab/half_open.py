"""A client that begins to log in and never goes on: it sends the start-up packet and leaves the password unanswered.

Run as ``python -m pgvacancy.lab.half_open --port 5432 --user app --sessions 18``. It prints one JSON line when every
connection has been asked for a password, opens again what the server closes after ``--think`` seconds, and ends when
its standard input closes. Each connection holds a slot until authentication_timeout.
Source: https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import struct
import sys
import threading

_PROTOCOL_3 = 196608


def startup_packet(user: str, database: str, **parameters: str) -> bytes:
    """The first message of a client: its length, the protocol version, names and values, a zero byte."""
    values = {"user": user, "database": database, **parameters}
    names = b"".join(text.encode() + b"\0" for pair in values.items() for text in pair)
    body = struct.pack("!I", _PROTOCOL_3) + names + b"\0"
    return struct.pack("!I", len(body) + 4) + body


def begin_login(host: str, port: int, packet: bytes) -> socket.socket | None:
    """Connect and wait for the demand for a password; None when the server says anything else."""
    try:
        connection = socket.create_connection((host, port), timeout=5)
        connection.sendall(packet)
        reply = connection.recv(1)
    except OSError:
        return None
    if reply == b"R":
        return connection
    connection.close()
    return None


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has given the log-in up."""
    with contextlib.suppress(OSError):
        while select.select([connection], [], [], 0)[0]:
            if not connection.recv(4096):
                return True
        return False
    return True


def main() -> None:
    """Keep log-ins half open until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--user", default="app")
    parser.add_argument("--database", default="app")
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--think", type=float, default=10.0, help="seconds before a closed one is opened again")
    options = parser.parse_args()
    packet = startup_packet(options.user, options.database)
    stop = threading.Event()
    opened: list[socket.socket] = []

    def fill() -> None:
        while len(opened) < options.sessions and not stop.is_set():
            connection = begin_login(options.host, options.port, packet)
            if connection is None:
                return
            opened.append(connection)

    def keep() -> None:
        while not stop.wait(options.think):
            opened[:] = [c for c in opened if not is_closed(c)]
            fill()

    fill()
    sys.stdout.write(json.dumps({"event": "ready", "open": len(opened)}) + "\n")
    sys.stdout.flush()
    threading.Thread(target=keep, daemon=True).start()
    sys.stdin.read()
    stop.set()


if __name__ == "__main__":
    main()
