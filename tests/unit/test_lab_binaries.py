"""Which directory a client program of the lab is taken from."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgvacancy.lab import binaries
from pgvacancy.model.errors import MissingProgramError


def directory(path: Path, *programs: str, mode: int = 0o755) -> Path:
    path.mkdir()
    for name in programs:
        (path / name).touch(mode)
    return path


@pytest.fixture
def lab_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    chosen = directory(tmp_path / "chosen", "postgres", "pgbench")
    monkeypatch.setattr(binaries, "binaries", lambda: chosen)
    return chosen


def test_the_servers_own_program_comes_first(tmp_path: Path, lab_choice: Path) -> None:
    own = directory(tmp_path / "own", "postgres", "pgbench")
    assert binaries.client_program("pgbench", own) == own / "pgbench"


def test_a_bare_server_borrows_the_labs(tmp_path: Path, lab_choice: Path) -> None:
    assert binaries.client_program("pgbench", directory(tmp_path / "bare", "postgres")) == lab_choice / "pgbench"


def test_nobody_has_it(tmp_path: Path, lab_choice: Path) -> None:
    bare = directory(tmp_path / "bare", "postgres")
    with pytest.raises(MissingProgramError, match="no pg_receivewal to run"):
        binaries.client_program("pg_receivewal", bare)
