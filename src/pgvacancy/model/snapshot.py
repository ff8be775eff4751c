"""What was observed, and nothing else.

A :class:`Snapshot` is the only thing a cause reads. It is frozen and serialisable, so an incident can be
saved on one machine and diagnosed again on another. All instants are seconds since the epoch on the
*server's* clock (``_at``); all durations carry their unit in the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pgvacancy.model.evidence import HostEvidence, LogEvidence, PoolerEvidence

SCHEMA = "pgvacancy.snapshot/1"

Door = Literal["ordinary", "reserved", "superuser", "replication", "none"]
RefusalKind = Literal[
    "slots-full",
    "reserved-for-superuser",
    "reserved-for-role",
    "role-limit",
    "database-limit",
    "walsender-limit",
    "starting-up",
    "pooler-client-limit",
    "pooler-wait-timeout",
    "pooler-login-failing",
    "pooler-client-cap",
    "fork-failed",
    "other",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One row of ``pg_stat_activity``: a backend in a slot (or in another pool, see ``backend_type``).

    Fields are None where the server gave NULL, which also happens when our role may not see them.
    Source: https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW
    """

    pid: int
    backend_start_at: float | None = None
    backend_type: str | None = "client backend"
    user: str | None = None
    database: str | None = None
    application_name: str = ""
    client_addr: str | None = None
    """None for a Unix socket, and when hidden."""
    client_port: int | None = None
    """-1 for a Unix socket."""
    state: str | None = None
    state_change_at: float | None = None
    xact_start_at: float | None = None
    query_start_at: float | None = None
    """None while the session has never run a statement."""
    wait_event_type: str | None = None
    wait_event: str | None = None
    query: str = ""
    """First characters of the statement; literals are removed in a saved snapshot."""
    query_id: int | None = None
    has_xmin: bool = False
    blocked_by: tuple[int, ...] = ()
    """Pids this session waits for; 0 stands for a prepared transaction."""
    lock_wait_start_at: float | None = None
    """Since when it waits for a lock (PostgreSQL 14 and later)."""
    lock_mode: str | None = None
    """The lock mode it waits for."""
    is_own: bool = False
    """True for the observer's own session."""
    hidden: bool = False
    """True when privileges hide everything but the pid and the role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseCounters:
    """Cumulative counters of ``pg_stat_database``; None before PostgreSQL 14 where marked."""

    database: str
    backends: int = 0
    transactions: int = 0
    """xact_commit + xact_rollback."""
    sessions: int | None = None
    """Sessions established since the statistics were reset (14+)."""
    sessions_abandoned: int | None = None
    sessions_fatal: int | None = None
    sessions_killed: int | None = None
    session_time_ms: float | None = None
    active_time_ms: float | None = None
    idle_in_transaction_time_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """All sessions at one instant, from one statement."""

    taken_at: float
    sessions: tuple[Session, ...] = ()
    """Every backend with a row: client backends, walsenders, workers."""
    unseen_logins: tuple[int, ...] = ()
    """Pids of log-ins that hold a slot but have no row yet (up to PostgreSQL 17)."""
    counters: tuple[DatabaseCounters, ...] = ()
    prepared_transactions: int = 0
    source: Literal["sql", "host"] = "sql"
    """``host`` when rebuilt from process titles because no session could be had."""
    cost_ms: float | None = None
    """Time the statements took, as seen by the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A login role: the attributes that decide which slots it may take."""

    name: str
    superuser: bool = False
    replication: bool = False
    uses_reserved: bool = False
    """Has the privileges of ``pg_use_reserved_connections`` (16+)."""
    connection_limit: int = -1
    """-1: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A database and its ``CONNECTION LIMIT``; -1 is none, -2 marks an invalid database, not a limit."""

    name: str
    connection_limit: int = -1
    allows_connections: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What does not change while we look."""

    version_num: int
    version: str = ""
    in_recovery: bool = False
    postmaster_start_at: float | None = None
    system_identifier: str | None = None
    managed_by: str | None = None
    """``patroni``, ``rds``, ``cloud-sql``, ``azure``, ... or None when nothing says so."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """As ``current_setting`` gives them; absent when this major has no such setting."""
    setting_sources: Mapping[str, str] = field(default_factory=dict)
    roles: tuple[Role, ...] = ()
    databases: tuple[Database, ...] = ()
    replay_pause_state: str | None = None
    """On a standby: ``not paused``, ``pause requested`` or ``paused``."""
    primary_settings: Mapping[str, str] = field(default_factory=dict)
    """On a standby: the primary's limits as recorded in the control file, when readable."""

    def setting_int(self, name: str, default: int = 0) -> int:
        """The integer value of a setting, or ``default`` when absent."""
        value = self.settings.get(name, "")
        return int(value) if value.lstrip("-").isdigit() else default

    def role(self, name: str | None) -> Role | None:
        """The role of that name, when it is known."""
        return next((r for r in self.roles if r.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One refused connection attempt, as its non-localised fields tell it."""

    sqlstate: str | None
    kind: RefusalKind
    message: str
    user: str | None = None
    database: str | None = None
    source: Literal["login", "probe", "log", "pooler"] = "probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One door that was tried."""

    door: Door
    outcome: str
    elapsed_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How we got in, and how much we may see."""

    door: Door
    role: str | None = None
    sees_all_sessions: bool = False
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Something that could not be observed."""

    probe: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything one run observed: a short series of samples and whatever evidence was at hand."""

    taken_at: float
    observed_s: float
    access: Access
    target: str = ""
    """Where we looked, without secrets."""
    server: Server | None = None
    samples: tuple[Sample, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    log: LogEvidence | None = None
    host: HostEvidence | None = None
    poolers: tuple[PoolerEvidence, ...] = ()
    gaps: tuple[Gap, ...] = ()
    interrupted: str | None = None
    """Why observation ended early, when it did."""
    schema: str = SCHEMA
