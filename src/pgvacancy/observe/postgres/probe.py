"""The wire probe: it asks whether a slot is free right now, and which limit refuses.

One connection, one start-up packet, one reply. No password is sent, no session is kept: at ReadyForQuery the probe
says Terminate, anywhere else it closes. A probe costs the server one process and, for milliseconds, one slot; a
refusal costs it one line in its log.

Source: https://www.postgresql.org/docs/current/protocol-flow.html
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from pgvacancy.observe.postgres import wire
from pgvacancy.observe.postgres.conninfo import Host, Target
from pgvacancy.observe.postgres.tls import TlsSetupError, context_for, server_name
from pgvacancy.observe.postgres.verdict import Asked, Outcome, ProbeResult, judge

__all__ = ["ProbeResult", "probe"]

DEFAULT_TIMEOUT_S = 3.0
GOODBYE_S = 0.5
MAX_ADDRESSES = 8
"""A name that resolves to more is tried no further."""

_ANSWERS: frozenset[Outcome] = frozenset({"free", "refused"})
_WORTH: tuple[Outcome, ...] = ("starting-up", "tls-failed", "not-postgres", "unreachable")
"""When no host gives an answer: the outcome that says most stands first."""

Address = tuple[socket.AddressFamily, "str | tuple[object, ...]"]


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked, and of whom."""

    target: Target
    asked: Asked

    def packet(self) -> bytes:
        return wire.startup_message(
            {
                "user": self.asked.user,
                "database": self.asked.database,
                "application_name": "pgvacancy probe",
                "replication": "true" if self.asked.replication else "",
            }
        )


class _TlsError(Exception):
    """No TLS was had. ``retry_plain``: the server did not answer yet, so a mode that may do without asks again."""

    def __init__(self, why: str, *, retry_plain: bool = True) -> None:
        super().__init__(why)
        self.retry_plain = retry_plain


def probe(
    target: Target,
    *,
    user: str | None = None,
    database: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    replication: bool = False,
) -> ProbeResult:
    """Knock at each host in turn until one answers. ``timeout_s`` bounds each address, as libpq's connect_timeout.

    ``user`` and ``database`` override the target's. ``replication`` asks for a walsender instead of a client slot.
    Whatever the other end does gives a result; nothing is raised for it.
    """
    started = time.monotonic()
    user = user or target.user
    database = database or target.database or user
    question = _Question(target, Asked(user=user, database=database, replication=replication, timeout_s=timeout_s))
    misses: list[ProbeResult] = []
    for host in target.hosts:
        result = _ask_host(question, host)
        elapsed_ms = (time.monotonic() - started) * 1000
        if result.outcome in _ANSWERS:
            return replace(result, elapsed_ms=elapsed_ms)
        misses.append(replace(result, elapsed_ms=elapsed_ms))
    best = min(misses, key=lambda r: _WORTH.index(r.outcome))
    if len(misses) == 1:
        return best
    every = "; ".join(f"{r.server_address}: {r.outcome}: {r.detail}" for r in misses)
    return replace(best, detail=every, elapsed_ms=misses[-1].elapsed_ms)


def _ask_host(question: _Question, host: Host) -> ProbeResult:
    try:
        addresses = _addresses(host, question.asked.timeout_s)
    except (OSError, UnicodeError) as e:
        return ProbeResult(outcome="unreachable", detail=_why_no_address(e, host), server_address=host.display)
    result = _ask(question, host, addresses[0])
    for address in addresses[1:]:
        if result.outcome != "unreachable":
            break
        result = _ask(question, host, address)
    return result


def _ask(question: _Question, host: Host, address: Address) -> ProbeResult:
    """One address, with TLS or without as the target says. Asks a second time only where nobody answered yet."""
    mode = "disable" if host.is_unix else question.target.sslmode
    shown = _shown(host, address)
    if mode in {"disable", "allow"}:
        result = _attempt(question, host, address, tls=False)
        if mode == "allow" and result.outcome == "tls-failed":
            result = _attempt_tls(question, host, address)
        return replace(result, server_address=shown)
    return replace(_attempt_tls(question, host, address), server_address=shown)


def _attempt_tls(question: _Question, host: Host, address: Address) -> ProbeResult:
    try:
        return _attempt(question, host, address, tls=True)
    except _TlsError as e:
        if question.target.sslmode == "prefer" and e.retry_plain:
            return _attempt(question, host, address, tls=False)
        return ProbeResult(outcome="tls-failed", detail=str(e))


def _attempt(question: _Question, host: Host, address: Address, *, tls: bool) -> ProbeResult:
    """Connect, ask, read, leave. Raises only :class:`_TlsError`, and only when ``tls`` is wanted."""
    clock = _Clock(question.asked.timeout_s)
    family, where = address
    try:
        plain = socket.socket(family, socket.SOCK_STREAM)
    except OSError as e:
        return ProbeResult(outcome="unreachable", detail=f"no socket to be had here: {e}")
    try:
        plain.settimeout(clock.left())
        plain.connect(where)
    except OSError as e:
        plain.close()
        return ProbeResult(outcome="unreachable", detail=_why_unreachable(e, host, question.asked.timeout_s))
    channel, secured = plain, False
    try:
        head = b""
        if tls:
            head, channel = _secure(question, host, plain, clock)
            secured = channel is not plain
        if not head:
            channel.settimeout(clock.left())
            channel.sendall(question.packet())
        reply = wire.read_reply(_receiver(channel, clock), head)
        if reply.kind == "ready":
            with suppress(OSError):
                channel.sendall(wire.TERMINATE)
        if reply.kind in {"ready", "authentication"}:
            see_off(channel)
        return judge(reply, question.asked, tls=secured)
    except ssl.SSLError as e:
        # After the handshake, too: TLS 1.3 reports a missing client certificate with the first answer.
        return ProbeResult(outcome="tls-failed", detail=f"the server broke TLS off: {_ssl_text(e)}", tls=True)
    except TimeoutError:
        return judge(wire.Reply(kind="silent", why="before any answer"), question.asked, tls=secured)
    except OSError as e:
        return ProbeResult(outcome="unreachable", detail=f"the connection broke before an answer: {e.strerror or e}")
    finally:
        channel.close()
        plain.close()


