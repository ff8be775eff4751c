"""Private servers for the live tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgvacancy.lab.cluster import Cluster
from pgvacancy.lab.lab import Lab


@pytest.fixture(scope="module")
def cluster(pg_bin: Path | None) -> Iterator[Cluster]:
    """A started server with 20 slots; one for each test file."""
    with Cluster({"max_connections": "20"}, pg_bin=pg_bin) as started:
        yield started


@pytest.fixture(scope="module")
def _furnished(cluster: Cluster) -> Lab:
    lab = Lab(cluster)
    lab.furnish()
    return lab


@pytest.fixture
def lab(_furnished: Lab) -> Iterator[Lab]:
    """Roles, a database, and clients that end with the test."""
    yield _furnished
    _furnished.stop_clients()
