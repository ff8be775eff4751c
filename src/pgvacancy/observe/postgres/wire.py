"""The first exchange of the PostgreSQL protocol: our start-up packet and whatever comes back.

Nothing here opens a connection: bytes come from a function, so any bytes can be tried. What is read is bounded in
size (:data:`MAX_MESSAGE_BYTES` a message, :data:`MAX_REPLY_BYTES` in all); the function that reads is bounded in time
by its owner. A reply that breaks the protocol is not an error but an answer: whoever speaks is not PostgreSQL.

Source: https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

PROTOCOL_3_0 = 196608
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
TERMINATE = b"X\x00\x00\x00\x04"

MAX_MESSAGE_BYTES = 30_000
"""An honest reply is far shorter; libpq draws the line for errors at the same size."""
MAX_REPLY_BYTES = 65_536
MAX_MESSAGES = 256
MAX_OLD_STYLE_BYTES = 2_000

SASL = 10
AUTHENTICATION_METHODS: Mapping[int, str] = {
    2: "Kerberos V5",
    3: "password",
    5: "md5",
    6: "SCM credential",
    7: "GSSAPI",
    9: "SSPI",
    SASL: "SASL",
}
"""Requests a server may begin with. Source: the page above, "AuthenticationOk" and those after it."""

_MAY_FOLLOW_LOGIN = frozenset(b"ENSKZv")

Receive = Callable[[int], bytes]
"""Gives 1 to n bytes, b"" at the end of the stream, raises TimeoutError when its time is up."""

ReplyKind = Literal["authentication", "ready", "error", "foreign", "closed", "silent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorFields:
    """The fields of an ErrorResponse that we look at. ``old_style`` packets carry text alone."""

    sqlstate: str | None = None
    message: str = ""
    severity: str | None = None
    """Field V, not translated (9.6+); S where V is missing."""
    detail: str = ""
    routine: str | None = None
    file: str | None = None
    old_style: bool = False

    @property
    def has_source(self) -> bool:
        """PostgreSQL names file and routine in every error; poolers leave them out."""
        return bool(self.routine or self.file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the other end said to a start-up packet, up to the point where we know enough."""

    kind: ReplyKind
    logged_in: bool = False
    """AuthenticationOk was seen."""
    method: str = ""
    """The kind of authentication asked for."""
    mechanisms: tuple[str, ...] = ()
    """For SASL: what is offered."""
    error: ErrorFields | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    backend_pid: int | None = None
    seen: bytes = b""
    """First bytes of a foreign reply."""
    why: str = ""
    """What is wrong with a foreign reply, or at which point the stream ended."""


def startup_message(parameters: Mapping[str, str]) -> bytes:
    """The start-up packet, protocol 3.0. Names and values must be free of NUL; empty values are left out."""
    body = b"".join(
        name.encode() + b"\0" + value.encode("utf-8", "surrogateescape") + b"\0"
        for name, value in parameters.items()
        if value
    )
    return struct.pack("!ii", len(body) + 9, PROTOCOL_3_0) + body + b"\0"


class _ForeignError(Exception):
    """The bytes break the protocol."""


class _ClosedError(Exception):
    """The stream ended."""


class _Reader:
    """A bounded buffer. ``head`` holds bytes that were read before."""

    def __init__(self, receive: Receive, head: bytes = b"") -> None:
        self._receive = receive
        self._buffer = bytearray(head)
        self._total = len(head)
        self.first = bytes(head)
        """The first bytes received, for a person to recognise what is speaking."""

    @property
    def silent(self) -> bool:
        """Not one byte has come."""
        return self._total == 0

    def _fill(self) -> None:
        chunk = self._receive(4096)
        if not chunk:
            raise _ClosedError
        self._total += len(chunk)
        if self._total > MAX_REPLY_BYTES:
            raise _ForeignError(f"more than {MAX_REPLY_BYTES} bytes and still no end")
        if len(self.first) < 80:
            self.first = (self.first + chunk)[:80]
        self._buffer += chunk

    def exactly(self, n: int) -> bytes:
        while len(self._buffer) < n:
            self._fill()
        taken = bytes(self._buffer[:n])
        del self._buffer[:n]
        return taken

    def until_nul(self, limit: int) -> bytes:
        """Everything up to and with the next NUL, or ``limit`` bytes, or what came before the end."""
        while b"\0" not in self._buffer and len(self._buffer) < limit:
            try:
                self._fill()
            except _ClosedError:
                break
        end = self._buffer.find(b"\0")
        return self.exactly(min(len(self._buffer), limit) if end < 0 else end + 1)


