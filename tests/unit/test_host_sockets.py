"""The TCP table, client processes, and the judgement on peers."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvacancy.observe.host import peer_watch
from pgvacancy.observe.host.clients import describe
from pgvacancy.observe.host.peer_watch import PeerWatch, _Attempt
from pgvacancy.observe.host.postmaster import parse_control
from pgvacancy.observe.host.sockets import Socket, Table, normalise, parse_row, read_table

PORT = 0xD889
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
CUT = (
    "   2: 0109CB0A:D889 0209CB0A:9B92 01 0000004E:00000000 01:00000016 00000004   101        0 29878 3 0 163 4 27 1 -1"
)
LISTENER = "   1: 00000000:D889 00000000:0000 0A 00000000:00000003 00:00000000 00000000   101        0 30763 1 0 100 0"
MAPPED = (
    "   0: 0000000000000000FFFF00000100007F:9B92 0000000000000000FFFF00000100007F:D889 08"
    " 00000000:00000001 00:00000000 00000000     0        2 77 1 0"
)


def test_a_row_is_read() -> None:
    row = parse_row(CUT, PORT)
    assert row == Socket(
        local=("10.203.9.1", PORT),
        remote=("10.203.9.2", 0x9B92),
        state="ESTABLISHED",
        unacknowledged_bytes=78,
        unread=0,
        retransmits=4,
        probes=0,
        uid=101,
        inode=29878,
    )


def test_ipv4_in_ipv6_is_ipv4() -> None:
    row = parse_row(MAPPED, PORT)
    assert row is not None
    assert (row.local[0], row.state, row.probes, row.inode) == ("127.0.0.1", "CLOSE_WAIT", 2, 77)


@pytest.mark.parametrize("line", ["", "x", "1: zz:1 yy:2 01", CUT[:40], HEAD])
def test_a_strange_line_is_no_row(line: str) -> None:
    assert parse_row(line, PORT) is None


@given(st.text())
def test_no_line_is_too_strange(line: str) -> None:
    parse_row(line, PORT)
    normalise(line)


def test_a_table_holds_what_concerns_the_port(tmp_path: Path) -> None:
    path = tmp_path / "tcp"
    path.write_text(HEAD + LISTENER + "\n" + CUT + "\n" + CUT.replace("D889", "1538") + "\n")
    table = read_table(PORT, [str(path), str(tmp_path / "none")])
    assert table.complete
    assert [s.unread for s in table.listening(PORT)] == [3]
    assert list(table.server_ends(PORT)) == [("10.203.9.2", 0x9B92)]
    assert not table.client_ends(PORT)


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ("10.0.0.7/32", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("name", "name"),
    ],
)
def test_an_address_has_one_spelling(given_: str, wanted: str) -> None:
    assert normalise(given_) == wanted


@pytest.mark.parametrize(
    ("cmdline", "wanted"),
    [
        (b"/usr/bin/psql\0postgresql://u:geheim@h/d\0", "psql"),
        (b"/usr/bin/python3.11\0-u\0/srv/app/worker.py\0--password=geheim\0", "python3.11 worker.py"),
        (b"python\0-m\0gunicorn\0app\0", "python gunicorn"),
        (b"python\0-c\0connect('password=geheim')\0", "python"),
        (b"node\0postgresql://u:geheim@h/d\0", "node"),
        (b"gunicorn: worker [shop]", "gunicorn: worker [shop]"),
        (b"worker --dsn password=geheim", "worker --dsn"),
        (b"", "?"),
    ],
)
def test_a_command_is_told_without_secrets(cmdline: bytes, wanted: str) -> None:
    assert describe(cmdline) == wanted


def test_control_lines_are_selected() -> None:
    text = "pg_control version number:            1800\nDatabase cluster state:               in production\n"
    assert parse_control(text + "max_connections setting:              100\n") == {
        "Database cluster state": "in production",
        "max_connections setting": "100",
    }


# --- peers ---

LOOP, FAR, OURS = ("127.0.0.1", 4000), ("10.9.9.9", 4000), "10.9.9.1"


def row(local: tuple[str, int], remote: tuple[str, int], state: str = "ESTABLISHED", retransmits: int = 0) -> Socket:
    return Socket(
        local=local,
        remote=remote,
        state=state,
        unacknowledged_bytes=0,
        unread=0,
        retransmits=retransmits,
        probes=0,
        uid=0,
        inode=1,
    )


def judged(
    *tables: Table, end: tuple[str, int], attempt: _Attempt | None = None, ours: bool = True
) -> tuple[bool, str]:
    readings = iter(tables)
    watch = PeerWatch(server_port=PORT, read=lambda _: next(readings), probe=False)
    watch._local.update({FAR[0]: False, OURS: ours})
    watch._off.update({OURS: None})
    watch.start([end])
    if attempt is not None:
        watch._attempts[end[0]] = attempt
    (state,) = watch.finish(budget_s=0)
    return state.gone, state.why


def table(*rows: Socket, complete: bool = True) -> Table:
    return Table(sockets=rows, complete=complete)


SERVER = row(("127.0.0.1", PORT), LOOP)
CLIENT = row(LOOP, ("127.0.0.1", PORT))


def test_a_live_client_on_loopback_is_not_gone() -> None:
    assert judged(table(SERVER, CLIENT), table(SERVER, CLIENT), end=LOOP) == (False, "")


def test_a_missing_client_on_loopback_is_gone_when_missing_twice() -> None:
    assert judged(table(SERVER), table(SERVER), end=LOOP)[0]
    assert not judged(table(SERVER, CLIENT), table(SERVER), end=LOOP)[0]
    assert not judged(table(SERVER), table(SERVER, CLIENT), end=LOOP)[0]


def test_a_client_that_closed_unheard_is_gone() -> None:
    closing = row(LOOP, ("127.0.0.1", PORT), "FIN_WAIT1")
    assert judged(table(SERVER, closing), table(SERVER, closing), end=LOOP)[0]


def test_an_incomplete_table_proves_nothing() -> None:
    cut = table(SERVER, complete=False)
    assert not judged(cut, cut, end=LOOP)[0]


def test_close_wait_is_the_servers_business() -> None:
    waiting = table(row(("127.0.0.1", PORT), LOOP, "CLOSE_WAIT"))
    gone, why = judged(waiting, waiting, end=LOOP)
    assert not gone
    assert "closed its side" in why


def attempt_with(result: int | None, *, unresolved: bool = False) -> _Attempt:
    return _Attempt(FAR[0], None, time.monotonic(), result=result, unresolved_before=unresolved)


@pytest.mark.parametrize(
    ("result", "retransmits", "gone"),
    [
        (errno.EHOSTUNREACH, 0, True),
        (errno.ENETUNREACH, 0, True),
        (errno.ECONNREFUSED, 9, False),
        (0, 9, False),
        (None, 2, False),
        (None, 3, True),
        (errno.EACCES, 0, False),
    ],
)
def test_what_a_connection_attempt_proves(result: int | None, retransmits: int, *, gone: bool) -> None:
    rows = table(row((OURS, PORT), FAR, retransmits=retransmits))
    assert judged(rows, rows, end=FAR, attempt=attempt_with(result))[0] is gone


def test_retransmissions_alone_are_told_but_prove_nothing() -> None:
    rows = table(row((OURS, PORT), FAR, retransmits=5))
    assert judged(rows, rows, end=FAR) == (False, "5 packets in a row unanswered")


def test_a_server_address_that_left_takes_its_connections_along() -> None:
    rows = table(row((OURS, PORT), FAR))
    assert judged(rows, rows, end=FAR, ours=False)[0]


@pytest.mark.parametrize(
    ("before", "carrier", "gone"), [(True, True, True), (False, True, False), (False, False, True)]
)
def test_a_silent_neighbour_needs_a_second_sign(
    monkeypatch: pytest.MonkeyPatch, *, before: bool, carrier: bool, gone: bool
) -> None:
    monkeypatch.setattr(peer_watch, "_unresolved", lambda: {FAR[0]: "eth9"})
    monkeypatch.setattr(peer_watch, "_has_carrier", lambda _: carrier)
    rows = table(row((OURS, PORT), FAR))
    assert judged(rows, rows, end=FAR, attempt=attempt_with(None, unresolved=before))[0] is gone


def test_a_local_address_proves_nothing_where_addresses_are_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(row((OURS, PORT), (OURS, 4000)))
    monkeypatch.setattr(peer_watch, "_addresses_translated", lambda: True)
    assert not judged(rows, rows, end=(OURS, 4000))[0]
    monkeypatch.setattr(peer_watch, "_addresses_translated", lambda: False)
    assert judged(rows, rows, end=(OURS, 4000))[0]


def test_an_ended_connection_is_left_out() -> None:
    watch = PeerWatch(server_port=PORT, read=lambda _: table(), probe=False)
    watch.start([LOOP])
    assert watch.finish(budget_s=0) == ()
