"""Files as they are found: packed, cut, growing, shrinking, empty, huge, and things that are no files."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from pathlib import Path

import pytest

from pgvacancy.model.errors import LogFileError
from pgvacancy.observe.logs import read_log, read_tail

QUIET = b"2026-01-01 12:00:00.000 UTC [7] app@shop LOG:  duration: 1.000 ms  statement: select 1\n"
FULL = b"2026-01-01 12:00:30.000 UTC [7] app@shop FATAL:  sorry, too many clients already\n"


def test_what_is_no_log_is_said(tmp_path: Path) -> None:
    fifo, empty, binary, zeros, foreign = (tmp_path / name for name in ("fifo", "empty", "binary", "zeros", "foreign"))
    os.mkfifo(fifo)
    empty.touch()
    binary.write_bytes(os.urandom(4096))
    with zeros.open("wb") as file:
        file.truncate(1 << 30)
    foreign.write_text('10.0.0.1 - - [01/Jan/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 5\n' * 20)
    broken = tmp_path / "broken.gz"
    broken.write_bytes(b"\x1f\x8b" + os.urandom(500))
    for path in (tmp_path / "missing", tmp_path, fifo, empty, binary, zeros, foreign, broken, Path("/dev/null")):
        with pytest.raises(LogFileError) as caught:
            read_log([path])
        assert caught.value.seen, path
        assert caught.value.next, path
    for text in (b"", b"\x00" * 100, b"hello\nworld\n"):
        with pytest.raises(LogFileError):
            read_tail(text)
    with pytest.raises(LogFileError):
        read_log([])


def test_an_unreadable_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LogFileError, match="permission denied") as caught:
        read_log([tmp_path / "server.log"])
    assert "log_file_mode" in caught.value.next


def test_packed_and_plain_say_the_same(tmp_path: Path) -> None:
    plain, packed = tmp_path / "server.log", tmp_path / "server.log.1.gz"
    plain.write_bytes(QUIET * 1000 + FULL * 3)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = read_log([plain]), read_log([packed])
    assert one.refusals == other.refusals
    assert (one.lines, one.bytes_read, one.last_at) == (other.lines, other.bytes_read, other.last_at)
    tail = read_log([packed], max_bytes=len(FULL) * 2 + 10)
    assert (tail.lines, sum(g.count for g in tail.refusals)) == (2, 2)


def test_a_packed_file_that_is_cut_counts_as_far_as_it_goes(tmp_path: Path) -> None:
    packed = tmp_path / "server.log.gz"
    packed.write_bytes(gzip.compress(FULL * 50 + os.urandom(5000).hex().encode() + b"\n")[:-2000])
    assert sum(group.count for group in read_log([packed]).refusals) == 50


def test_a_cut_last_line_is_no_error(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(FULL + FULL[:-20])
    assert sum(group.count for group in read_log([log]).refusals) == 1
    csv = b'2026-01-01 12:00:00.000 UTC,"app","shop",7,"10.0.0.9:1",6b0363f4.15,2,"startup",,,0,FATAL,53300,"sorry, too'
    log.write_bytes(csv + b' many clients already",,,,,,,,,"","client backend",,0\n' + csv)
    assert sum(group.count for group in read_log([log]).refusals) == 1


def test_rotated_files_are_read_newest_first_and_in_order(tmp_path: Path) -> None:
    old, new = tmp_path / "b.log", tmp_path / "a.log"
    old.write_bytes(QUIET.replace(b"12:00", b"11:00") * 10)
    new.write_bytes(FULL)
    both = read_log([new, old])
    assert both.files == (str(old), str(new))
    assert both.span_s == 3630.0
    little = read_log([new, old], max_bytes=len(FULL))
    assert (little.lines, little.recent_refusals) == (1, 1)
    assert little.skipped_bytes == 10 * len(QUIET)
    assert any("left out" in sentence for sentence in little.not_told)


def test_the_same_file_twice_counts_once(tmp_path: Path) -> None:
    log, link = tmp_path / "server.log", tmp_path / "current.log"
    log.write_bytes(FULL)
    link.symlink_to(log)
    assert read_log([log, link]).recent_refusals == 1


def test_an_empty_file_beside_a_full_one_is_passed_over(tmp_path: Path) -> None:
    log, empty = tmp_path / "server.log", tmp_path / "new.log"
    log.write_bytes(FULL)
    empty.touch()
    assert read_log([log, empty]).recent_refusals == 1


def test_ten_gigabytes_need_little_memory(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with log.open("wb") as file:
        file.truncate(10 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + QUIET * 100_000 + FULL * 1000)
    told: list[tuple[int, int]] = []
    tracemalloc.start()
    evidence = read_log([log], max_bytes=16 << 20, progress=lambda done, total: told.append((done, total)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert evidence.recent_refusals == 1000
    assert evidence.skipped_bytes > 9 << 30
    assert peak < 50 << 20
    assert told == sorted(told)
    assert told[-1][0] <= told[-1][1] == 16 << 20


def test_a_file_that_is_truncated_while_being_read(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(QUIET * 40_000 + FULL)

    def truncate(_done: int, _total: int) -> None:
        os.truncate(log, 0)

    evidence = read_log([log], progress=truncate)
    assert 0 < evidence.lines < 40_001


def test_a_file_that_is_renamed_and_one_that_grows(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(QUIET * 40_000 + FULL)

    def grow(_done: int, _total: int) -> None:
        with log.open("ab") as file:
            file.write(FULL)

    assert read_log([log], progress=grow).recent_refusals == 1


def test_lines_that_are_not_utf_8_are_counted_and_read(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(QUIET + FULL.replace(b"app@", b"caf\xe9@") + b"\t\xff\xfe\xff\n" + QUIET)
    evidence = read_log([log])
    assert evidence.undecodable_lines == 2
    assert evidence.refusals[0].user == "caf\ufffd"


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(QUIET + b"\t" + b"x" * (12 << 20) + b"\n" + FULL)
    assert read_log([log]).recent_refusals == 1


def test_zeros_left_by_a_crash_do_not_hide_the_rest(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(QUIET + b"\x00" * 5000 + b"\n" + FULL)
    assert read_log([log]).recent_refusals == 1


def test_old_refusals_are_counted_and_named_but_not_recent(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    stamp = b"2026-01-01 11:00:00.000 UTC"
    refused = (
        b"%b [77] LOG:  connection received: host=10.0.0.9 port=4711\n"
        b"%b [77] LOG:  connection authorized: user=app database=shop application_name=x\n"
        b'%b [77] FATAL:  too many connections for role "app"\n'
    ) % (stamp, stamp, stamp)
    log.write_bytes(refused * 12_000 + QUIET * 20_000)
    evidence = read_log([log])
    (group,) = evidence.refusals
    assert (group.user, group.database, group.client, group.count) == ("app", "shop", "10.0.0.9", 12_000)
    assert (evidence.recent_refusals, evidence.received) == (0, 0)
    assert evidence.connections_logged
    assert evidence.peak_refusals == 12_000
