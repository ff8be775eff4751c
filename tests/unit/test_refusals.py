"""Which limit refused: every row below was measured on a real server (docs/explanation/refusals.md)."""

from __future__ import annotations

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvacancy.model.refusals import classify
from pgvacancy.model.snapshot import RefusalKind

ROLES_OF_RESERVE = (
    'remaining connection slots are reserved for roles with privileges of the "pg_use_reserved_connections" role'
)


@pytest.mark.parametrize(
    ("message", "routine", "walsender", "kind"),
    [
        ("sorry, too many clients already", "InitProcess", False, "slots-full"),
        ("sorry, too many clients already", "ProcessStartupPacket", False, "slots-full"),
        ("sorry, too many clients already", "BackendInitialize", False, "slots-full"),
        ("sorry, too many clients already", "BackendInitialize", True, "slots-full"),
        ("sorry, too many clients already", "ProcArrayAdd", False, "slots-full"),
        (
            "number of requested standby connections exceeds max_wal_senders (currently 2)",
            "InitProcess",
            True,
            "walsender-limit",
        ),
        (
            'number of requested standby connections exceeds "max_wal_senders" (currently 2)',
            "InitProcess",
            True,
            "walsender-limit",
        ),
        (
            "remaining connection slots are reserved for non-replication superuser connections",
            "InitPostgres",
            False,
            "reserved-for-superuser",
        ),
        (
            "remaining connection slots are reserved for roles with the SUPERUSER attribute",
            "InitPostgres",
            False,
            "reserved-for-superuser",
        ),
        (ROLES_OF_RESERVE, "InitPostgres", False, "reserved-for-role"),
        ('too many connections for role "app"', "InitializeSessionUserId", False, "role-limit"),
        ('too many connections for database "app"', "CheckMyDatabase", False, "database-limit"),
    ],
)
def test_each_limit_by_routine_and_again_by_text_alone(
    message: str, routine: str, *, walsender: bool, kind: RefusalKind
) -> None:
    assert classify("53300", message, routine, asked_walsender=walsender) == kind
    # A log line or a pooler passes the English text on and drops the routine.
    assert classify("53300", message) == kind
    assert classify(None, message) == kind
    assert classify("08P01", message) == kind


@pytest.mark.parametrize(
    ("message", "routine", "walsender", "kind"),
    [
        # Raised by Debian's PostgreSQL 15 with lc_messages = 'de_DE.UTF-8'.
        ("tut mir leid, schon zu viele Verbindungen", "InitProcess", False, "slots-full"),
        (
            "die verbleibenden Verbindungen sind für Superuser auf Nicht-Replikationsverbindungen reserviert",
            "InitPostgres",
            False,
            "reserved-for-superuser",
        ),
        ("zu viele Verbindungen von Rolle »lim«", "InitializeSessionUserId", False, "role-limit"),
        ("zu viele Verbindungen für Datenbank »dlim«", "CheckMyDatabase", False, "database-limit"),
        (
            "Anzahl angeforderter Standby-Verbindungen überschreitet max_wal_senders (aktuell 2)",
            "InitProcess",
            True,
            "walsender-limit",
        ),
    ],
)
def test_translated_texts_are_told_apart_by_routine(
    message: str, routine: str, *, walsender: bool, kind: RefusalKind
) -> None:
    assert classify("53300", message, routine, asked_walsender=walsender) == kind


def test_names_inside_a_translated_text_separate_the_two_reserves() -> None:
    assert (
        classify("53300", "… Rechten der Rolle »pg_use_reserved_connections« …", "InitPostgres") == "reserved-for-role"
    )
    assert classify("53300", "… mit dem SUPERUSER-Attribut …", "InitPostgres") == "reserved-for-superuser"
    assert classify("53300", "… »pg_use_reserved_connections« …") == "reserved-for-role"
    assert classify("53300", "… SUPERUSER …") == "reserved-for-superuser"


def test_a_translated_text_without_a_routine_is_not_guessed_at() -> None:
    assert classify("53300", "tut mir leid, schon zu viele Verbindungen") == "other"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("remaining connection slots are reserved for non-replication superuser and rds_superuser connections", None),
        (
            'remaining connection slots are reserved for roles with privileges of the "rds_reserved" role',
            "reserved-for-role",
        ),
        (
            "remaining connection slots are reserved for non-replication superuser and rds_reserved connections",
            "reserved-for-role",
        ),
    ],
)
def test_managed_servers_name_a_role_of_their_own(message: str, kind: RefusalKind | None) -> None:
    assert classify("53300", message, "InitPostgres") == (kind or "reserved-for-superuser")


@pytest.mark.parametrize(
    ("sqlstate", "message", "kind"),
    [
        ("08P01", "no more connections allowed (max_client_conn)", "pooler-client-limit"),
        ("08P01", "client connections exceeded (max_db_client_connections)", "pooler-client-cap"),
        ("08P01", "client connections exceeded (max_user_client_connections)", "pooler-client-cap"),
        ("08P01", "query_wait_timeout", "pooler-wait-timeout"),
        ("08P01", "server login has been failing, try again later (server_login_retry)", "pooler-login-failing"),
        (
            "53300",
            "server login has been failing, cached error: sorry, too many clients already (server_login_retry)",
            "pooler-login-failing",
        ),
        ("53300", "sorry, too many clients already", "slots-full"),
        ("08P01", "no such database: nodb", "other"),
        ("08P01", "unsupported startup parameter: replication", "other"),
        ("57P03", "the database system is starting up", "starting-up"),
    ],
)
def test_texts_of_pgbouncer(sqlstate: str, message: str, kind: RefusalKind) -> None:
    assert classify(sqlstate, message) == kind


@pytest.mark.parametrize(
    ("sqlstate", "message", "routine", "kind"),
    [
        ("57P03", "das Datenbanksystem fährt herunter", "ProcessStartupPacket", "starting-up"),
        ("57P03", "the database system is not yet accepting connections", "BackendInitialize", "starting-up"),
        (None, "the database system is in recovery mode", None, "starting-up"),
        (None, "could not fork new process for connection: Resource temporarily unavailable", None, "fork-failed"),
        ("28000", 'no pg_hba.conf entry for host "127.0.0.1"', "ClientAuthentication", "other"),
        ("53400", "too many background workers", "RegisterBackgroundWorker", "other"),
        (None, "must have SUPERUSER attribute to do this", None, "other"),
        # The words of a pooler inside PostgreSQL's own error are not the pooler's.
        ("08P01", "query_wait_timeout", "exec_simple_query", "other"),
    ],
)
def test_neighbours(sqlstate: str | None, message: str, routine: str | None, kind: RefusalKind) -> None:
    assert classify(sqlstate, message, routine) == kind


@given(
    sqlstate=st.none() | st.sampled_from(["53300", "57P03", "08P01", "28000"]) | st.text(max_size=6),
    message=st.text(max_size=80),
    routine=st.none() | st.text(max_size=30) | st.sampled_from(["InitProcess", "InitPostgres"]),
    walsender=st.booleans(),
)
def test_any_input_gives_a_kind_of_the_contract(
    sqlstate: str | None, message: str, routine: str | None, *, walsender: bool
) -> None:
    assert classify(sqlstate, message, routine, asked_walsender=walsender) in typing.get_args(RefusalKind)
