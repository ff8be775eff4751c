"""Statements without their literals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvacancy.model.fingerprint import fingerprint, without_literals


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT * FROM t WHERE a = 'x''y' AND b = 42", "SELECT * FROM t WHERE a = ? AND b = ?"),
        ("SELECT 'cut off in the mid", "SELECT ?"),
        ("SELECT E'a\\'b', x'ff', U&'d'", "SELECT ?, ?, ?"),
        ("SELECT $tag$ a 'b' $tag$, $$x$$", "SELECT ?, ?"),
        ("INSERT INTO t VALUES (1, 2.5, -3e7)", "INSERT INTO t VALUES (?)"),
        ("SELECT col1, $1 FROM t2 -- 'jane'\n WHERE x", "SELECT col1, $1 FROM t2 WHERE x"),
        ("/* pgvacancy:activity */ SELECT 1 /* secret */", "/* pgvacancy:activity */ SELECT ?"),
        ("ALTER ROLE x PASSWORD 'geheim'", "ALTER ... (hidden: it mentions a password)"),
        ("", ""),
    ],
)
def test_literals_go(query: str, expected: str) -> None:
    assert without_literals(query) == expected


def test_same_statement_with_other_literals_has_the_same_fingerprint() -> None:
    assert fingerprint("select * from t where id = 1") == fingerprint("SELECT *  FROM t WHERE id = 999")
    assert fingerprint("a", 5) == fingerprint("b", 5)


@given(st.text(alphabet="abc xyz019", min_size=1, max_size=20), st.text(max_size=30))
def test_no_quoted_text_survives(secret: str, tail: str) -> None:
    assert f"<{secret}>" not in without_literals(f"SELECT '<{secret}>' {tail}")
