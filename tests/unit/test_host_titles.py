"""Process titles and what is made of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvacancy.model.evidence import BackendProcess
from pgvacancy.observe.host.samples import sample_from_backends
from pgvacancy.observe.host.titles import Title, cluster_prefix, parse_title, text_of

PREFIX = "my lab: x: "


@pytest.mark.parametrize(
    ("text", "wanted", "activity"),
    [
        ("postgres: app shop 10.0.0.7(5000) idle", ("client backend", "app", "shop", "10.0.0.7", 5000), "idle"),
        ("postgres: app shop [local] SELECT", ("client backend", "app", "shop", None, -1), "SELECT"),
        (
            "postgres: app shop ::1(5000) idle in transaction (aborted)",
            ("client backend", "app", "shop", "::1", 5000),
            "idle in transaction (aborted)",
        ),
        (
            "postgres: app shop h.example(77) UPDATE waiting",
            ("client backend", "app", "shop", None, 77),
            "UPDATE waiting",
        ),
        ("postgres: app shop 10.0.0.7(5000) authentication", ("authenticating", "app", "shop", "10.0.0.7", 5000), None),
        ("postgres: app shop 10.0.0.7(5000) startup", ("authenticating", "app", "shop", "10.0.0.7", 5000), None),
        ("postgres: app shop [local] initializing", ("authenticating", "app", "shop", None, -1), None),
        ("postgres: app shop 10.0.0.7(5000)", ("client backend", "app", "shop", "10.0.0.7", 5000), ""),
        ("postgres: my user shop [local] idle", ("client backend", "my user", "shop", None, -1), "idle"),
        ("postgres: walsender repl 10.0.0.7(5) streaming 0/3", ("walsender", "repl", None, "10.0.0.7", 5), None),
        ("postgres: walsender repl shop [local] idle", ("walsender", "repl", "shop", None, -1), "idle"),
        ("postgres: a(1) [local] [local] idle", ("client backend", "a(1)", "[local]", None, -1), "idle"),
        ("postgres: checkpointer ", ("auxiliary", None, None, None, None), "checkpointer"),
        ("postgres: parallel worker for PID 12", ("auxiliary", None, None, None, None), None),
        ("/usr/lib/postgresql/18/bin/postgres", ("connecting", None, None, None, None), ""),
        ("", ("connecting", None, None, None, None), ""),
    ],
)
def test_a_title_is_read_from_the_right(text: str, wanted: tuple[object, ...], activity: str | None) -> None:
    title = parse_title(text)
    assert (title.kind, title.user, title.database, title.client_addr, title.client_port) == wanted
    if activity is not None:
        assert title.activity == activity


def test_known_databases_split_names_with_blanks() -> None:
    title = parse_title("postgres: my user my db [local] idle", databases=("db", "my db", "postgres"))
    assert (title.user, title.database) == ("my user", "my db")


def test_the_cluster_name_is_read_off_the_checkpointer() -> None:
    titles = [f"postgres: {PREFIX}app shop [local] idle", f"postgres: {PREFIX}checkpointer "]
    assert cluster_prefix(titles) == PREFIX
    assert parse_title(titles[0], prefix=PREFIX).user == "app"
    assert cluster_prefix(["postgres: checkpointer "]) == ""
    assert cluster_prefix(["postgres: app shop [local] idle"]) == ""


def test_padding_is_no_part_of_a_title() -> None:
    assert text_of(b"postgres: walwriter \0\0\0\0") == "postgres: walwriter "
    assert text_of(b"postgres: \xff\0") == "postgres: �"


@given(st.text(), st.text())
def test_no_title_is_too_strange(text: str, prefix: str) -> None:
    assert isinstance(parse_title(text, prefix=prefix), Title)
    assert isinstance(parse_title("postgres: " + text, prefix=prefix, databases=(prefix,)), Title)


def backend(pid: int, kind: str, activity: str, user: str | None = "app") -> BackendProcess:
    return BackendProcess(pid=pid, start_at=5.0, kind=kind, user=user, database="shop", activity=activity)


def test_a_sample_has_the_states_that_causes_read() -> None:
    rows = sample_from_backends(
        [
            backend(1, "client backend", "idle"),
            backend(2, "client backend", "idle in transaction"),
            backend(3, "client backend", "idle in transaction (aborted)"),
            backend(4, "client backend", "SELECT"),
            backend(5, "client backend", "UPDATE waiting"),
            backend(6, "client backend", ""),
            backend(7, "authenticating", "authentication"),
            backend(8, "walsender", "streaming 0/3000060"),
            backend(9, "auxiliary", "autovacuum worker shop", user=None),
            backend(10, "auxiliary", "logical replication launcher", user=None),
            backend(11, "connecting", "", user=None),
        ],
        taken_at=9.0,
    )
    assert rows.source == "host"
    assert [s.state for s in rows.sessions[:7]] == [
        "idle",
        "idle in transaction",
        "idle in transaction (aborted)",
        "active",
        "active",
        None,
        "starting",
    ]
    assert [s.wait_event_type for s in rows.sessions[3:5]] == [None, "Lock"]
    assert rows.sessions[4].query == "UPDATE"
    assert [s.backend_type for s in rows.sessions[7:]] == [
        "walsender",
        "autovacuum worker",
        "logical replication launcher",
    ]
    assert all(s.state_change_at is None for s in rows.sessions)
    assert 11 not in {s.pid for s in rows.sessions}, "who has sent no start-up packet holds no slot"
