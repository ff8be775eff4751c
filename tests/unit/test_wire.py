"""The start-up packet and the first reply, against any bytes at all."""

from __future__ import annotations

import struct
import typing
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvacancy.observe.postgres import wire
from pgvacancy.observe.postgres.verdict import Asked, Outcome, judge
from pgvacancy.observe.postgres.wire import Reply, read_reply, startup_message

ASKED = Asked(user="app", database="shop")


class Other:
    """The other end: hands out ``data`` in pieces, then ends or falls silent. Counts what was taken."""

    def __init__(self, data: bytes, piece: int = 4096, *, silent: bool = False) -> None:
        self.data, self.piece, self.silent, self.taken = data, piece, silent, 0

    def __call__(self, n: int) -> bytes:
        chunk = self.data[self.taken : self.taken + min(n, self.piece)]
        self.taken += len(chunk)
        if not chunk and self.silent:
            raise TimeoutError
        return chunk


def message(tag: bytes, body: bytes) -> bytes:
    return tag + struct.pack("!I", len(body) + 4) + body


def error(**fields: str) -> bytes:
    return message(b"E", b"".join(k.encode() + v.encode() + b"\0" for k, v in fields.items()) + b"\0")


LOGGED_IN = message(b"R", struct.pack("!I", 0))
READY = message(b"Z", b"I")
MD5 = message(b"R", struct.pack("!I", 5) + b"salt")
SASL = message(b"R", struct.pack("!I", 10) + b"SCRAM-SHA-256\0\0")
FULL = error(S="FATAL", V="FATAL", C="53300", M="sorry, too many clients already", F="proc.c", L="456", R="InitProcess")


def test_startup_packet() -> None:
    packet = startup_message({"user": "u", "database": "d", "replication": ""})
    assert packet == b"\x00\x00\x00\x1b\x00\x03\x00\x00user\0u\0database\0d\0\0"
    assert len(packet) == 0x1B


@pytest.mark.parametrize("piece", [1, 3, 4096])
def test_an_error_arrives_in_pieces(piece: int) -> None:
    reply = read_reply(Other(FULL, piece))
    assert reply.kind == "error"
    assert reply.error is not None
    assert (reply.error.sqlstate, reply.error.routine, reply.error.severity) == ("53300", "InitProcess", "FATAL")
    result = judge(reply, ASKED)
    assert (result.outcome, result.refusal and result.refusal.kind) == ("refused", "slots-full")
    assert not result.looks_like_pooler


@pytest.mark.parametrize("request_", [MD5, SASL])
def test_an_authentication_request_proves_a_slot(request_: bytes) -> None:
    result = judge(read_reply(Other(request_, silent=True)), ASKED)
    assert (result.outcome, result.admitted) == ("free", False)
    assert "before authentication" in result.detail
    assert "role, database and reserve limits show only after it" in result.detail


