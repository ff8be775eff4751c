"""One log entry of interest, whatever format it was written in, and what every format has to offer."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Record(NamedTuple):
    """An entry as far as we need it. Text is decoded; ``at`` is seconds since the epoch, UTC."""

    at: float | None
    session: str
    """Session id, or pid where the format has no session id; empty where it has neither."""
    severity: str
    sqlstate: str | None
    """None where the format does not tell it."""
    message: str
    user: str | None = None
    database: str | None = None
    client: str | None = None
    """Address without the port, or ``[local]``."""
    detail: str = ""
    backend_type: str = ""


class Dialect(Protocol):
    """One log format: how to find candidates in a block of bytes, and how to read one."""

    name: str
    needles: tuple[bytes, ...]
    """A line can only matter when it contains one of these."""
    old_needles: tuple[bytes, ...]
    """The same for lines older than the recent window."""

    def parse(self, block: bytes, start: int, end: int) -> Record | None:
        """Read the entry whose line is ``block[start:end]``; None when it is no entry, or only part of one.

        Entries may go on behind ``end``, up to the end of the block.
        """

    def line_at(self, line: bytes) -> float | None:
        """The time of a line, None when it has none."""

    def looks_relevant(self, line: bytes) -> bool:
        """Whether a line that could not be read was meant to be an entry of its own."""


def text(raw: bytes) -> str:
    """Decode; bytes that are no UTF-8 become replacement characters."""
    return raw.decode("utf-8", "replace").replace("\x00", "")


def known(value: str | None) -> str | None:
    """None for what the server prints while it does not know a name yet."""
    return None if value in {None, "", "[unknown]", "(nodb)", "(nouser)", "(nouser)@(nodb)"} else value


def host_of(address: str) -> str | None:
    """The host of ``host:port`` (IPv6 addresses stand without brackets)."""
    if not address or address.startswith("[local]"):
        return "[local]" if address else None
    host, colon, port = address.rpartition(":")
    return host if colon and port.isdigit() and host else address
