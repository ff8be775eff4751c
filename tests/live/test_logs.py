"""The log reader on logs that real servers wrote, in all formats at once."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from pgvacancy.lab.cluster import Cluster
from pgvacancy.observe.logs import read_log, read_tail

DEADLINE_S = 15.0
HBA = (
    "local all all trust",
    "host all guarded 127.0.0.1/32 scram-sha-256",
    "host all app,limited,postgres 127.0.0.1/32 trust",
)


@dataclass
class Written:
    """What one server was made to write."""

    major: int
    stderr: Path
    csvlog: Path
    jsonlog: Path | None
    prefix: str


@pytest.fixture(scope="module")
def written(pg_bin: Path | None) -> Iterator[Written]:
    """Log-ins of every fate against a server with 8 slots, 2 of them reserved."""
    prefix = "%m [%p] %q%u@%d/%a "
    probe = Cluster(pg_bin=pg_bin)
    formats = "stderr,csvlog,jsonlog" if probe.major >= 15 else "stderr,csvlog"
    settings = {
        "max_connections": "8",
        "superuser_reserved_connections": "2",
        "max_wal_senders": "0",
        "wal_level": "minimal",
        "logging_collector": "on",
        "log_destination": formats,
        "log_directory": "log",
        "log_filename": "server.log",
        "log_connections": "all" if probe.major >= 18 else "on",
        "log_disconnections": "on",
        "log_line_prefix": prefix,
        "log_timezone": "Asia/Tokyo",
    }
    with Cluster(settings, pg_bin=pg_bin, hba=HBA) as cluster:
        _live_a_little(cluster)
        logs = cluster.data / "log"
        has_json = "jsonlog" in formats
        cluster.stop()
        # The collector may outlive the server for a moment: wait until the last line is there in every file.
        paths = [logs / name for name in ("server.log", "server.csv", *(["server.json"] if has_json else []))]
        _until(lambda: all(path.exists() and b"database system is shut down" in path.read_bytes() for path in paths))
        yield Written(cluster.major, paths[0], paths[1], paths[2] if has_json else None, prefix)


def _live_a_little(cluster: Cluster) -> None:
    cluster.sql(
        "CREATE ROLE app LOGIN",
        "CREATE ROLE limited LOGIN CONNECTION LIMIT 0",
        "CREATE ROLE guarded LOGIN PASSWORD 'right'",
        "CREATE DATABASE closed CONNECTION LIMIT 0",
        # Text that looks like a refusal, smuggled into the log by a statement.
        "DO $$BEGIN RAISE LOG E'x\\n2026-01-01 00:00:00.000 JST [1] FATAL:  sorry, too many clients already'; END$$",
        "DO $$BEGIN RAISE LOG E'x\\n2026-01-01 00:00:00.000 JST,,,1,,6b0363f4.1,1,,,,0,FATAL,53300,\"sorry, too many "
        'clients already",,,,,,,,,"","client backend",,0\'; END$$',
        "SELECT 'FATAL:  sorry, too many clients already' \"53300\"",
    )
    _refused(cluster.dsn("limited"))
    _refused(cluster.dsn("app", "closed"))
    _refused(cluster.dsn("guarded", password="wrong"))
    _refused(cluster.dsn("stranger"))
    with socket.create_connection(("127.0.0.1", cluster.port)) as half:
        half.sendall(b"\x00\x00\x00\x08\x04\xd2\x16")
    held = [_admitted(cluster.dsn("app")) for _ in range(6)]
    _refused(cluster.dsn("app"), times=3)
    held += [_admitted(cluster.dsn("postgres")) for _ in range(2)]
    _refused(cluster.dsn("app"), times=2)
    for connection in held:
        connection.close()
    # The slots are given back a moment later; then the server is idle and can be stopped.
    _admitted(cluster.dsn("postgres")).close()


def _admitted(dsn: str) -> psycopg.Connection[tuple[object, ...]]:
    """A session; tried again while a slot is still being given back."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return psycopg.connect(dsn, sslmode="disable")
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise


