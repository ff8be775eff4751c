"""What a pooler's console, processes and refusals tell, and a pooler for the worked examples."""

from __future__ import annotations

import re

from pgvacancy.model.diagnosis import Culprit, Fact
from pgvacancy.model.evidence import PoolerEvidence, PoolReading
from pgvacancy.model.series import Case, Track

POOLERS = re.compile(
    r"\b(pgbouncer(?![-_]exporter)|pgcat|odyssey|pgpool|supavisor|pg_doorman|pgdog|pgagroal)", re.IGNORECASE
)
"""Names of poolers, as processes or as application_name."""
POOLER_KINDS = frozenset({"pooler-client-limit", "pooler-wait-timeout", "pooler-client-cap", "pooler-login-failing"})


def pooler_refusals(case: Case) -> list[str]:
    """Kinds of a pooler's refusals, those we met first, then the most frequent of the log's last minute."""
    met = [r.kind for r in case.snapshot.refusals if r.kind in POOLER_KINDS]
    log = case.snapshot.log
    counts = {k: n for k, n in log.recent_by_kind.items() if k in POOLER_KINDS and n} if log is not None else {}
    return list(dict.fromkeys([*met, *sorted(counts, key=lambda k: -counts[k])]))


def servers_of(p: PoolReading) -> int:
    """Server connections of a pool, log-ins under way included."""
    return p.servers_active + p.servers_idle + p.servers_used + p.servers_login


def is_short(p: PoolReading) -> bool:
    """Clients wait although the pool has not reached its size."""
    return bool(p.pool_size) and p.servers_active + p.servers_idle + p.servers_used < (p.pool_size or 0)


def config_int(pooler: PoolerEvidence, name: str) -> int:
    """A number of the configuration, 0 when it is not known."""
    value = pooler.config.get(name, "")
    return int(value) if value.isdigit() else 0


def pool_culprits(pooler: PoolerEvidence) -> tuple[Culprit, ...]:
    """The pools, longest queue first."""
    ordered = sorted(pooler.pools, key=lambda p: -p.clients_waiting)
    return tuple(
        Culprit(
            application_name="pgbouncer", user=p.user, database=p.database, client=pooler.target, slots=servers_of(p)
        )
        for p in ordered[:8]
        if servers_of(p)
    )


def longest_s(tracks: list[Track]) -> float:
    """The longest statement running among these sessions, in seconds."""
    return round(max((t.running_s for t in tracks), default=0.0), 2)


def behind_pooler(case: Case, poolers: list[PoolerEvidence]) -> list[Track]:
    """The sessions that the poolers' consoles say are theirs."""
    pids = {pid for p in poolers for pid in p.server_pids}
    return [t for t in case.tracks if t.session.pid in pids]


def many(count: int, what: str) -> str:
    """A number with its noun."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def wanted_size(case: Case, queue: PoolReading, size: int) -> tuple[int, str]:
    """A pool size under which nobody would wait just now, within what the server has left, and the reasoning.

    Servers at work are counted rather than clients: PgBouncer calls idle clients active too.
    """
    needed = max(size + 1, queue.servers_active + queue.clients_waiting)
    why = f"{queue.servers_active} server connections at work + {queue.clients_waiting} clients waiting"
    where = "on the console, then in pgbouncer.ini"
    if case.ledger is None:
        return needed, f"{why}; {where}; what the server has free is not known from here: look there first"
    room = case.ledger.free_ordinary
    if not room:
        return size, f"{why}, but the server has no slot free for ordinary roles: make room there first"
    # A tenth of the slots stays free, so that the remedy does not fill the server itself.
    wanted = min(needed, size + max(1, room - case.ledger.ordinary_slots // 10))
    cut = "" if wanted == needed else "cut to what fits: "
    return wanted, f"{why}; {cut}the server has {room} slots free for ordinary roles; {where}"


def free_slots(case: Case) -> tuple[Fact, ...]:
    """The room on the server, as counter-evidence."""
    if case.ledger is None:
        return ()
    return (Fact(fact="slots of the server free for ordinary roles", value=case.ledger.free_ordinary),)


def example_pooler(waiting: int, *, size: int = 20, clients: int = 50) -> PoolerEvidence:
    """A pooler with one pool, eight readings."""
    reading = PoolReading(
        database="app",
        user="app",
        mode="transaction",
        clients_active=size,
        clients_waiting=waiting,
        servers_active=size if waiting else 1,
        servers_idle=0 if waiting else size - 1,
        max_wait_s=1.5 if waiting else 0.0,
        pool_size=size,
    )
    return PoolerEvidence(
        target="10.0.0.5:6432",
        config={"max_client_conn": "100", "default_pool_size": str(size)},
        pools=(reading,),
        waiting_samples=(waiting,) * 8,
        clients=clients,
    )
