"""The wire probe against a real PgBouncer in front of a real server."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgvacancy.lab.binaries import account
from pgvacancy.lab.cluster import Cluster, free_port
from pgvacancy.observe.postgres.conninfo import read_target
from pgvacancy.observe.postgres.probe import ProbeResult, probe

DEADLINE_S = 10.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition did not come about"
        time.sleep(0.02)


def kind(result: ProbeResult) -> str:
    assert result.outcome == "refused", result
    assert result.refusal is not None
    return result.refusal.kind


@pytest.fixture
def pooled(pg_bin: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        reason = "no pgbouncer (apt-get install pgbouncer)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with Cluster({"max_connections": "8"}, pg_bin=pg_bin) as made:
        made.sql("CREATE ROLE plain LOGIN")
        made.sql("CREATE DATABASE small CONNECTION LIMIT 0")
        home = made.directory / "pooler"
        home.mkdir(mode=0o755)
        account().own(home)
        port = free_port()
        (home / "users.txt").write_text('"plain" ""\n"postgres" ""\n')
        (home / "pgbouncer.ini").write_text(
            "[databases]\n"
            f"shop = host=127.0.0.1 port={made.port} dbname=postgres\n"
            f"dead = host=127.0.0.1 port={free_port()}\n"
            f"full = host=127.0.0.1 port={made.port} dbname=small\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {home}\n"
            f"auth_type = trust\nauth_file = {home}/users.txt\nadmin_users = postgres\n"
            "max_client_conn = 3\nquery_wait_timeout = 1\n"
        )
        with subprocess.Popen(
            [program, home / "pgbouncer.ini"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **account().popen_options(),  # type: ignore[call-overload]
        ) as process:
            try:
                until(lambda: probe(read_target(f"host=127.0.0.1 port={port} user=u")).outcome != "unreachable")
                yield home, port
            finally:
                process.kill()


def test_pgbouncer(pooled: tuple[Path, int]) -> None:
    home, port = pooled

    def through(database: str, user: str = "plain", host: str = "127.0.0.1", **options: Any) -> ProbeResult:
        return probe(read_target(f"host={host} port={port} user={user} dbname={database}"), **options)

    console = through("pgbouncer", "postgres")
    assert (console.outcome, console.looks_like_pooler) == ("free", True)
    assert "console" in console.detail
    # Its keys are random: one in a thousand looks like a process id, four in a row do not.
    entered = [through("shop", host=host) for host in ("127.0.0.1", str(home)) * 2]
    assert all(r.admitted for r in entered)
    assert any(r.looks_like_pooler for r in entered)

    unknown = through("nowhere")
    assert (kind(unknown), unknown.looks_like_pooler) == ("other", True)
    assert kind(through("dead")) in {"pooler-wait-timeout", "pooler-login-failing"}
    assert kind(through("full")) in {"database-limit", "pooler-wait-timeout", "pooler-login-failing"}
    silent = through("dead", timeout_s=0.3)
    assert silent.outcome == "unreachable" or kind(silent) == "pooler-login-failing"

    with contextlib.ExitStack() as stack:
        # Clients that have just left may still be counted.
        for _ in range(3):
            with contextlib.suppress(psycopg.OperationalError):
                stack.enter_context(psycopg.connect(f"host=127.0.0.1 port={port} user=plain dbname=shop"))
        until(lambda: through("shop").outcome == "refused")
        refused = through("shop")
        assert (kind(refused), refused.looks_like_pooler) == ("pooler-client-limit", True)
        assert refused.refusal is not None
        assert refused.refusal.sqlstate == "08P01"