def read_reply(receive: Receive, head: bytes = b"") -> Reply:
    """Read until ReadyForQuery, an authentication request or an error; never raises for what was received.

    ``head`` are bytes of the reply that were read already. OSError other than TimeoutError passes through.
    """
    reader = _Reader(receive, head)
    state = _State()
    try:
        for _ in range(MAX_MESSAGES):
            reply = _step(reader, state)
            if reply is not None:
                return reply
        return Reply(kind="foreign", seen=reader.first, why=f"more than {MAX_MESSAGES} messages and still no end")
    except _ForeignError as e:
        return Reply(kind="foreign", seen=reader.first, why=str(e))
    except _ClosedError:
        if reader.silent:
            return Reply(kind="closed", why="before any answer")
        if state.at_boundary and state.logged_in:
            return state.reply("closed", why="after the log-in")
        return Reply(kind="foreign", seen=reader.first, why="the answer ends in mid-message")
    except TimeoutError:
        if not state.at_boundary:
            return state.reply("silent", seen=reader.first, why="in the middle of its answer")
        return state.reply("silent", why="after the log-in" if state.logged_in else "before any answer")


class _State:
    """What has been learnt from the messages so far."""

    def __init__(self) -> None:
        self.logged_in = False
        self.at_boundary = True
        self.parameters: dict[str, str] = {}
        self.backend_pid: int | None = None

    def reply(self, kind: ReplyKind, *, seen: bytes = b"", why: str = "", error: ErrorFields | None = None) -> Reply:
        return Reply(
            kind=kind,
            logged_in=self.logged_in,
            parameters=dict(self.parameters),
            backend_pid=self.backend_pid,
            seen=seen,
            why=why,
            error=error,
        )


def _step(reader: _Reader, state: _State) -> Reply | None:
    """Take one message. A reply when it settles the matter."""
    state.at_boundary = True
    tag = reader.exactly(1)
    state.at_boundary = False
    if tag[0] not in (_MAY_FOLLOW_LOGIN if state.logged_in else b"RENv"):
        raise _ForeignError("the first byte belongs to no message that may stand here")
    head = reader.exactly(4)
    length = struct.unpack("!I", head)[0]
    if not 4 <= length <= MAX_MESSAGE_BYTES:
        if tag == b"E" and not state.logged_in:
            return state.reply("error", error=_old_style(head, reader))
        raise _ForeignError(f"a message claims {length} bytes")
    body = reader.exactly(length - 4)
    if tag == b"E":
        return state.reply("error", error=parse_error(body))
    if tag == b"R":
        return _authentication(body, state)
    if tag == b"Z":
        if body not in {b"I", b"T", b"E"}:
            raise _ForeignError("ReadyForQuery without a transaction status")
        return state.reply("ready")
    if tag == b"S":
        name, _, value = body.rstrip(b"\0").partition(b"\0")
        state.parameters[readable(name)] = readable(value)
    elif tag == b"K" and len(body) >= 8:
        state.backend_pid = struct.unpack("!I", body[:4])[0]
    return None


def _authentication(body: bytes, state: _State) -> Reply | None:
    if len(body) < 4:
        raise _ForeignError("an authentication message without a method")
    code = struct.unpack("!I", body[:4])[0]
    if code == 0 and len(body) == 4:
        state.logged_in = True
        return None
    if code not in AUTHENTICATION_METHODS:
        raise _ForeignError(f"an unknown authentication method {code}")
    offered = tuple(readable(m) for m in body[4:].split(b"\0") if m) if code == SASL else ()
    return Reply(kind="authentication", method=AUTHENTICATION_METHODS[code], mechanisms=offered)


def parse_error(body: bytes) -> ErrorFields:
    """The fields of an ErrorResponse. Raises the reader's error when the body has another form."""
    fields: dict[str, str] = {}
    rest = body
    while rest and rest[0] != 0:
        end = rest.find(b"\0", 1)
        if end < 0:
            raise _ForeignError("an error field without an end")
        fields.setdefault(chr(rest[0]), readable(rest[1:end]))
        rest = rest[end + 1 :]
    sqlstate = fields.get("C")
    if rest != b"\0" or "M" not in fields or (sqlstate is not None and not _is_state(sqlstate)):
        raise _ForeignError("an error without the fields every PostgreSQL sends")
    return ErrorFields(
        sqlstate=sqlstate,
        message=fields["M"],
        severity=fields.get("V") or fields.get("S"),
        detail=fields.get("D", ""),
        routine=fields.get("R"),
        file=fields.get("F"),
    )


def _is_state(text: str) -> bool:
    return len(text) == 5 and text.isascii() and text.isalnum()


def _old_style(head: bytes, reader: _Reader) -> ErrorFields:
    """An error of protocol 2: text, end of line, NUL. The postmaster sends it when it cannot fork.

    Source: https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
    """
    text = head if b"\0" in head else head + reader.until_nul(MAX_OLD_STYLE_BYTES)
    line = text.decode("utf-8", "replace")
    if not line.endswith("\n\0") or not line[:-2].isprintable():
        raise _ForeignError("neither an error of protocol 3 nor one of protocol 2")
    return ErrorFields(message=readable(text[:-2]), old_style=True)


def readable(raw: bytes, limit: int = 500) -> str:
    """Text fit for a terminal: undecodable and control characters replaced, length bounded."""
    text = raw.decode("utf-8", "replace")[:limit]
    return "".join(c if c.isprintable() else (" " if c in "\n\r\t" else "\ufffd") for c in text)
