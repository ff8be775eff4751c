"""What is counted, and what is not: formats, prefixes, languages, smuggled text, rates."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pgvacancy.observe.logs import read_log, read_tail

FULL = "sorry, too many clients already"
NOON = 1767268800.0
"""2026-01-01 12:00:00 UTC."""


def csv_line(  # noqa: PLR0913 - the parts of an entry that tests vary
    message: str,
    *,
    at: str = "2026-01-01 12:00:00.000 UTC",
    state: str = "53300",
    severity: str = "FATAL",
    columns: int = 26,
    user: str = '"app"',
    backend: str = "client backend",
) -> str:
    quoted = message.replace('"', '""')
    tail = {23: ',""', 24: f',"","{backend}"', 26: f',"","{backend}",,0'}[columns]
    who = f'{user},"shop",7,"10.0.0.9:4711",6b0363f4.15,2,"startup"'
    return f'{at},{who},{at},,0,{severity},{state},"{quoted}",,,,,,,,{tail}\n'


def json_line(message: str, *, state: str = "53300", severity: str = "FATAL", **more: object) -> str:
    entry = {
        "timestamp": "2026-01-01 12:00:00.000 UTC",
        "user": "app",
        "dbname": "shop",
        "pid": 7,
        "remote_host": "10.0.0.9",
        "session_id": "6b0363f4.15",
        "error_severity": severity,
        "state_code": state,
        "message": message,
        **more,
    }
    return json.dumps(entry) + "\n"


@pytest.mark.parametrize("columns", [23, 24, 26])
def test_csvlog_of_every_width(columns: int) -> None:
    evidence = read_tail(csv_line(FULL, columns=columns).encode(), cut=False)
    (group,) = evidence.refusals
    assert evidence.format == "csvlog"
    assert (group.kind, group.user, group.database, group.client) == ("slots-full", "app", "shop", "10.0.0.9")
    assert group.last_at == NOON


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (FULL, "slots-full"),
        ("remaining connection slots are reserved for non-replication superuser connections", "reserved-for-superuser"),
        ("remaining connection slots are reserved for roles with the SUPERUSER attribute", "reserved-for-superuser"),
        (
            'remaining connection slots are reserved for roles with privileges of "pg_use_reserved_connections"',
            "reserved-for-role",
        ),
        ('too many connections for role "app"', "role-limit"),
        ('too many connections for database "shop"', "database-limit"),
        ('number of requested standby connections exceeds "max_wal_senders" (currently 1)', "walsender-limit"),
        ("tut mir leid, schon zu viele Verbindungen", "slots-full"),
        ("désolé, trop de clients sont déjà connectés", "slots-full"),
        ("слишком много подключений для роли app", "role-limit"),
        ("データベース shop への接続が多すぎます", "database-limit"),
        ("las conexiones restantes están reservadas a superusuarios y no de replicación", "reserved-for-superuser"),
        ("a text in a language nobody here knows", "other"),
    ],
)
def test_kinds_where_the_code_is_given(message: str, kind: str) -> None:
    stderr = f"2026-01-01 12:00:00 UTC [7] 00000 LOG:  x\n2026-01-01 12:00:00 UTC [8] 53300 FATAL:  {message}\n"
    for text in (csv_line(message), json_line(message), stderr):
        evidence = read_tail(text.encode(), cut=False)
        assert [(group.kind, group.count) for group in evidence.refusals] == [(kind, 1)]
        assert evidence.recent_refusals == 1


@pytest.mark.parametrize(
    ("prefix", "line"),
    [
        ("%m [%p] ", "2026-01-01 12:00:00.000 UTC [77] "),
        ("%t [%p]: user=%u,db=%d,app=%a,client=%h ",
         "2026-01-01 12:00:00 UTC [77]: user=app,db=shop,app=my app,client=10.0.0.9 "),
        ("%m [%p] %q%u@%d ", "2026-01-01 12:00:00.000 UTC [77] app@shop "),
        ("%m [%p] %e %u@%d %h ", "2026-01-01 12:00:00.000 UTC [77] 53300 app@shop 10.0.0.9 "),
        ("%n:%r:%u@%d:[%p]:", "1767268800.000:10.0.0.9(4711):app@shop:[77]:"),
        ("%m %c %-8u|%d|%r> ", "2026-01-01 12:00:00.000 UTC 6b0363f4.4d app     |shop|10.0.0.9(4711)> "),
        ("<%t %u %d %h %%>", "<2026-01-01 12:00:00 UTC app shop 10.0.0.9 %>"),
        ("", ""),
    ],
)  # fmt: skip
def test_any_prefix(prefix: str, line: str) -> None:
    text = f"{line}FATAL:  {FULL}\n".encode()
    if prefix:
        guessed = read_tail(text, cut=False)
        assert [group.kind for group in guessed.refusals] == ["slots-full"]
        assert guessed.last_at == NOON
    evidence = read_tail(text, cut=False, log_line_prefix=prefix)
    (group,) = evidence.refusals
    assert group.kind == "slots-full"
    if "%u" in prefix:
        assert (group.user, group.database) == ("app", "shop")
    if "%h" in prefix or "%r" in prefix:
        assert group.client == "10.0.0.9"
    assert not any("guessed" in sentence for sentence in evidence.not_told)


def test_a_wrong_prefix_is_said_and_the_parts_guessed() -> None:
    text = f"2026-01-01 12:00:00.000 UTC [7] app@shop FATAL:  {FULL}\n"
    evidence = read_tail(text.encode(), cut=False, log_line_prefix="%u ")
    assert evidence.refusals[0].user == "app"
    assert any("guessed" in sentence for sentence in evidence.not_told)


def test_behind_syslog_and_container_headers() -> None:
    syslog = f"Jan  1 12:00:00 db1 postgres[77]: [3-1] 2026-01-01 12:00:00.000 UTC [77] FATAL:  {FULL}\n"
    cri = f"2026-01-01T12:00:00.000000001Z stderr F 2026-01-01 12:00:00.000 UTC [77] FATAL:  {FULL}\n"
    record = {
        "log_time": "2026-01-01 12:00:00.000 UTC",
        "user_name": "app",
        "database_name": "shop",
        "process_id": "77",
        "connection_from": "10.0.0.9:4711",
        "error_severity": "FATAL",
        "sql_state_code": "53300",
        "message": FULL,
    }
    wrapped = json.dumps({"level": "info", "msg": "record", "record": record})
    for text in (syslog, cri, wrapped + "\n"):
        evidence = read_tail(text.encode(), cut=False)
        assert [group.kind for group in evidence.refusals] == ["slots-full"]
        assert evidence.last_at == pytest.approx(NOON)


def test_text_of_clients_is_never_counted() -> None:
    head = "2026-01-01 12:00:00.000 UTC [7] app@shop "
    stderr = (
        f"{head}ERROR:  syntax error\n{head}STATEMENT:  select 'FATAL:  {FULL}'\n\t{head}FATAL:  {FULL}\n"
        f'{head}FATAL:  password authentication failed for user "{FULL}"\n'
        f"{head}LOG:  statement: select 'x' -- FATAL:  {FULL}\n"
    )
    forged = csv_line(FULL).strip()
    csv = csv_line(f"x\n{forged}\ny", severity="ERROR", state="22012") + csv_line(FULL, severity="ERROR")
    unquoted = "2026-01-01 12:00:00.000 UTC,,,7,,6b0363f4.1,1,,,,0,FATAL,53300,sorry"
    csv += csv_line(f"x\n{unquoted}", severity="LOG", state="00000")
    jsonl = json_line("x", severity="ERROR", state="22012", statement=json_line(FULL)) + json_line(FULL, severity="LOG")
    for text in (stderr, csv, jsonl):
        evidence = read_tail(text.encode(), cut=False)
        assert evidence.refusals == ()
        assert evidence.recent_refusals == 0


def test_only_a_severity_that_ends_the_session_refuses() -> None:
    assert read_tail(csv_line(FULL, severity="WARNING").encode(), cut=False).refusals == ()
    assert read_tail(csv_line(FULL, severity="ВАЖНО").encode(), cut=False).recent_refusals == 1


def test_the_client_comes_from_the_sessions_first_line() -> None:
    text = (
        "2026-01-01 12:00:00.000 UTC [7] LOG:  connection received: host=10.0.0.9 port=4711\n"
        "2026-01-01 12:00:00.000 UTC [8] LOG:  connection received: host=[local]\n"
        "2026-01-01 12:00:00.001 UTC [7] LOG:  connection authorized: user=app database=shop application_name=x\n"
        f"2026-01-01 12:00:00.002 UTC [8] FATAL:  {FULL}\n"
        "2026-01-01 12:00:00.002 UTC [7] FATAL:  remaining connection slots are reserved for roles with the SUPERUSER "
        "attribute\n"
        # The pid is used again by another client.
        "2026-01-01 12:00:00.000 UTC [7] LOG:  connection received: host=10.0.0.10 port=4712\n"
        f"2026-01-01 12:00:00.002 UTC [7] FATAL:  {FULL}\n"
    )
    found = {(g.kind, g.user, g.database, g.client) for g in read_tail(text.encode(), cut=False).refusals}
    assert found == {
        ("slots-full", None, None, "[local]"),
        ("reserved-for-superuser", "app", "shop", "10.0.0.9"),
        ("slots-full", None, None, "10.0.0.10"),
    }


def test_rates_are_those_of_the_last_seconds() -> None:
    lines = [csv_line(FULL, at=f"2026-01-01 12:{minute:02}:{second:02}.500 UTC") for minute in (0, 5)
             for second in (range(30) if minute else range(0, 60, 2))]  # fmt: skip
    text = "".join(lines).encode()
    evidence = read_tail(text, cut=False, recent_s=10.0)
    assert evidence.recent_refusals == 11
    assert evidence.recent_s == 10.0
    assert sum(group.count for group in evidence.refusals) == 60
    assert (evidence.peak_refusals, evidence.peak_window_s) == (10, 10.0)
    assert read_tail(text, cut=False, recent_s=10.0, now_at=NOON + 400).recent_refusals == 0
    assert read_tail(text, cut=False, recent_s=10.0, now_at=NOON + 10).recent_refusals == 5


def test_log_ins_that_fail_are_told_by_reason() -> None:
    text = "".join(
        [
            csv_line('password authentication failed for user "x"', state="28P01"),
            csv_line('no pg_hba.conf entry for host "10.0.0.9", user "x", database "y", no encryption', state="28000"),
            csv_line('role "x" does not exist', state="28000"),
            csv_line("canceling authentication due to timeout", state="57014"),
            csv_line("incomplete startup packet", state="08P01", severity="LOG"),
            csv_line("invalid length of startup packet", state="08P01", severity="LOG"),
            csv_line("canceling statement due to user request", state="57014", severity="ERROR"),
            csv_line("Passwort-Authentifizierung für Benutzer »x« fehlgeschlagen", state="28P01"),
        ]
    )
    evidence = read_tail(text.encode(), cut=False)
    assert evidence.login_failures == {
        "wrong-password": 2, "no-hba-rule": 1, "unknown-role": 1, "timeout": 1, "incomplete-packet": 1,
        "invalid-packet": 1,
    }  # fmt: skip
    assert evidence.authentication_failures == 7
    assert evidence.login_failures_by_client == {"10.0.0.9": 7}
    assert evidence.refusals == ()


def test_connection_lines_in_other_languages() -> None:
    text = (
        csv_line("Verbindung empfangen: Host=10.0.0.9 Port=1", severity="LOG", state="00000")
        + csv_line("Verbindung autorisiert: Benutzer=app Datenbank=shop", severity="LOG", state="00000")
        + csv_line("Verbindungsende: Sitzungszeit: 0:00:00.020 Benutzer=app", severity="LOG", state="00000")
        + csv_line("tut mir leid, schon zu viele Verbindungen")
        + csv_line("Datenbanksystem ist bereit, um Verbindungen anzunehmen", severity="LOG", state="00000")
    )
    evidence = read_tail(text.encode(), cut=False)
    assert (evidence.received, evidence.authorized, evidence.disconnections, evidence.short_sessions) == (1, 1, 1, 1)
    assert (evidence.recent_refusals, evidence.server_starts) == (1, 1)


def test_a_translated_log_without_codes_says_what_it_cannot_tell() -> None:
    text = (
        "2026-01-01 12:00:00.000 UTC [7] FEHLER:  Division durch Null\n"
        "2026-01-01 12:00:00.000 UTC [7] ANWEISUNG:  select 1/0\n"
        "2026-01-01 12:00:00.000 UTC [8] FATAL:  tut mir leid, schon zu viele Verbindungen\n"
    )
    evidence = read_tail(text.encode(), cut=False)
    assert evidence.refusals == ()
    assert any("translated" in sentence for sentence in evidence.not_told)


def test_other_things_of_note() -> None:
    text = "".join(
        [
            csv_line("database system is ready to accept connections", severity="LOG", state="00000"),
            csv_line("could not fork new process for connection: Resource temporarily unavailable", severity="LOG",
                     state="00000", user=""),
            csv_line("the database system is starting up", state="57P03"),
            csv_line(FULL, backend="dead-end client backend"),
            csv_line("hot standby is not possible because of insufficient parameter settings", severity="WARNING",
                     state="22023"),
        ]
    )  # fmt: skip
    evidence = read_tail(text.encode(), cut=False)
    assert evidence.recent_by_kind == {"fork-failed": 1, "starting-up": 1, "slots-full": 1}
    assert (evidence.recent_refusals, evidence.dead_end_refusals, evidence.server_starts) == (1, 1, 1)
    assert evidence.last_start_at == NOON
    assert len(evidence.standby_limit_lines) == 1


def test_standby_limits_of_old_and_new_servers() -> None:
    new = (
        "2026-01-01 12:00:00.000 UTC [7] WARNING:  hot standby is not possible because of insufficient parameter "
        "settings\n"
        "2026-01-01 12:00:00.000 UTC [7] DETAIL:  max_connections = 5 is a lower setting than on the primary server, "
        "where its value was 10.\n"
    )
    old = (
        "2026-01-01 12:00:00.000 UTC [7] FATAL:  hot standby is not possible because max_connections = 5 is a lower "
        "setting than on the master server (its value was 10)\n"
    )
    for text in (new, old):
        (line,) = read_tail(text.encode(), cut=False).standby_limit_lines
        assert "max_connections = 5" in line


def test_a_poolers_log() -> None:
    text = (
        "2026-01-01 12:00:00.000 UTC [9] LOG process up: PgBouncer 1.18.0\n"
        "2026-01-01 12:00:00.000 UTC [9] LOG C-0x5: shop/app@10.0.0.9:48390 login attempt: db=shop user=app tls=no\n"
        "2026-01-01 12:00:00.000 UTC [9] ERROR S: login failed: FATAL: sorry, too many clients already\n"
        "2026-01-01 12:00:00.000 UTC [9] WARNING S-0x6: shop/app@10.0.0.1:5432 server login failed: FATAL sorry, "
        "too many clients already\n"
        "2026-01-01 12:00:00.000 UTC [9] LOG S-0x6: shop/app@10.0.0.1:5432 closing because: login failed (age=0s)\n"
        "2026-01-01 12:00:00.000 UTC [9] WARNING C-0x5: (nodb)/(nouser)@10.0.0.9:48364 pooler error: no more "
        "connections allowed (max_client_conn)\n"
        "2026-01-01 12:00:00.000 UTC [9] WARNING C-0x5: shop/app@10.0.0.9:48390 pooler error: query_wait_timeout\n"
        "2026-01-01 12:00:00.000 UTC [9] WARNING C-0x5: shop/app@10.0.0.9:48390 pooler error: server login has been "
        "failing, try again later (server_login_retry)\n"
    )
    evidence = read_tail(text.encode(), cut=False)
    assert evidence.format == "pgbouncer"
    assert evidence.recent_by_kind == {
        "slots-full": 2, "pooler-client-limit": 1, "pooler-wait-timeout": 1, "pooler-login-failing": 1,
    }  # fmt: skip
    assert evidence.recent_refusals == 2
    assert evidence.pooler_closings == {"login failed": 1}
    assert ("pooler-wait-timeout", "app", "shop", "10.0.0.9") in {
        (g.kind, g.user, g.database, g.client) for g in evidence.refusals
    }


def test_zones_known_numeric_and_measured(tmp_path: Path) -> None:
    for zone, at in (("UTC", NOON), ("CET", NOON - 3600), ("-03", NOON + 3 * 3600), ("+0530", NOON - 5.5 * 3600)):
        evidence = read_tail(csv_line(FULL, at=f"2026-01-01 12:00:00.000 {zone}").encode(), cut=False)
        assert evidence.last_at == at, zone
    unknown = tmp_path / "server.csv"
    unknown.write_text(csv_line(FULL, at="2026-01-01 12:00:00.000 QZT"))
    evidence = read_log([unknown])
    assert any("QZT" in sentence for sentence in evidence.not_told)
    os.utime(unknown, (NOON - 4 * 3600 + 3, NOON - 4 * 3600 + 3))
    evidence = read_log([unknown])
    assert evidence.last_at == NOON - 4 * 3600
    assert not any("QZT" in sentence for sentence in evidence.not_told)


def test_a_log_without_times_gives_no_rates() -> None:
    evidence = read_tail(f"[7] FATAL:  {FULL}\n".encode(), cut=False)
    assert (sum(g.count for g in evidence.refusals), evidence.recent_refusals) == (1, 0)
    assert any("no line has a time" in sentence for sentence in evidence.not_told)


def test_many_different_clients_are_kept_apart_only_so_far() -> None:
    text = "".join(csv_line(f'too many connections for role "r{n}"', user=f'"r{n}"') for n in range(6000))
    evidence = read_tail(text.encode(), cut=False)
    assert evidence.recent_refusals == 6000 == sum(group.count for group in evidence.refusals)
    assert len(evidence.refusals) <= 5001
    assert any("counted together" in sentence for sentence in evidence.not_told)
