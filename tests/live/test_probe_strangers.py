"""The wire probe against whatever else may answer: other services, silence, closed doors, queues that are full."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgvacancy.observe.postgres.conninfo import read_target
from pgvacancy.observe.postgres.probe import ProbeResult, probe
from pgvacancy.observe.postgres.verdict import Outcome

DEADLINE_S = 10.0


@contextlib.contextmanager
def stranger(*replies: bytes, hang: bool = False, greet: bool = False) -> Iterator[int]:
    """A service on loopback: takes what it gets and answers each connection with the next of ``replies``."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)

        def serve() -> None:
            for reply in replies:
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        if greet:
                            connection.sendall(reply)
                        connection.settimeout(DEADLINE_S)
                        connection.recv(4096)
                        if not greet:
                            connection.sendall(reply)
                        if hang:
                            done.wait(DEADLINE_S)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            done.set()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def ask(port: int, sslmode: str = "prefer", timeout_s: float = 1.0) -> ProbeResult:
    return probe(read_target(f"host=127.0.0.1 port={port} user=u sslmode={sslmode}"), timeout_s=timeout_s)


@pytest.mark.parametrize("sslmode", ["disable", "allow", "prefer", "require"])
@pytest.mark.parametrize(
    ("said", "name"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "HTTP"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "SSH"),
        (b"\x4a\x00\x00\x00\x0a8.0.36\x00\x01", "MySQL"),
        (b"\xde\xad\xbe" + b"\x00" * 40, "not PostgreSQL"),
    ],
)
@pytest.mark.parametrize("greet", [True, False])
def test_a_stranger_is_named(said: bytes, name: str, sslmode: str, *, greet: bool) -> None:
    with stranger(said, said, hang=True, greet=greet) as port:
        result = ask(port, sslmode)
    assert result.outcome == "not-postgres", result
    assert name.lower() in result.detail.lower()


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require"])
def test_silence_after_accept(sslmode: str) -> None:
    with stranger(b"", b"", hang=True) as port:
        result = ask(port, sslmode, timeout_s=0.3)
    assert result.outcome == "unreachable"
    assert "silence for 0.3 s" in result.detail
    assert result.elapsed_ms < 5_000


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require"])
def test_accepted_and_closed(sslmode: str) -> None:
    with stranger(b"", b"") as port:
        result = ask(port, sslmode)
    assert result.outcome == "unreachable"
    assert "closed" in result.detail


def test_a_fork_failure_in_place_of_the_answer_about_tls() -> None:
    said = b"Ecould not fork new process for connection: Resource temporarily unavailable\n\0"
    with stranger(said, greet=True) as port:
        refusal = ask(port, "require").refusal
    assert refusal is not None
    assert refusal.kind == "fork-failed"


def test_a_name_that_does_not_resolve() -> None:
    result = probe(read_target("host=no-such-host.invalid user=u"), timeout_s=5)
    assert result.outcome == "unreachable"
    assert "no-such-host.invalid" in result.detail
    bad = probe(read_target(f"host={'a' * 70}..b user=u"))
    assert bad.outcome == "unreachable"


def test_a_full_accept_queue_of_a_socket(tmp_path: Path) -> None:
    path = tmp_path / ".s.PGSQL.5432"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)  # noqa: FBT003 - the standard library's signature
            with contextlib.suppress(BlockingIOError):
                client.connect(str(path))
        result = probe(read_target(f"host={tmp_path} user=u"))
    assert result.outcome == "unreachable"
    assert "accept queue is full" in result.detail


def test_no_answer_to_the_attempt_to_connect() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)  # noqa: FBT003 - the standard library's signature
            with contextlib.suppress(BlockingIOError):
                client.connect(listener.getsockname())
        result = ask(listener.getsockname()[1], timeout_s=0.3)
    assert result.outcome == "unreachable"
    assert "no answer to the attempt to connect" in result.detail


@settings(max_examples=60, deadline=None)
@given(
    first=st.binary(max_size=40)
    | st.builds(bytes.__add__, st.sampled_from([b"S", b"N", b"E", b"R"]), st.binary(max_size=40)),
    second=st.binary(max_size=40),
    sslmode=st.sampled_from(["disable", "allow", "prefer", "require"]),
)
def test_any_bytes_at_any_stage_give_a_result(first: bytes, second: bytes, sslmode: str) -> None:
    with stranger(first, second) as port:
        result = ask(port, sslmode)
    # "refused" is not ruled out: a text that ends as an old-style error does is taken for one.
    assert result.outcome in get_args(Outcome)
    assert not result.admitted
    assert result.detail
    assert result.detail.isprintable()
