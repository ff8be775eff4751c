"""What is said about attempts, refusals and passing log-ins, from evidence made by hand."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from pgvacancy.causes import diagnose
from pgvacancy.causes._arrivals import passing_logins, refused_per_s, spare_forks_per_s, turnovers
from pgvacancy.causes._common import MONITORS
from pgvacancy.causes._examples import NOW_AT, pool, server, snapshot
from pgvacancy.lab.half_open import startup_packet
from pgvacancy.model.evidence import HostEvidence, LogEvidence, RefusalCount
from pgvacancy.model.series import Case
from pgvacancy.model.snapshot import Refusal, Session, Snapshot


def log(count: int, *, last_s: float = 0.1, failures: int = 0) -> LogEvidence:
    """A log with so many refusals in its last ten seconds, the last one ``last_s`` seconds ago."""
    at = NOW_AT - last_s
    return LogEvidence(
        first_at=NOW_AT - 60,
        last_at=at,
        refusals=(RefusalCount(kind="slots-full", message="sorry", count=count, last_at=at),),
        recent_refusals=count,
        recent_s=8,
        peak_refusals=count,
        peak_window_s=10,
        peak_at=at,
        authentication_failures=failures,
    )


def full(**more: object) -> Snapshot:
    """Seventeen used sessions on a server with twenty slots."""
    return snapshot(server(20), pool("web", 17, idle_s=(0, 1), age_s=900, used=True), **more)  # type: ignore[arg-type]  # fields of Snapshot


def found(case: Snapshot) -> list[str]:
    """The slugs of the findings."""
    return [f.cause for f in diagnose(case).findings]


def test_without_a_log_the_rate_is_not_known() -> None:
    assert refused_per_s(Case(full())) is None


def test_a_storm_that_is_over_counts_for_nothing() -> None:
    assert refused_per_s(Case(full(log=log(5000, last_s=5)))) == 0.0


def test_new_processes_are_an_upper_end_of_the_refusals() -> None:
    case = Case(full(log=log(5000), host=HostEvidence(forks_per_s=7.0)))
    assert spare_forks_per_s(case) == 7.0
    assert refused_per_s(case) == 7.0


def test_failed_passwords_are_no_retry_storm() -> None:
    assert "retry-storm" in found(full(log=log(900)))
    assert "retry-storm" not in found(full(log=log(900, failures=4000)))


def test_a_log_without_our_own_refusal_is_not_believed() -> None:
    host = HostEvidence(forks_per_s=400.0, time_wait=4000)
    silent = LogEvidence(first_at=NOW_AT - 60, last_at=NOW_AT)
    assert "retry-storm" not in found(full(log=silent, host=host))
    refusal = Refusal(sqlstate="53300", kind="slots-full", message="sorry, too many clients already")
    assert "retry-storm" in found(full(log=silent, host=host, refusal=refusal))


def test_a_log_in_seen_once_and_gone_has_passed() -> None:
    base = full()
    first, last = base.samples
    row = Session(pid=77, backend_start_at=NOW_AT - 3, state="starting")
    seen = replace(base, samples=(replace(first, sessions=(*first.sessions, row), unseen_logins=(88, 99)), last))
    assert passing_logins(Case(seen)) == {(77, NOW_AT - 3), (88, 0.0), (99, 0.0)}
    stays = replace(seen, samples=(seen.samples[0], replace(last, sessions=(*last.sessions, row), unseen_logins=(88,))))
    assert passing_logins(Case(stays)) == {(99, 0.0)}


def test_sessions_that_stay_are_no_turnover() -> None:
    assert turnovers(Case(full()), 5) == []


def test_those_who_queue_for_a_process_want_a_slot() -> None:
    base = snapshot(server(20), sessions_per_s=60)
    first, last = base.samples
    gone = tuple(b for _, b in pool("php", 6, idle_s=3.1, age_s=3.2))
    born = tuple(b for _, b in pool("php", 6, idle_s=0.1, age_s=0.2))
    seen = replace(base, samples=(replace(first, sessions=gone), replace(last, sessions=born)))
    assert "no-pooling" not in found(seen)
    assert "no-pooling" in found(replace(seen, host=HostEvidence(listen_queue=40)))


@pytest.mark.parametrize(
    "name", ["postgres_exporter", "Datadog Agent", "pgwatch3", "check_postgres.pl", "PMM", "sql_exporter", "monitoring"]
)
def test_names_of_watchers(name: str) -> None:
    assert MONITORS.search(name)


@pytest.mark.parametrize("name", ["hotel", "consensus", "shop", "exporters-guild", "communing", "psql", "shipmment"])
def test_names_that_only_look_like_watchers(name: str) -> None:
    assert not MONITORS.search(name)


def test_a_start_up_packet_tells_its_length_and_names() -> None:
    packet = startup_packet("app", "shop")
    assert struct.unpack("!II", packet[:8]) == (len(packet), 196608)
    assert packet[8:] == b"user\0app\0database\0shop\0\0"
