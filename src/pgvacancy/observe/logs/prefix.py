"""``log_line_prefix``: a regular expression from a known one, an educated look at an unknown one.

Source: https://www.postgresql.org/docs/current/runtime-config-logging.html#GUC-LOG-LINE-PREFIX
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pgvacancy.observe.logs.record import text


class Parts(NamedTuple):
    """What a prefix tells of its line."""

    session: str = ""
    user: str = ""
    database: str = ""
    client: str = ""
    """As printed: ``host``, ``host(port)`` or ``host:port``."""
    sqlstate: str = ""


_STAMP = rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?(?: [A-Za-z0-9+:-]+)?"
_FIXED = {
    "t": _STAMP, "m": _STAMP, "s": _STAMP, "n": rb"\d+\.\d+", "l": rb"\d+", "x": rb"\d+", "P": rb"\d*", "Q": rb"-?\d+",
    "p": rb"(?P<pid>\d+)", "e": rb"(?P<sqlstate>[0-9A-Z]{5})", "c": rb"(?P<session>[0-9a-f]+\.[0-9a-f]+)",
}  # fmt: skip  # a table
_NAMED = {"u": b"user", "d": b"database", "h": b"client", "r": b"client"}
_ESCAPE = re.compile(r"%(-?\d+)?(.)|([^%]+)|%", re.DOTALL)


_AMBIGUOUS = re.compile(r"%-?\d*[^%tmsnlxPQpecq0-9-](?:%q)?%-?\d*[^%tmsnlxPQpecq0-9-]")
_NEVER = re.compile(rb"(?!)")


def compile_prefix(prefix: str) -> re.Pattern[bytes]:
    """A regular expression for the lines of a server with this ``log_line_prefix``.

    Free text such as a user's name runs up to the literal character that follows it in the prefix, so matching takes
    linear time; a name that has this character inside does not match, and the line is then read by its look.
    """
    tokens = list(_ESCAPE.finditer(prefix))
    pattern: list[bytes] = []
    seen: set[bytes] = set()
    optional = 0
    if _AMBIGUOUS.search(prefix):
        # Two names without a character between them cannot be told apart.
        return _NEVER
    for place, token in enumerate(tokens):
        width, escape, literal = token[1], token[2], token[3]
        if escape is None:
            pattern.append(re.escape((literal or "%").encode()))
        elif escape == "%":
            pattern.append(b"%")
        elif escape == "q":
            pattern.append(b"(?:")
            optional += 1
        else:
            part = _part(escape, tokens[place + 1] if place + 1 < len(tokens) else None, seen)
            pattern.append(b" *" + part + b" *" if width else part)
    return re.compile(b"".join(pattern) + b")?" * optional)


def _part(escape: str, follows: re.Match[str] | None, seen: set[bytes]) -> bytes:
    """The expression for one escape; a name is taken from its first place in the prefix."""
    if escape in _FIXED:
        fixed = _FIXED[escape]
        name = re.match(rb"\(\?P<(\w+)>(.*)\)$", fixed)
        if name is None:
            return fixed
        if name[1] in seen:
            return name[2]
        seen.add(name[1])
        return fixed
    stop = (follows[3] or "")[:1].encode() if follows else b""
    # One byte is enough to stop at: of a longer character the first byte is.
    body = rb"[^" + re.escape(stop[:1]) + rb"\n]*" if stop else rb"[^\s]*?"
    name_of = _NAMED.get(escape)
    if name_of is None or name_of in seen:
        return body
    seen.add(name_of)
    return b"(?P<" + name_of + b">" + body + b")"


def parts_of(found: re.Match[bytes]) -> Parts:
    """The parts of a prefix that matched."""
    groups = {name: text(value or b"") for name, value in found.groupdict().items()}
    return Parts(
        session=groups.get("session") or groups.get("pid", ""),
        user=groups.get("user", ""),
        database=groups.get("database", ""),
        client=_without_port(groups.get("client", "")),
        sqlstate=groups.get("sqlstate", ""),
    )


_SESSION = re.compile(rb"(?<![\w.])([0-9a-f]{8}\.[0-9a-f]{1,8})(?![\w.])")
_PID = re.compile(rb"\[(?:pid[ =:]?)?(\d{1,10})(?:-\d+)?\]|(?<![\w])pid[ =:](\d{1,10})", re.IGNORECASE)
_USER = re.compile(rb"(?<![\w])user(?:name)?[=:] ?([^\s,;\]]*)", re.IGNORECASE)
_DATABASE = re.compile(rb"(?<![\w])(?:db|database|dbname|datname)[=:] ?([^\s,;\]]*)", re.IGNORECASE)
_AT = re.compile(rb"(?<![^\s,(:\]])(\[unknown\]|[^\s@,=\[\]:(]+)@(\[unknown\]|[^\s@,/:)\[\]]*)")
_CLIENT = re.compile(rb"(?<![\w])(?:client|host|remote|ip|addr|address|from|h|r)[=:] ?([^\s,;\]]+\]?)", re.IGNORECASE)
_ADDRESS = re.compile(
    rb"(?<![\w.:])(\[local\]|\d{1,3}(?:\.\d{1,3}){3}(?:[:(]\d+\)?)?|[0-9a-f:]*:[0-9a-f:]+\(\d+\))(?![\w.])"
)
_SQLSTATE = re.compile(rb"(?<![\[\w.:-])(00000|53300|28P01|28000|57014|57P03|08P01|3D000)(?![\w.:\]-])")
ZERO_CODE = re.compile(rb"(?<![\[\w.:-])00000(?![\w.:\]-])")
"""The SQLSTATE of nearly every line: seen in a prefix it says that the prefix carries ``%e``."""


def infer_parts(prefix: bytes, *, names: bool, has_sqlstate: bool) -> Parts:
    """What can be recognised in a prefix nobody described; user, database and client only if ``names``."""
    session = _SESSION.search(prefix)
    pids = [found[1] or found[2] for found in _PID.finditer(prefix)]
    sqlstate = _SQLSTATE.search(prefix) if has_sqlstate else None
    parts = Parts(
        # Behind a syslog header the last bracket is the server's own.
        session=text(session[1] if session else pids[-1] if pids else b""),
        sqlstate=text(sqlstate[1]) if sqlstate else "",
    )
    if not names:
        return parts
    at_sign = _AT.search(prefix)
    user, database = _USER.search(prefix), _DATABASE.search(prefix)
    client = _CLIENT.search(prefix) or _ADDRESS.search(prefix)
    return parts._replace(
        user=text(user[1] if user else at_sign[1] if at_sign else b""),
        database=text(database[1] if database else at_sign[2] if at_sign else b""),
        client=_without_port(text(client[1])) if client else "",
    )


def _without_port(client: str) -> str:
    """``host(port)`` as ``%r`` prints it, or ``host:port``, without the port."""
    if client.endswith(")"):
        return client.partition("(")[0]
    return client.partition(":")[0] if client.count(":") == 1 else client