def test_scram_over_tls_tells_a_pooler_from_a_server() -> None:
    bound = message(b"R", struct.pack("!I", 10) + b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")
    assert judge(read_reply(Other(SASL)), ASKED, tls=True).looks_like_pooler
    assert not judge(read_reply(Other(SASL)), ASKED, tls=False).looks_like_pooler
    assert not judge(read_reply(Other(bound)), ASKED, tls=True).looks_like_pooler


def test_ready_for_query_after_trust() -> None:
    data = (
        LOGGED_IN
        + message(b"S", b"server_version\x0018.6\0")
        + message(b"S", b"is_superuser\0off\0")
        + message(b"K", struct.pack("!II", 4711, 99))
        + READY
    )
    reply = read_reply(Other(data, 5, silent=True))
    assert (reply.kind, reply.logged_in, reply.backend_pid) == ("ready", True, 4711)
    assert reply.parameters == {"server_version": "18.6", "is_superuser": "off"}
    result = judge(reply, ASKED)
    assert (result.outcome, result.admitted, result.looks_like_pooler) == ("free", True, False)


def test_a_superuser_who_got_in_proves_no_ordinary_slot() -> None:
    reply = read_reply(Other(LOGGED_IN + message(b"S", b"is_superuser\0on\0") + READY))
    assert "does not prove an ordinary slot" in judge(reply, ASKED).detail


def test_the_limit_that_shows_only_after_the_log_in() -> None:
    late = error(S="FATAL", C="53300", M="zu viele Verbindungen von Rolle »app«", R="InitializeSessionUserId")
    result = judge(read_reply(Other(LOGGED_IN + late)), ASKED)
    assert (result.outcome, result.refusal and result.refusal.kind) == ("refused", "role-limit")
    assert not result.admitted


@pytest.mark.parametrize(
    ("prefix", "sqlstate"),
    [(b"", "28000"), (b"", "28P01"), (LOGGED_IN, "28000"), (LOGGED_IN, "3D000"), (LOGGED_IN, "42501")],
)
def test_a_failed_log_in_proves_a_slot(prefix: bytes, sqlstate: str) -> None:
    data = prefix + error(S="FATAL", C=sqlstate, M="no", F="auth.c", R="ClientAuthentication")
    result = judge(read_reply(Other(data)), ASKED)
    assert (result.outcome, result.admitted, result.refusal) == ("free", False, None)


def test_starting_up_keeps_the_detail() -> None:
    data = error(
        S="FATAL",
        C="57P03",
        M="the database system is not accepting connections",
        D="Hot standby mode is disabled.",
        R="X",
    )
    result = judge(read_reply(Other(data)), ASKED)
    assert result.outcome == "starting-up"
    assert "Hot standby mode is disabled." in result.detail


def test_the_cap_on_processes_is_named() -> None:
    data = error(S="FATAL", C="53300", M="sorry, too many clients already", R="BackendInitialize")
    assert "cap on server processes" in judge(read_reply(Other(data)), ASKED).detail


@pytest.mark.parametrize("silent", [True, False])
def test_an_old_style_packet_means_the_server_could_not_fork(*, silent: bool) -> None:
    data = b"Ecould not fork new process for connection: Resource temporarily unavailable\n\0"
    result = judge(read_reply(Other(data, silent=silent)), ASKED)
    assert result.outcome == "refused"
    assert result.refusal is not None
    assert (result.refusal.kind, result.refusal.sqlstate) == ("fork-failed", None)
    assert result.refusal.message.endswith("unavailable")


def test_an_old_style_packet_in_another_language() -> None:
    data = "Ekonnte neuen Prozess für Verbindung nicht starten: Ressource nicht verfügbar\n\0".encode()
    result = judge(read_reply(Other(data)), ASKED)
    assert result.refusal is not None
    assert result.refusal.kind == "fork-failed"


def test_pgbouncer_is_recognised() -> None:
    refused = read_reply(Other(error(S="FATAL", C="08P01", M="no more connections allowed (max_client_conn)")))
    assert judge(refused, ASKED).looks_like_pooler
    console = read_reply(Other(LOGGED_IN + message(b"S", b"server_version\x001.18.0/bouncer\0") + READY))
    assert judge(console, ASKED).looks_like_pooler
    invented_key = read_reply(Other(LOGGED_IN + message(b"K", struct.pack("!II", 1925359872, 1)) + READY))
    assert judge(invented_key, ASKED).looks_like_pooler


def test_tls_that_is_required_is_no_refusal_for_want_of_room() -> None:
    data = error(S="FATAL", C="08P01", M="SSL required")
    assert judge(read_reply(Other(data)), ASKED, tls=False).outcome == "tls-failed"
    assert judge(read_reply(Other(data)), ASKED, tls=True).outcome == "refused"


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
        (b"-ERR unknown command\r\n", "Redis"),
        (b"\x4a\x00\x00\x00\x0a8.0.36\x00", "MySQL"),
        (b"220 mail ESMTP\r\n", "SMTP"),
        (b"\x15\x03\x03\x00\x02\x02\x0a", "TLS"),
    ],
)
def test_other_services_are_named(seen: bytes, name: str) -> None:
    result = judge(read_reply(Other(seen, silent=True)), ASKED)
    assert result.outcome == "not-postgres"
    assert name in result.detail


