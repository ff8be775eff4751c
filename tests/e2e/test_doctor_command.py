"""The doctor as a process: the JSON of the contract, exit status, saving and replaying, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgvacancy.lab.cluster import Cluster
from pgvacancy.lab.faults import idle_sessions
from pgvacancy.lab.lab import Lab

SET = ("--set", "idle-sessions.min_idle_s=1")


@pytest.fixture(scope="module")
def cluster(pg_bin: Path | None) -> Iterator[Cluster]:
    with Cluster({"max_connections": "20"}, pg_bin=pg_bin) as started:
        yield started


@pytest.fixture(scope="module")
def sick(cluster: Cluster) -> Iterator[Lab]:
    lab = Lab(cluster)
    lab.furnish()
    idle_sessions.fault(lab)
    yield lab
    lab.stop_clients()


def pgvacancy(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgvacancy", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_json_is_what_the_contract_says(sick: Lab) -> None:
    done = pgvacancy("doctor", sick.cluster.url(), "--observe", "1", "--format", "json", *SET)
    assert done.returncode == 1, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["schema"] == "pgvacancy.diagnosis/1"
    assert report["taken_at"].endswith("Z")
    assert report["observed_s"] >= 1
    assert report["server"]["version_num"] >= 130000
    assert report["server"]["in_recovery"] is False
    assert report["access"] == report["access"] | {"door": "superuser", "role": "postgres", "sees_all_sessions": True}
    assert report["refusal"]["sqlstate"] == "53300"
    assert report["refusal"]["kind"] == "reserved-for-superuser"
    ledger = report["ledger"]
    assert (ledger["max_connections"], ledger["superuser_reserved"], ledger["used"]) == (20, 3, 18)
    assert ledger["free"] == {"ordinary": 0, "reserved": 0, "superuser": 2}
    assert report["severity"] == "critical"
    first = report["findings"][0]
    assert (first["code"], first["cause"], first["slots"]) == ("PGC104", "idle-sessions", 17)
    assert set(first["evidence"][0]) == {"fact", "value", "source"}
    assert set(first["culprits"][0]) == {"application_name", "user", "database", "client", "slots"}
    assert {"slug", "difficulty", "disruption", "frees"} <= set(first["remedies"][0])
    claimed = sum(f["slots"] for f in report["findings"])
    assert claimed + report["unexplained_slots"] + 1 == ledger["used"], "all slots are accounted for"
    assert isinstance(report["not_checked"], list)


def test_text_names_the_cause_on_the_first_lines(sick: Lab) -> None:
    done = pgvacancy("doctor", sick.cluster.dsn(), "--observe", "1", *SET, NO_COLOR="1", COLUMNS="120")
    assert done.returncode == 1
    assert "\x1b[" not in done.stdout
    assert "CRITICAL  idle-sessions" in "\n".join(done.stdout.splitlines()[:4])
    assert "pg_terminate_backend" in done.stdout
    assert not done.stderr


def test_exit_status_follows_fail_on(sick: Lab) -> None:
    assert pgvacancy("doctor", sick.cluster.dsn(), "--observe", "0", "--fail-on", "never", *SET).returncode == 0
    assert pgvacancy("doctor", sick.cluster.dsn(), "--fail-on", "sometimes").returncode == 2
    assert pgvacancy("doctor", "host=127.0.0.1 port=1 user=x").returncode == 3


def test_an_incident_replays_elsewhere(sick: Lab, tmp_path: Path) -> None:
    path = tmp_path / "incident.json"
    live = pgvacancy("doctor", sick.cluster.dsn(), "--observe", "1", "--format", "json", "--save", str(path), *SET)
    again = pgvacancy("doctor", "--snapshot", str(path), "--format", "json", *SET)
    assert again.returncode == live.returncode == 1, again.stderr
    assert json.loads(again.stdout) == json.loads(live.stdout)


def test_environment_names_the_server_as_for_psql(sick: Lab) -> None:
    done = pgvacancy(
        "doctor",
        "--observe",
        "0",
        "--format",
        "json",
        PGHOST="127.0.0.1",
        PGPORT=str(sick.cluster.port),
        PGUSER="postgres",
        PGDATABASE="app",
    )
    assert json.loads(done.stdout)["access"]["role"] == "postgres"


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_is_quiet_and_leaves_no_session(sick: Lab) -> None:
    before = sick.used_slots
    with subprocess.Popen(
        [sys.executable, "-m", "pgvacancy", "doctor", sick.cluster.dsn(), "--observe", "15"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell without job control starts what runs in the background with SIGINT ignored; a person's does not.
        preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - one call of signal(), safe between fork and exec
    ) as process:
        sick.wait("the doctor to be in", lambda: sick.used_slots > before)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    sick.wait("the doctor to have left", lambda: sick.used_slots == before)


def test_a_password_never_shows(sick: Lab) -> None:
    for output in ("text", "json"):
        done = pgvacancy(
            "doctor", f"{sick.cluster.dsn('no_such_role')} password=geheim4711", "--format", output, "--observe", "0"
        )
        assert done.returncode == 3
        assert "geheim" not in done.stdout + done.stderr
