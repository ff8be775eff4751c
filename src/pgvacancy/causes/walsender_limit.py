"""Replication clients have taken every place that max_wal_senders allows.

What it is
----------
Standbys, pg_basebackup, pg_receivewal, logical subscribers and change-data-capture tools connect as replication
clients. Each one is served by a *walsender*, and there are max_wal_senders of them. A further one is refused with
SQLSTATE 53300: `number of requested standby connections exceeds "max_wal_senders"`.

Why it takes slots
------------------
Walsenders have places of their own. They take none of max_connections, and a full max_connections does not keep
them out. The code is the same 53300, the limit is another one.

How we know
-----------
The rows of backend type `walsender` have reached max_wal_senders, or a replication log-in, ours or one in the
server's log, was refused with that text while we looked. Replication slots do not count: a slot without a
connection needs no walsender, and `all replication slots are in use` (53400) speaks of max_replication_slots.

What to do, least disruptive first
----------------------------------
1. Look who they are: `SELECT pid, usename, application_name, client_addr, state, reply_time FROM pg_stat_replication
   ORDER BY reply_time NULLS FIRST;`. A subscriber that nobody needs, or the old connection of one that came back,
   can be stopped at its own end. Drop a replication slot only when its consumer is gone for good.
2. Let tools share: one publication and one slot for many tables instead of one for each.
3. Raise max_wal_senders: a restart, standbys first (theirs must be at least the primary's).
Do not raise max_connections.

Often mistaken for
------------------
A full server (the text then speaks of clients, not of standby connections) · all replication slots in use ·
pg_basebackup, which takes two walsenders while it runs · a health check that opens a replication connection, the
doctor's own way in on a full server included.

Sources
-------
https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-MAX-WAL-SENDERS
https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-REPLICATION-VIEW
https://www.postgresql.org/docs/current/app-pgreceivewal.html
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pgvacancy.causes._common import logged_refusals
from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Culprit, Fact, Finding
from pgvacancy.model.evidence import LogEvidence, RefusalCount
from pgvacancy.model.series import Case
from pgvacancy.model.snapshot import Sample, Session

CODE = "PGC119"
ORDER = 10
NEEDS = ({"server", "sessions"}, {"refusal"}, {"log"})


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of walsender-limit."""

    min_used_ratio: float = setting(1.0, "below the limit nobody is refused; less warns before it is reached")


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find max_wal_senders reached."""
    srv = case.snapshot.server
    limit = srv.setting_int("max_wal_senders", -1) if srv is not None else -1
    at_peak = max((_walsenders(sample) for sample in case.samples), key=len, default=())
    met = [r for r in case.snapshot.refusals if r.kind == "walsender-limit"]
    logged = logged_refusals(case, "walsender-limit")
    lately = _lately(case, logged)
    reached = limit >= 0 and len(at_peak) >= max(1.0, settings.min_used_ratio * limit)
    if not (reached or met or lately):
        return None
    refused = bool(met) or lately or (reached and bool(logged))
    others_full = case.full and not met
    return Finding(
        code=CODE,
        cause="walsender-limit",
        severity="critical" if refused else "warning",
        confidence=_confidence(others_full=others_full, refused=refused, reached=reached),
        summary=(
            f"{len(at_peak)} of {limit} walsenders are in use: no further replication client gets in"
            if limit >= 0
            else "replication clients are refused by max_wal_senders"
        ),
        evidence=(
            *((Fact(fact="max_wal_senders", value=limit, source="pg_settings"),) if limit >= 0 else ()),
            Fact(fact="walsenders", value=len(at_peak)),
            *(Fact(fact="a replication log-in was refused", value=r.message, source=r.source) for r in met[:1]),
            *(
                (Fact(fact="replication log-ins refused", value=sum(r.count for r in logged), source="log"),)
                if logged
                else ()
            ),
        ),
        counter_evidence=tuple(_counter_evidence(case, limit, len(at_peak), refused=refused)),
        culprits=_culprits(case, at_peak),
        remedies=(
            Advice(
                slug="fix-application-code",
                difficulty="medium",
                disruption="none",
                command=(
                    "SELECT pid, usename, application_name, client_addr, state, reply_time FROM pg_stat_replication "
                    "ORDER BY reply_time NULLS FIRST;"
                ),
                why="stop subscribers nobody needs, at their own end; one slot for many tables instead of one for each",
            ),
            Advice(
                slug="raise-max-wal-senders",
                difficulty="medium",
                disruption="restart",
                command=f"ALTER SYSTEM SET max_wal_senders = {max(limit, 0) + max(5, limit // 2)};",
                why="needs a restart; on standbys first",
            ),
        ),
        weight=0.3 if others_full else 1.0,
        refusal_matches=refused and not others_full,
    )


def _walsenders(sample: Sample) -> tuple[Session, ...]:
    """Walsenders without the doctor's own, which leaves again."""
    return tuple(s for s in sample.sessions if s.backend_type == "walsender" and not s.is_own)


def _lately(case: Case, logged: tuple[RefusalCount, ...]) -> bool:
    """Whether others were refused while we looked; without a look at the server, in the log's last minute."""
    if not case.samples:
        log: LogEvidence | None = case.snapshot.log
        return log is not None and log.recent_by_kind.get("walsender-limit", 0) > 0
    began_at = case.samples[0].taken_at
    return any(r.last_at is not None and r.last_at >= began_at for r in logged)


def _confidence(*, others_full: bool, refused: bool, reached: bool) -> float:
    if others_full:
        return 0.6
    if refused:
        return 0.95 if reached else 0.85
    return 0.8


def _counter_evidence(case: Case, limit: int, used: int, *, refused: bool) -> list[Fact]:
    facts = []
    if case.ledger is not None:
        facts.append(Fact(fact="slots of max_connections free for ordinary roles", value=case.ledger.free_ordinary))
    if used < limit:
        facts.append(Fact(fact="places for walsenders free when we looked", value=limit - used))
    if not refused and case.snapshot.log is not None:
        facts.append(Fact(fact="replication log-ins refused, as far as the log reaches", value=0, source="log"))
    return facts


def _culprits(case: Case, sessions: tuple[Session, ...]) -> tuple[Culprit, ...]:
    counts = Counter((s.application_name, s.user or "", s.database or "", case.client_of(s)) for s in sessions)
    return tuple(
        Culprit(application_name=name, user=user, database=database, client=client, slots=count)
        for (name, user, database, client), count in counts.most_common(8)
    )


EXAMPLES = (
    Example(
        "two standbys and a backup",
        "quiet",
        lambda: snapshot(server(100), pool("walreceiver", 3, backend_type="walsender", state="active")),
    ),
    Example(
        "a full server whose walsenders have room",
        "quiet",
        lambda: snapshot(
            server(100),
            pool("web", 97, idle_s=(0, 2), used=True),
            pool("walreceiver", 9, backend_type="walsender", state="active"),
        ),
    ),
    Example(
        "ten subscribers of ten",
        "fires",
        lambda: snapshot(server(100), pool("subscription", 10, backend_type="walsender", state="active")),
    ),
    Example(
        "after max_wal_senders was raised",
        "cleared",
        lambda: snapshot(
            server(100, max_wal_senders="15"), pool("subscription", 11, backend_type="walsender", state="active")
        ),
    ),
)
