"""Reading a PgBouncer in front of the server through its console. Nothing here changes it."""

from __future__ import annotations

from pgvacancy.observe.pgbouncer.detect import detect, has_console, is_pgbouncer
from pgvacancy.observe.pgbouncer.reader import PoolerReader, read_pooler

__all__ = ["PoolerReader", "detect", "has_console", "is_pgbouncer", "read_pooler"]