def _refused(dsn: str, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(dsn, sslmode="disable")


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"


def test_every_format_tells_the_same(written: Written) -> None:
    paths = [path for path in (written.stderr, written.csvlog, written.jsonlog) if path is not None]
    told = [read_log([path], recent_s=3600) for path in paths]
    assert [one.format for one in told] == ["stderr", "csvlog", "jsonlog"][: len(paths)]
    for one in told:
        kinds = one.recent_by_kind
        # An admitted session may have needed a second try, so these are lower bounds.
        assert kinds["role-limit"] == kinds["database-limit"] == 1
        reserve = "reserved-for-superuser"
        assert kinds[reserve] >= 3
        assert kinds["slots-full"] >= 2
        assert one.recent_refusals == sum(kinds.values()) == sum(group.count for group in one.refusals)
        assert one.login_failures == {"wrong-password": 1, "no-hba-rule": 1, "incomplete-packet": 1}
        assert one.received >= 20
        assert one.authorized > one.disconnections > 0
        assert one.server_starts == 1
        assert one.connections_logged
        assert one.disconnections_logged
        assert one.undecodable_lines == one.unparsed_lines == 0
        assert one.last_at == told[0].last_at
        assert {group.client for group in one.refusals if group.kind != "other"} == {"127.0.0.1"}
        assert one.received_by_client == told[0].received_by_client
        assert dict(kinds) == dict(told[0].recent_by_kind)
        # The line exists since 14, for the method trust since 16.
        assert (one.authenticated > 0) == (written.major >= 16)
        assert (one.ready > 0) == (written.major >= 18)


def test_names_come_from_earlier_lines_of_the_session(written: Written) -> None:
    refusals = read_log([written.stderr], recent_s=3600).refusals
    reserved = [group for group in refusals if group.kind == "reserved-for-superuser"]
    assert {(group.user, group.database, group.client) for group in reserved} == {("app", "postgres", "127.0.0.1")}


def test_the_time_zone_is_understood(written: Written) -> None:
    evidence = read_log([written.csvlog])
    assert evidence.last_at is not None
    assert abs(evidence.last_at - written.csvlog.stat().st_mtime) < 60


def test_the_prefix_may_be_given_or_not(written: Written) -> None:
    guessed = read_log([written.stderr], recent_s=3600)
    given = read_log([written.stderr], recent_s=3600, log_line_prefix=written.prefix)
    assert given.refusals == guessed.refusals
    assert given.login_failures == guessed.login_failures


def test_a_stderr_log_beside_a_csvlog_is_not_counted_twice(written: Written) -> None:
    both = read_log([written.stderr, written.csvlog], recent_s=3600)
    assert both.recent_refusals == read_log([written.csvlog], recent_s=3600).recent_refusals
    assert both.files == (str(written.csvlog),)
    assert any("was not read" in sentence for sentence in both.not_told)


def test_a_piece_that_begins_in_mid_line_gives_the_same_end(written: Written) -> None:
    text = written.csvlog.read_bytes()
    whole, piece = read_tail(text, recent_s=3600, cut=False), read_tail(text[100:], recent_s=3600)
    assert piece.refusals == whole.refusals
    assert piece.last_at == whole.last_at


def test_the_labs_own_log_carries_codes(pg_bin: Path | None) -> None:
    with Cluster({"max_connections": "4", "max_wal_senders": "1"}, pg_bin=pg_bin) as cluster:
        cluster.sql("CREATE ROLE app LOGIN")
        held = _admitted(cluster.dsn("app"))
        _refused(cluster.dsn("app"), times=2)
        stream = psycopg.connect(cluster.dsn("postgres", replication="database"), autocommit=True)
        _refused(cluster.dsn("postgres", replication="database"))
        stream.close()
        held.close()
        evidence = read_log([cluster.log], recent_s=3600)
    # The slot of the first session is given back a moment late, so a log-in may have needed a second try.
    assert set(evidence.recent_by_kind) == {"reserved-for-superuser", "walsender-limit"}
    assert evidence.recent_by_kind["reserved-for-superuser"] >= 2
    assert evidence.recent_by_kind["walsender-limit"] == 1
    assert {group.user for group in evidence.refusals} == {"app", "postgres"}
    assert not evidence.connections_logged
    assert any("log_connections is off" in sentence for sentence in evidence.not_told)
    assert not any("SQLSTATE" in sentence for sentence in evidence.not_told)
