"""The lab as a user has it: up, run, down, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, pg_bin: Path | None) -> Iterator[Path]:
    """A laboratory of this test's own. pytest's own directories are closed to the server's account."""
    directory = Path(f"/tmp/pgvacancy-e2e-{os.getpid()}")  # noqa: S108 - short, for the socket's path
    yield directory
    call(directory, "down")


def call(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgvacancy", "lab", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env={**os.environ, "PGVACANCY_LAB_DIR": str(home)},
    )


def processes_of(home: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if (
            str(home) in line
            or ("pgvacancy.lab" in line
            and _environment_of(process).get("PGVACANCY_LAB_DIR") == str(home))
        ):
            found.append(line)
    return found


def _environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_up_run_down(home: Path) -> None:
    up = call(home, "up")
    assert up.returncode == 0, up.stderr
    dsn = up.stdout.strip()
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SHOW max_connections").fetchone() == ("20",)
    again = call(home, "up")
    assert again.stdout.strip() == dsn, "up twice is the same lab"
    run = call(home, "run", "idle-sessions", "--format", "json")
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["cause"] == "idle-sessions"
    with pytest.raises(psycopg.OperationalError, match="reserved"):
        psycopg.connect(answer["dsn"].replace("postgres@", "web@"))
    doctor = subprocess.run(
        [sys.executable, "-m", "pgvacancy", "doctor", *answer["doctor"], "--observe", "1", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert doctor.returncode == 1
    assert json.loads(doctor.stdout)["findings"][0]["cause"] == "idle-sessions"
    down = call(home, "down")
    assert down.returncode == 0
    assert not processes_of(home)
    assert not home.exists()


def test_down_after_a_crash(home: Path) -> None:
    assert call(home, "up").returncode == 0
    assert call(home, "run", "idle-sessions").returncode == 0
    state = json.loads((home / "lab.json").read_text())
    psutil.Process(state["fault"]["pid"]).kill()
    postmaster = (Path(state["directory"]) / "data" / "postmaster.pid").read_text().splitlines()[0]
    psutil.Process(int(postmaster)).kill()
    down = call(home, "down")
    assert down.returncode == 0, down.stderr
    assert not processes_of(home)
    assert not home.exists()


def test_a_fault_that_restarts_the_server_does_not_lose_it(home: Path) -> None:
    first = call(home, "up")
    run = call(home, "run", "walsender-limit")
    assert run.returncode == 0, run.stderr
    again = call(home, "up")
    assert "up already" in again.stderr
    assert again.stdout == run.stdout
    assert first.returncode == 0
    assert call(home, "down").returncode == 0
    assert not processes_of(home)
    assert not home.exists()


def test_wrong_words_are_explained(home: Path) -> None:
    run = call(home, "run", "no-such-cause")
    assert run.returncode == 2
    assert "no-such-cause" in run.stderr
    assert "idle-sessions" in run.stderr
    up = call(home, "up", "--pg-bin", "/nonexistent")
    assert up.returncode == 3
    assert "PGE301" in up.stderr
