"""Process titles: what a server process says about itself in ``/proc/PID/cmdline``. Pure, no I/O.

A backend shows ``postgres: [cluster_name: ]user database host(port) activity``. Names may contain blanks, so a
title is read from the right: the activity stands behind the last ``host(port)`` or ``[local]``.
Source: https://www.postgresql.org/docs/current/monitoring-ps.html
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

PREFIX = "postgres: "
LOGGING_IN = frozenset({"initializing", "authentication", "startup"})
_END = re.compile(r"(?:^|(?<= ))(?:\[local\]|(?P<host>[^\s()]+)\((?P<port>\d+)\))(?= |$)")
_ADDRESS = re.compile(r"[0-9.]+|[0-9a-fA-F]*:[0-9a-fA-F:.]*(?:%\S+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Title:
    """A title taken apart. ``kind`` as in :class:`~pgvacancy.model.evidence.BackendProcess`."""

    kind: str
    user: str | None = None
    database: str | None = None
    client_addr: str | None = None
    """None for a Unix socket and for a host shown by name (log_hostname)."""
    client_port: int | None = None
    """-1 for a Unix socket."""
    activity: str = ""


def text_of(cmdline: bytes) -> str:
    """A title as text; the server pads the rest of its old command line with zero bytes."""
    return cmdline.rstrip(b"\0").decode("utf-8", "replace")


def cluster_prefix(titles: Collection[str]) -> str:
    """The ``cluster_name: `` that stands in every title, read off the checkpointer's, which has no other part.

    Empty when there is no checkpointer to read it from, or no cluster_name.
    """
    for title in titles:
        if title.startswith(PREFIX) and title.rstrip().endswith("checkpointer"):
            return title.rstrip()[len(PREFIX) : -len("checkpointer")]
    return ""


def parse_title(title: str, *, prefix: str = "", databases: Collection[str] = ()) -> Title:
    """Take a title apart.

    ``prefix`` is that of :func:`cluster_prefix`. ``databases`` are known names, used to split ``user database``
    where names contain blanks; without them the database is the last word.
    """
    if not title.startswith(PREFIX):
        # Forked, but the client has not sent its start-up packet yet: the title is still the postmaster's.
        return Title(kind="connecting")
    rest = title[len(PREFIX) :].removeprefix(prefix)
    ends = list(_END.finditer(rest))
    if not ends:
        return Title(kind="auxiliary", activity=rest.strip())
    end = ends[-1]
    names, activity = rest[: end.start()].strip(), rest[end.end() :].strip()
    walsender = names.startswith("walsender ")
    user, database = _names(names.removeprefix("walsender ") if walsender else names, databases)
    host = end.group("host")
    kind = "walsender" if walsender else "client backend"
    if activity in LOGGING_IN and not walsender:
        kind = "authenticating"
    return Title(
        kind=kind,
        user=user,
        database=database,
        client_addr=host if host and _ADDRESS.fullmatch(host) else None,
        client_port=int(end.group("port")) if host else -1,
        activity=activity,
    )


def _names(text: str, databases: Collection[str]) -> tuple[str | None, str | None]:
    known = max((d for d in databases if text.endswith(f" {d}")), key=len, default=None)
    if known is not None:
        return text[: -len(known) - 1] or None, known
    user, blank, database = text.rpartition(" ")
    if not blank:  # a walsender: a physical one names no database, up to 15 none does
        return text or None, None
    return user, database
