"""``pgvacancy probe`` as a process: what it prints, its JSON and its exit status."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgvacancy.lab.cluster import Cluster, free_port


@pytest.fixture(scope="module")
def cluster(pg_bin: Path | None) -> Iterator[Cluster]:
    with Cluster({"max_connections": "8", "superuser_reserved_connections": "2"}, pg_bin=pg_bin) as made:
        made.sql("CREATE ROLE plain LOGIN", "CREATE ROLE lim LOGIN PASSWORD 'geheim' CONNECTION LIMIT 0")
        yield made


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PG") or k.startswith("PGVACANCY")}
    return subprocess.run(
        [sys.executable, "-m", "pgvacancy.cli.main", "probe", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**clean, **environment},
    )


def test_free(cluster: Cluster) -> None:
    done = run(cluster.dsn("plain"))
    assert (done.returncode, done.stderr) == (0, "")
    verdict, means, following = done.stdout.splitlines()
    assert verdict.startswith("free: a client got in")
    assert means.startswith("  means: ")
    assert following.startswith("  next:  pgvacancy doctor ")


def test_json_of_a_free_slot_by_environment_alone(cluster: Cluster) -> None:
    done = run("--format", "json", PGHOST="127.0.0.1", PGPORT=str(cluster.port), PGUSER="plain", PGDATABASE="postgres")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["schema"] == "pgvacancy.probe/1"
    assert (result["outcome"], result["admitted"], result["refusal"], result["tls"]) == ("free", True, None, False)
    assert result["server"] == {"address": f"127.0.0.1:{cluster.port}", "looks_like_pooler": False}
    assert result["elapsed_ms"] > 0


def test_refused(cluster: Cluster) -> None:
    dsn = cluster.dsn("lim", password="geheim")
    done = run(dsn)
    assert done.returncode == 1
    assert done.stdout.startswith('refused by role-limit [53300]: too many connections for role "lim"')
    assert "geheim" not in done.stdout + done.stderr
    result = json.loads(run(dsn, "--format=json").stdout)
    assert result["refusal"] == {
        "sqlstate": "53300",
        "kind": "role-limit",
        "message": 'too many connections for role "lim"',
    }


def test_full_server(cluster: Cluster) -> None:
    held: list[psycopg.Connection[Any]] = []
    end = time.monotonic() + 10
    try:
        while len(held) < 8:
            # The process of a session that has just left still holds its slot.
            with contextlib.suppress(psycopg.OperationalError):
                held.append(psycopg.connect(cluster.dsn("postgres")))
            assert time.monotonic() < end, "the server could not be filled"
        done = run(cluster.url("plain"))
        repeated = run(cluster.url("plain"), "--count", "2", "--interval", "0.1", "--format", "json")
    finally:
        for connection in held:
            connection.close()
        while run(cluster.dsn("plain")).returncode != 0:
            assert time.monotonic() < end + 10, "the slots did not become free"
    assert done.returncode == 1
    assert "slots-full" in done.stdout
    assert "not even a superuser gets in" in done.stdout
    assert repeated.returncode == 1
    assert [json.loads(line)["refusal"]["kind"] for line in repeated.stdout.splitlines()] == ["slots-full"] * 2


def test_several_probes_end_with_a_sum(cluster: Cluster) -> None:
    done = run(cluster.dsn("plain"), "--count", "3", "--interval", "0.1")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "3 probes: 3 free"


def test_unreachable() -> None:
    done = run(f"host=127.0.0.1 port={free_port()} user=u")
    assert done.returncode == 3
    assert "connection refused" in done.stdout
    assert "Traceback" not in done.stderr


def test_silence_is_bounded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = run(f"host=127.0.0.1 port={listener.getsockname()[1]} user=u", "--timeout", "0.3", "--format", "json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["outcome"] == "unreachable"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("port=99999999",),
        ("--count", "0"),
        ("--timeout", "x"),
        ("host=a,b port=1,2,3",),
        ("service=none",),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_wrong_usage_in_json_hides_the_password() -> None:
    done = run("postgresql://app:geheim/x@db1/shop", "--format", "json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "PGE102"
    assert "geheim" not in done.stdout + done.stderr


def test_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys; import pgvacancy.cli.probe, pgvacancy.observe.postgres.probe; "
        "print([m for m in ('psycopg', 'rich', 'pydantic', 'asyncio', 'hypothesis') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