def see_off(channel: socket.socket) -> None:
    """After our good-bye, wait until the server closes its end, at most :data:`GOODBYE_S` seconds.

    A backend gives its slot back before its process ends and the socket with it, so whoever connects after this
    does not hold a second slot for a moment.
    """
    with suppress(OSError):
        channel.shutdown(socket.SHUT_WR)
        receive = _receiver(channel, _Clock(GOODBYE_S))
        while receive(4096):
            pass


def _secure(question: _Question, host: Host, plain: socket.socket, clock: _Clock) -> tuple[bytes, socket.socket]:
    """Ask for TLS. Gives the channel to go on with, and bytes of an answer when the server answered already."""
    mode = question.target.sslmode
    plain.sendall(wire.SSL_REQUEST)
    plain.settimeout(clock.left())
    # One byte and no more: what follows belongs to the handshake.
    answer = plain.recv(1)
    if answer == b"N":
        if mode == "prefer":
            return b"", plain
        raise _TlsError(f"sslmode={mode} needs TLS, and the server offers none", retry_plain=False)
    if answer == b"S":
        early = _at_hand(plain)
        if early:
            # Nobody but a foreign service speaks here before the client does ("SSH-2.0-...").
            return b"S" + early, plain
        return b"", _handshake(question, host, plain, clock)
    if not answer:
        raise ConnectionResetError(errno.ECONNRESET, "closed when asked for TLS")
    return answer + (b"" if answer == b"E" else _at_hand(plain)), plain


def _handshake(question: _Question, host: Host, plain: socket.socket, clock: _Clock) -> ssl.SSLSocket:
    try:
        context = context_for(question.target)
        plain.settimeout(clock.left())
        return context.wrap_socket(plain, server_hostname=server_name(question.target, host))
    except TlsSetupError as e:
        raise _TlsError(str(e), retry_plain=False) from e
    except ssl.SSLCertVerificationError as e:
        raise _TlsError(f"the server's certificate is not trusted: {e.verify_message}") from e
    except TimeoutError:
        raise
    except (ValueError, OSError) as e:
        raise _TlsError(f"the TLS handshake failed: {_ssl_text(e)}") from e


def _at_hand(plain: socket.socket) -> bytes:
    """What has arrived already, without waiting."""
    plain.settimeout(0)
    try:
        return plain.recv(79)
    except OSError:
        return b""


def _receiver(channel: socket.socket, clock: _Clock) -> wire.Receive:
    def receive(n: int) -> bytes:
        channel.settimeout(clock.left())
        return channel.recv(n)

    return receive


class _Clock:
    """Counts one attempt's time down. Raises TimeoutError when there is none left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return left


def _addresses(host: Host, timeout_s: float) -> list[Address]:
    if host.is_unix:
        path = host.socket_path
        return [(socket.AF_UNIX, "\0" + path[1:] if path.startswith("@") else path)]
    found = _in_time(
        lambda: socket.getaddrinfo(host.address or host.name, host.port, type=socket.SOCK_STREAM), timeout_s
    )
    return [(family, where) for family, _, _, _, where in found[:MAX_ADDRESSES]]


def _in_time(look_up: Callable[[], list[tuple]], timeout_s: float) -> list[tuple]:  # type: ignore[type-arg]
    """Look a name up in a thread: the resolver itself knows no deadline."""
    found: list[object] = []

    def work() -> None:
        try:
            found.append(look_up())
        except (OSError, UnicodeError) as e:
            found.append(e)

    thread = threading.Thread(target=work, name="pgvacancy-resolver", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not found:
        raise TimeoutError(errno.ETIMEDOUT, "the name server does not answer")
    outcome = found[0]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome  # type: ignore[return-value]


def _shown(host: Host, address: Address) -> str:
    """The address for people: the name, and the numbers when they are not the name."""
    if host.is_unix:
        return host.socket_path
    number = str(address[1][0])
    return host.display if number in {host.name, host.address} else f"{host.display} ({number})"


def _why_no_address(e: Exception, host: Host) -> str:
    if isinstance(e, TimeoutError):
        return f"the look-up of {host.name!r} got no answer in time"
    text = e.strerror if isinstance(e, OSError) and e.strerror else "not a host name"
    return f"the name {host.name!r} does not resolve: {text}"


def _why_unreachable(e: OSError, host: Host, timeout_s: float) -> str:
    if isinstance(e, BlockingIOError):
        return "the socket's accept queue is full: clients knock faster than the server accepts them"
    if isinstance(e, TimeoutError):
        return (
            f"no answer to the attempt to connect in {timeout_s:g} s: host down, packets dropped, or accept queue full"
        )
    if isinstance(e, ConnectionRefusedError):
        return f"connection refused: nothing listens at {host.display}"
    if isinstance(e, FileNotFoundError):
        return f"there is no socket {host.socket_path}: no server, another port, or another socket directory"
    if isinstance(e, PermissionError):
        return f"permission denied: {host.display}"
    if e.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH}:
        return f"no route: {e.strerror}"
    return e.strerror or str(e)


def _ssl_text(e: Exception) -> str:
    reason = getattr(e, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else (str(e) or type(e).__name__)