@pytest.mark.parametrize(
    "data",
    [
        b"E\x7f\xff\xff\xff",
        b"R\xff\xff\xff\xff" + b"x" * 100,
        b"R\x00\x00\x00\x03",
        b"R\x00\x00\x00\x08\x00\x00\x00\x63",
        b"E\x00\x00\x00\x05\x00",
        b"E\x00\x00\x00\x0aC53300",
        error(C="toolong", M="x"),
        error(C="53300"),
        FULL[:-7],
        LOGGED_IN + message(b"Z", b"Q"),
        LOGGED_IN + b"?",
        LOGGED_IN + message(b"N", b"x" * 20_000) * 10,
        LOGGED_IN + message(b"N", b"") * 1000,
        READY,
        b"Eerror: bad request\n",
        b"E" + b"a" * 100_000,
    ],
)
def test_broken_replies_are_not_postgres(data: bytes) -> None:
    other = Other(data)
    assert judge(read_reply(other), ASKED).outcome == "not-postgres"
    assert other.taken <= wire.MAX_REPLY_BYTES + 4096


def test_an_endless_reply_is_left_early() -> None:
    def flood() -> Iterator[bytes]:
        yield LOGGED_IN
        while True:
            yield message(b"N", b"SNOTICE\0\0")

    taken = 0
    source = flood()

    def receive(n: int) -> bytes:
        nonlocal taken
        chunk = next(source)
        taken += len(chunk)
        return chunk

    assert read_reply(receive).kind == "foreign"
    assert taken <= wire.MAX_REPLY_BYTES


@pytest.mark.parametrize(
    ("data", "silent", "words"),
    [
        (b"", False, "closed without a word"),
        (b"", True, "accepted, then silence for 3 s"),
        (LOGGED_IN, True, "logged in, then silence"),
        (LOGGED_IN, False, "closed after the log-in"),
        (FULL[:20], True, "in the middle of its answer"),
    ],
)
def test_no_answer(data: bytes, *, silent: bool, words: str) -> None:
    result = judge(read_reply(Other(data, silent=silent)), ASKED)
    assert result.outcome == "unreachable"
    assert words in result.detail


def test_what_a_stranger_sends_cannot_steer_a_terminal() -> None:
    data = error(S="FATAL", C="53300", M="\x1b[2Jsorry\r\nPWNED\x07", R="InitProcess")
    result = judge(read_reply(Other(data)), ASKED)
    assert result.detail.isprintable()
    assert judge(read_reply(Other(b"\x1b]0;x\x07" * 50)), ASKED).detail.isprintable()


FRAGMENTS = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [LOGGED_IN, READY, MD5, SASL, FULL, message(b"S", b"a\0b\0"), message(b"K", b"\0" * 8), b"E", b"R"]
    ),
    st.builds(message, st.sampled_from([b"E", b"R", b"N", b"S", b"K", b"Z", b"v"]), st.binary(max_size=40)),
    st.builds(lambda t, n: t + struct.pack("!I", n), st.sampled_from([b"E", b"R", b"S"]), st.integers(0, 2**32 - 1)),
)


@given(parts=st.lists(FRAGMENTS, max_size=12), piece=st.integers(1, 64), silent=st.booleans(), tls=st.booleans())
def test_any_bytes_give_a_result(parts: list[bytes], piece: int, *, silent: bool, tls: bool) -> None:
    other = Other(b"".join(parts), piece, silent=silent)
    reply = read_reply(other)
    assert isinstance(reply, Reply)
    assert other.taken <= wire.MAX_REPLY_BYTES + 4096
    result = judge(reply, ASKED, tls=tls)
    assert result.outcome in typing.get_args(Outcome)
    assert result.detail.isprintable()
    assert len(result.detail) < 2_500
    assert not result.admitted or READY[:5] in other.data


@given(data=st.binary(min_size=1, max_size=400))
def test_random_bytes_never_count_as_a_free_slot(data: bytes) -> None:
    if data[:1] in {b"R", b"E", b"N", b"v"}:
        data = b"\x00" + data
    assert judge(read_reply(Other(data)), ASKED).outcome == "not-postgres"


@given(cut=st.integers(1, len(FULL) - 1))
def test_a_truncated_refusal_is_not_taken_for_one(cut: int) -> None:
    assert judge(read_reply(Other(FULL[:cut])), ASKED).outcome == "not-postgres"
