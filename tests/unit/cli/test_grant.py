from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvacancy.cli.grant import check_name, create, for_doctor, quoted
from pgvacancy.cli.main import main
from pgvacancy.model.errors import InputError


def sql(*arguments: str) -> str:
    statements = for_doctor("watch", reserved="reserved" in arguments, replication_door="door" in arguments)
    return "\n".join(s.sql for s in statements)


def test_least_privileges_are_the_default() -> None:
    text = sql()
    assert 'GRANT pg_read_all_stats TO "watch";' in text
    assert "CONNECTION LIMIT 2" in text
    for more in ("SUPERUSER", "REPLICATION", "pg_monitor", "pg_use_reserved_connections", "PASSWORD"):
        assert more not in text


def test_more_only_when_asked_for() -> None:
    assert 'GRANT pg_use_reserved_connections TO "watch";' in sql("reserved")
    assert 'ALTER ROLE "watch" REPLICATION;' in sql("door")


def test_output_is_sql_with_comments_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grant", "--role", "watch", "--reserved", "--replication-door"]) == 0
    lines = capsys.readouterr().out.splitlines()
    starts = ("--", "DO ", "BEGIN", "    ", "END", "$pgvacancy$", "ALTER ROLE ", "GRANT ")
    assert all(not line or line.startswith(starts) for line in lines)


def test_json_has_the_same_statements(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grant", "--role", "watch", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["role"] == "watch"
    assert "\n".join(s["sql"] for s in answer["statements"]) == sql()


@pytest.mark.parametrize("name", ["", "x" * 64, "é" * 32, "pg_watch", "public", "none", "a\nDROP TABLE t; --"])
def test_names_no_role_can_have_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        check_name(name)


@given(st.text(min_size=1, max_size=20))
def test_a_name_never_leaves_its_quotes(name: str) -> None:
    inside = quoted(name)[1:-1]
    assert '"' not in inside.replace('""', "")
    assert inside.replace('""', '"') == name
    tag = create(name).split(maxsplit=2)[1]
    assert create(name).count(tag) == 2


def test_a_name_that_holds_the_dollar_tag_gets_another_tag() -> None:
    assert create("a$pgvacancy$b").startswith("DO $pgvacancy_$\n")
