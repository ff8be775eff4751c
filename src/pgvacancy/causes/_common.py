"""Judgements that several causes share, so that they agree with each other."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pgvacancy.model.diagnosis import SessionKey, Severity
from pgvacancy.model.evidence import RefusalCount
from pgvacancy.model.series import Case, Track, keys

MONITORS = re.compile(
    # Not inside another word: "otel" is in "hotel", "sensu" in "consensus".
    r"(?<![a-z])(?:pgwatch|pganalyze|pmm(?![a-z])|percona|zabbix|nagios|check_p|check_mk|checkmk|temboard"
    r"|newrelic|new relic|telegraf|pghero|pgcollector|pgcluu|powa|pg_activity|pgcenter|pgmetrics|pgbadger|munin|sensu"
    r"|netdata|grafana|otel|opentelemetry|instana|dynatrace|appdynamics|prometheus|icinga|collectd|metricbeat|coroot|okmeter|sematext"
    r"|signalfx|splunk|solarwinds|vividcortex|logicmonitor|centreon|prtg|datadog|ddagent|healthcheck|health[-_ ]check)"
    r"|(?<![a-z])[a-z0-9_-]*exporter(?![a-z])|monitor(?:ing)?(?![a-z])",
    re.IGNORECASE,
)
"""application_name or role of the watchers that are known to take slots."""


def is_monitor(track: Track) -> bool:
    """Whether the session belongs to a watcher, by application_name or role."""
    return bool(MONITORS.search(track.session.application_name) or MONITORS.search(track.session.user or ""))


def by_design(track: Track) -> bool:
    """Idle because it must be: it listens for notifications."""
    return track.session.query.lstrip().upper().startswith("LISTEN")


def severity_of(case: Case, share: float) -> Severity:
    """Critical when clients are refused and the finding holds a tenth of the ordinary slots, else a warning."""
    return "critical" if case.full and share >= 0.1 else "warning"


def sql_in(names: Iterable[str]) -> str:
    """Quoted identifiers, comma separated, safe to paste."""
    return ", ".join('"' + n.replace('"', '""') + '"' for n in names)


def sql_text(value: str) -> str:
    """A quoted SQL literal, safe to paste."""
    return "'" + value.replace("'", "''") + "'"


def pooler_ini(case: Case, database: str = "") -> str:
    """The lines of a PgBouncer configuration that make all clients share few sessions.

    Source: https://www.pgbouncer.org/config.html
    """
    slots = case.ledger.ordinary_slots if case.ledger is not None else 0
    size = max(2, min(20, slots // 4)) if slots else 20
    name = database if re.fullmatch(r"[a-z_][a-z0-9_]*", database) else "*"
    return (
        f"[databases]\n{name} = host=SERVER port=5432\n[pgbouncer]\nlisten_port = 6432\n"
        f"auth_type = scram-sha-256\nauth_file = /etc/pgbouncer/userlist.txt\n"
        f"pool_mode = transaction\ndefault_pool_size = {size}\nmax_client_conn = 1000"
    )


def logged_refusals(case: Case, *kinds: str) -> tuple[RefusalCount, ...]:
    """Refusals of these kinds that stand in the log, however old: look at ``last_at``."""
    log = case.snapshot.log
    return tuple(r for r in log.refusals if r.kind in kinds) if log is not None else ()


def gone_clients(case: Case) -> frozenset[SessionKey]:
    """Sessions whose client is proved to be gone, by the server's own kernel."""
    host = case.snapshot.host
    gone = {(p.address, p.port) for p in host.peers if p.gone} if host is not None else set()
    return keys(t for t in case.tracks if (t.session.client_addr or "", t.session.client_port or 0) in gone)
