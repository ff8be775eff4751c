"""The query contract: every statement runs on the server at hand and gives the columns its reader expects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import tuple_row

import pgvacancy.observe.postgres as package
from pgvacancy.lab.cluster import Cluster
from pgvacancy.observe.postgres.statements import OLDEST, statement, statements

pytestmark = pytest.mark.matrix

QUERIES = Path(package.__file__).parent / "queries"
COLUMNS = {
    "activity": 19,
    "counters": 10,
    "databases": 3,
    "facts": 9,
    "lock_waits": 4,
    "log_file": 3,
    "log_tail": 1,
    "replay": 1,
    "roles": 5,
    "session_settings": 1,
    "settings": 3,
    "system_identifier": 1,
    "unseen_logins": 1,
}
"""What rows.py and session.py read by position."""
PARAMETERS: dict[str, dict[str, object]] = {
    "lock_waits": {"pids": [1, 2]},
    "log_tail": {"name": "postgresql.conf", "offset": 0, "length": 10},
}


@pytest.fixture(scope="module", params=["ordinary", "replication"])
def connection(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """The two kinds of session the doctor may have; the walsender takes the simple protocol only."""
    extra = " replication=database" if request.param == "replication" else ""
    with psycopg.connect(
        cluster.socket_dsn() + extra,
        autocommit=True,
        prepare_threshold=None,
        cursor_factory=psycopg.ClientCursor,
        row_factory=tuple_row,
    ) as opened:
        yield opened


@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_statement_runs_with_the_columns_expected(
    name: str, connection: psycopg.Connection[tuple[object, ...]]
) -> None:
    sql = statement(name, connection.info.server_version)
    if name == "replay":  # only a standby answers it; preparing it is what can be tested on a primary
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            connection.execute(sql.encode())
        return
    cursor = connection.execute(sql.encode(), PARAMETERS.get(name))
    assert cursor.description is not None
    assert len(cursor.description) == COLUMNS[name]


def test_every_file_is_used_and_every_statement_known() -> None:
    assert set(statements()) == set(COLUMNS)


@pytest.mark.parametrize("path", sorted(QUERIES.glob("*.sql")), ids=lambda p: p.stem)
def test_header_and_tag(path: Path) -> None:
    text = path.read_text()
    for key in ("since", "cost", "privilege"):
        assert re.search(rf"^-- {key}: \S", text, re.MULTILINE), f"{path.name} has no {key} header"
    body = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    assert body.startswith(f"/* pgvacancy:{path.stem} */")
    assert ";" not in body, "one statement each"


@pytest.mark.parametrize("major", range(OLDEST, 19))
def test_every_statement_has_a_form_for_every_major(major: int) -> None:
    for name in statements():
        assert statement(name, major * 10_000)
