"""Evidence from beside the server: its log, its host, and the poolers in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalCount:
    """How often one kind of refusal stands in the log."""

    kind: str
    message: str
    count: int
    last_at: float | None = None
    user: str | None = None
    database: str | None = None
    client: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvidence:
    """What the tail of the server log tells. Rates refer to ``span_s``."""

    files: tuple[str, ...] = ()
    format: str = ""
    """``csvlog``, ``jsonlog`` or ``stderr``."""
    first_at: float | None = None
    last_at: float | None = None
    lines: int = 0
    bytes_read: int = 0
    refusals: tuple[RefusalCount, ...] = ()
    recent_refusals: int = 0
    """Refusals (53300) in the last ``recent_s`` seconds before the end of the log."""
    recent_s: float = 0.0
    received: int = 0
    """``connection received`` lines within ``recent_s`` (needs log_connections)."""
    authorized: int = 0
    authentication_failures: int = 0
    """Within ``recent_s``: wrong passwords, missing hba rules, timeouts, incomplete start-up packets."""
    short_sessions: int = 0
    """Within ``recent_s``: ``disconnection`` lines with a session time below one second."""
    disconnections: int = 0
    standby_limit_lines: tuple[str, ...] = ()
    """Lines that say recovery stopped for insufficient parameter settings."""
    server_starts: int = 0
    undecodable_lines: int = 0
    recent_by_kind: Mapping[str, int] = field(default_factory=dict)
    """Refusals of every kind within ``recent_s``, those of a pooler and start-up refusals included."""
    peak_refusals: int = 0
    """Most refusals (53300) in any ``peak_window_s`` seconds of what was read."""
    peak_window_s: float = 0.0
    peak_at: float | None = None
    dead_end_refusals: int = 0
    """Refusals answered by a dead-end child: the cap on child processes, not on slots (csvlog and jsonlog tell)."""
    received_by_client: Mapping[str, int] = field(default_factory=dict)
    """``connection received`` lines within ``recent_s`` by address, most first, at most 50."""
    authenticated: int = 0
    """``connection authenticated`` lines (14+) within ``recent_s``."""
    ready: int = 0
    """``connection ready`` lines (18, setup_durations) within ``recent_s``."""
    login_failures: Mapping[str, int] = field(default_factory=dict)
    """Reasons of ``authentication_failures``: ``wrong-password``, ``no-hba-rule``, ``timeout``, ..."""
    login_failures_by_client: Mapping[str, int] = field(default_factory=dict)
    connections_logged: bool = False
    """Whether any connection line stands in what was read: without it 0 received means "not logged"."""
    disconnections_logged: bool = False
    last_start_at: float | None = None
    pooler_closings: Mapping[str, int] = field(default_factory=dict)
    """Reasons of a pooler's ``closing because:`` lines within ``recent_s``, most first, at most 50."""
    skipped_bytes: int = 0
    """Bytes before the tail that were left unread because of the byte limit."""
    unparsed_lines: int = 0
    """Lines that looked relevant and could not be read."""
    not_told: tuple[str, ...] = ()
    """What this log cannot tell, and why: no SQLSTATE in the prefix, an unknown time zone, ..."""

    @property
    def span_s(self) -> float:
        """Seconds between the first and the last line read."""
        if self.first_at is None or self.last_at is None:
            return 0.0
        return max(0.0, self.last_at - self.first_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientProcess:
    """The client end of a loopback connection: which process on this machine holds it."""

    address: str
    port: int
    pid: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerState:
    """What the server's kernel knows of one client connection."""

    address: str
    port: int
    tcp_state: str
    """``ESTABLISHED``, ``CLOSE_WAIT``, ..."""
    gone: bool = False
    """True only when proved: no route, no neighbour, or no such socket on a local address."""
    why: str = ""
    unacknowledged_bytes: int = 0
    retransmits: int = 0
    """Consecutive retransmissions that the peer has not answered."""
    unanswered_probes: int = 0
    """Consecutive keepalive probes that the peer has not answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendProcess:
    """A child of the postmaster, as its process title shows it."""

    pid: int
    start_at: float
    kind: str
    """``client backend``, ``walsender``, ``authenticating``, ``auxiliary``, or ``connecting``: forked, but the
    client has not said who it is, so it holds no slot yet."""
    user: str | None = None
    database: str | None = None
    client_addr: str | None = None
    client_port: int | None = None
    activity: str = ""
    wakeups: int = 0
    """Voluntary context switches so far: unchanged between readings means unused."""
    used: bool | None = None
    """Whether it woke while we looked; None when it was there at one reading only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEvidence:
    """What the server's own machine shows. Only present when we run there."""

    postmaster_pid: int | None = None
    data_directory: str | None = None
    cores: int = 0
    memory_bytes: int = 0
    backends: tuple[BackendProcess, ...] = ()
    clients: tuple[ClientProcess, ...] = ()
    peers: tuple[PeerState, ...] = ()
    listen_queue: int = 0
    listen_backlog: int = 0
    time_wait: int = 0
    """Sockets of this port in TIME_WAIT."""
    forks_per_s: float | None = None
    """Processes created on the machine per second while we looked."""
    cpu_pressure_ratio: float | None = None
    """Share of time in which some task waited for a CPU (PSI ``some avg10``), 0 to 1."""
    control: Mapping[str, str] = field(default_factory=dict)
    """Selected lines of ``pg_controldata``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReading:
    """One row of SHOW POOLS."""

    database: str
    user: str
    mode: str = ""
    clients_active: int = 0
    clients_waiting: int = 0
    servers_active: int = 0
    servers_idle: int = 0
    servers_used: int = 0
    servers_login: int = 0
    max_wait_s: float = 0.0
    pool_size: int | None = None
    """The size in force, when SHOW DATABASES tells it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolerEvidence:
    """What a PgBouncer in front of the server shows about itself."""

    target: str
    version: str = ""
    reachable: bool = True
    problem: str = ""
    """Why it could not be read, in one line, when it could not."""
    config: Mapping[str, str] = field(default_factory=dict)
    pools: tuple[PoolReading, ...] = ()
    """Last reading."""
    waiting_samples: tuple[int, ...] = ()
    """Clients waiting over all pools at each reading: persistent waiting is what counts."""
    clients: int = 0
    """Client sockets in use (SHOW LISTS ``used_clients``), unfinished log-ins and our console session included."""
    login_clients: int = 0
    """Those of ``clients`` whose log-in is not finished."""
    idle_clients: int | None = None
    """Clients that hold a socket but neither a server connection nor a place in the queue."""
    server_addresses: tuple[str, ...] = ()
    """``host:port`` of the servers it connects to."""
    server_pids: tuple[int, ...] = ()
    """Backend pids it holds on the server."""
    wait_s_per_s: float | None = None
    """Growth of total_wait_time: mean number of waiting clients."""
    busy_servers: float | None = None
    """Growth of total_xact_time: mean number of busy server connections."""
    refusal: str = ""
    """The pooler's own refusal text, when an ordinary client got one."""
