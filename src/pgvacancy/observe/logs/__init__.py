"""The server's log, the only place where refusals are counted.

PostgreSQL keeps no counter of refused connections: the FATAL line in the log is all there is. This package reads the
tail of csvlog, jsonlog and stderr logs, and of PgBouncer's own log, in bounded memory.
Source: https://www.postgresql.org/docs/current/runtime-config-logging.html
"""

from __future__ import annotations

from pgvacancy.observe.logs.read import DEFAULT_MAX_BYTES, read_log, read_tail

__all__ = ["DEFAULT_MAX_BYTES", "read_log", "read_tail"]
