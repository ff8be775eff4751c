"""PgBouncer's own limits, or its pools against the server's limits, are the bottleneck.

What it is
----------
A pooler in front of the server does not fit it. Either too little comes through: the pool is so small that clients
queue while the server has room, or max_client_conn turns clients away at the door. Or too much: PgBouncer keeps a
pool for every pair of database and user, in every process, and together they exceed what the server allows.

Why it takes slots
------------------
Each server connection of a pool is a session with a slot, busy or not. Two users, one database, default_pool_size
20 and three PgBouncer processes make 120 slots, where somebody planned 20. In the other direction no slot is missing on
the server at all, and still clients are refused, by PgBouncer: `no more connections allowed (max_client_conn)` and
`query_wait_timeout` carry SQLSTATE 08P01, not 53300.

How we know
-----------
From the console (`--pgbouncer DSN`), over all readings rather than one: clients that wait all the time although the
server has free slots, its sessions wait for no lock and statements are short (pool too small, session mode, clients
idle in transaction that hold on to their server); client sockets at max_client_conn; pools that wait with fewer
servers than their size, because the server refused one (after a refused login PgBouncer waits server_login_retry,
15 s, before it tries again). Without a console: the sessions that fill the server belong to processes of a pooler.
Where other clients hold the slots, or locks or slow statements hold the pool's sessions, those are the cause.

What to do, least disruptive first
----------------------------------
1. On the console: `SHOW POOLS;` (cl_waiting, maxwait) and `SHOW CONFIG;`.
2. Pool too small: `SET default_pool_size = n;` grows at once. Too large: the same with a smaller n, then `RECONNECT;`
   (SET alone does not shrink a busy pool). Write it to pgbouncer.ini as well: the next RELOAD overrides SET.
3. Clients turned away: `SET max_client_conn = n;`, within the file descriptors the process may open.
4. Cap the sum: max_db_connections and max_user_connections for each process, so that all pools of all processes
   together, reserve pools included, stay below the server's ordinary slots.
5. Session mode: change to transaction mode where the application allows it.

Often mistaken for
------------------
Slow statements or locks behind the pooler: clients wait too, but the server is busy · a full server: 53300 through
PgBouncer is PostgreSQL's own · pools inside the application (the clients are application processes) · Pgpool-II.

Sources
-------
https://www.pgbouncer.org/config.html
https://www.pgbouncer.org/usage.html#show-commands
https://www.pgbouncer.org/faq.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pgvacancy.causes._common import severity_of
from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.causes._poolers import (
    POOLERS,
    behind_pooler,
    config_int,
    example_pooler,
    free_slots,
    is_short,
    longest_s,
    many,
    pool_culprits,
    pooler_refusals,
    servers_of,
    wanted_size,
)
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.evidence import PoolerEvidence, PoolReading
from pgvacancy.model.series import Case, Track, culprits, group, keys

CODE = "PGC118"
ORDER = 80
NEEDS = ({"sessions"}, {"pooler"}, {"refusal"}, {"log"})


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of pooler-misfit."""

    min_waiting_ratio: float = setting(0.75, "a queue now and then is a pool that is used well; this is one that stays")
    min_share_ratio: float = setting(0.7, "with less than this share of the sessions somebody else filled the server")
    min_clients_ratio: float = setting(1.0, "clients are turned away at the cap itself; less warns before")
    min_running_s: float = setting(5.0, "statements that run longer than this are slow: no pool size helps them")


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find a pooler that does not fit."""
    candidates = [
        *(_at_client_cap(case, p, settings) for p in case.snapshot.poolers if p.reachable),
        *(_queueing(case, p, settings) for p in case.snapshot.poolers if p.reachable),
        _overrun(case, settings),
        _refusing(case),
    ]
    found = [f for f in candidates if f is not None]
    return max(found, key=lambda f: (f.confidence, f.slots), default=None)


def _at_client_cap(case: Case, pooler: PoolerEvidence, settings: Settings) -> Finding | None:
    """(a) Every client socket that max_client_conn allows is in use."""
    cap = config_int(pooler, "max_client_conn")
    if not cap or pooler.clients < settings.min_clients_ratio * cap:
        return None
    waiting = max(pooler.waiting_samples, default=0)
    return Finding(
        code=CODE,
        cause="pooler-misfit",
        severity="critical",
        confidence=0.9,
        summary=f"PgBouncer {pooler.target} has {pooler.clients} of {cap} client connections: it turns more away",
        evidence=(
            Fact(fact="client sockets in use", value=pooler.clients, source="SHOW LISTS"),
            Fact(fact="max_client_conn", value=cap, source="SHOW CONFIG"),
            Fact(fact="log-ins not finished", value=pooler.login_clients, source="SHOW LISTS"),
        ),
        counter_evidence=(
            *free_slots(case),
            Fact(fact="clients waiting for a server", value=waiting, source="SHOW POOLS"),
        ),
        claims=keys(behind_pooler(case, [pooler])),
        culprits=pool_culprits(pooler),
        remedies=(
            Advice(
                slug="raise-pooler-clients",
                difficulty="easy",
                disruption="reload",
                command=f"SET max_client_conn = {2 * cap};",
                why="on the console and in pgbouncer.ini; one file descriptor for each client",
            ),
        ),
        weight=0.3 if case.full else 1.0,
        refusal_matches=not case.full,
    )


def _queueing(case: Case, pooler: PoolerEvidence, settings: Settings) -> Finding | None:
    """(b) (d) (f) (g) Clients wait all the time."""
    samples = pooler.waiting_samples
    persistent = sum(1 for n in samples if n) / len(samples) if samples else 0.0
    if persistent < settings.min_waiting_ratio or not samples or not samples[-1]:
        return None
    queue = max((p for p in pooler.pools if p.clients_waiting), key=lambda p: p.clients_waiting, default=None)
    if queue is None:
        return None
    behind = behind_pooler(case, [pooler])
    short = is_short(queue)
    if short and case.full:
        return None if not _holds_most(case, behind, settings) else _overrun_by(case, behind, [pooler], 0.9)
    kind = _kind(queue, behind, settings, short=short)
    if kind == "busy behind":
        return None
    single = len(samples) < 3
    refused = bool(pooler.refusal) or bool(pooler_refusals(case))
    gives_up_s = config_int(pooler, "query_wait_timeout")
    pressure = case.snapshot.host.cpu_pressure_ratio if case.snapshot.host is not None else None
    near = bool(gives_up_s) and queue.max_wait_s >= gives_up_s / 2
    size = queue.pool_size or servers_of(queue)
    return Finding(
        code=CODE,
        cause="pooler-misfit",
        severity="critical" if refused or near or queue.max_wait_s >= 1 else "warning",
        confidence=(0.6 if single else 0.9) - (0.2 if case.full else 0.0),
        summary=(
            f"{many(queue.clients_waiting, 'client')} of PgBouncer {pooler.target} waiting for "
            f"{many(size, 'server connection')} ({queue.user}@{queue.database}): {kind}"
        ),
        evidence=(
            Fact(fact="clients waiting at each reading", value=", ".join(map(str, samples[-12:])), source="SHOW POOLS"),
            Fact(fact="longest wait in seconds", value=round(queue.max_wait_s, 2), source="SHOW POOLS"),
            Fact(fact="server connections of this pool", value=servers_of(queue), source="SHOW POOLS"),
            Fact(fact="pool size in force", value=size, source="SHOW DATABASES"),
            Fact(fact="pool mode", value=queue.mode, source="SHOW POOLS"),
            Fact(
                fact="query_wait_timeout in seconds, then they are turned away", value=gives_up_s, source="SHOW CONFIG"
            ),
        ),
        counter_evidence=(
            *free_slots(case),
            Fact(fact="of the pool's sessions, waiting for a lock", value=sum(1 for t in behind if t.waits_for_lock)),
            Fact(fact="longest statement among them, in seconds", value=longest_s(behind)),
            *(
                (Fact(fact="share of time in which a task waited for a CPU", value=pressure, source="host"),)
                if pressure is not None
                else ()
            ),
        ),
        claims=keys(behind),
        culprits=pool_culprits(pooler),
        remedies=_queue_remedies(case, queue, size, kind),
        weight=0.3 if case.full else 1.0,
        refusal_matches=refused and not case.full,
    )


Kind = Literal[
    "the pool is too small",
    "session mode ties a server connection to every client",
    "clients idle in transaction hold the server connections",
    "the pool cannot grow: the server refused a log-in, or max_db_connections stands against it",
    "busy behind",
]


def _kind(queue: PoolReading, behind: list[Track], settings: Settings, *, short: bool) -> Kind:
    blocked = sum(1 for t in behind if t.waits_for_lock)
    slow = sum(1 for t in behind if t.running_s >= settings.min_running_s and not t.waits_for_lock)
    if behind and 2 * (blocked + slow) >= len(behind):
        return "busy behind"
    if behind and 2 * sum(1 for t in behind if t.in_transaction) >= len(behind):
        return "clients idle in transaction hold the server connections"
    if queue.mode == "session":
        return "session mode ties a server connection to every client"
    if short:
        return "the pool cannot grow: the server refused a log-in, or max_db_connections stands against it"
    return "the pool is too small"


def _queue_remedies(case: Case, queue: PoolReading, size: int, kind: Kind) -> tuple[Advice, ...]:
    wanted, reason = wanted_size(case, queue, size)
    advice = []
    if kind.startswith("clients idle"):
        advice.append(
            Advice(
                slug="fix-application-code",
                difficulty="hard",
                disruption="none",
                why="commit before anything slow; PgBouncer's idle_transaction_timeout is the emergency brake",
            )
        )
    if kind.startswith("session mode"):
        advice.append(
            Advice(
                slug="deploy-pooler",
                difficulty="medium",
                disruption="reload",
                command="pool_mode = transaction",
                why="in pgbouncer.ini, once no client needs SET, LISTEN, temporary tables or session advisory locks",
            )
        )
    return (
        *advice,
        Advice(
            slug="resize-pool",
            difficulty="easy",
            disruption="none",
            command=f"SET default_pool_size = {wanted};" if wanted > size else "",
            why=reason,
        ),
    )


def _overrun(case: Case, settings: Settings) -> Finding | None:
    """(c) The sessions that fill the server are a pooler's."""
    if case.ledger is None or not case.scarce:
        return None
    known = [p for p in case.snapshot.poolers if p.reachable]
    by_console = behind_pooler(case, known)
    by_process = [t for t in case.tracks if POOLERS.search(t.client)]
    by_name = [t for t in case.tracks if POOLERS.search(t.session.application_name)]
    found = list({t.key: t for t in (*by_console, *by_process, *by_name)}.values())
    if not _holds_most(case, found, settings):
        return None
    busy = sum(1 for t in found if t.waits_for_lock or t.running_s >= settings.min_running_s)
    if 2 * busy >= len(found):
        return None
    promised = sum(pool.pool_size or 0 for p in known for pool in p.pools)
    others = len(case.tracks) - len(found)
    if not case.full and promised + others <= case.ledger.ordinary_slots:
        return None  # nobody is refused, and as far as we know the pools fit
    sure = len({t.key for t in (*by_console, *by_process)}) * 2 >= len(found)
    return _overrun_by(case, found, known, 0.9 if sure else 0.75)


def _overrun_by(case: Case, found: list[Track], known: list[PoolerEvidence], confidence: float) -> Finding | None:
    ledger = case.ledger
    if ledger is None:
        return None
    pools = group(found, lambda t: (t.client, t.session.user, t.session.database))
    largest = len(next(iter(pools.values())))
    resting = sum(1 for t in found if t.idle)
    share = len(found) / max(1, ledger.ordinary_slots)
    promised = sum(p.pool_size or 0 for k in known for p in k.pools)
    fits = max(1, ledger.ordinary_slots * 4 // 5 // len(pools))
    return Finding(
        code=CODE,
        cause="pooler-misfit",
        severity=severity_of(case, share),
        confidence=confidence if case.full else confidence - 0.2,
        summary=(
            f"{len(found)} sessions of a pooler fill the server: {len(pools)} pools of up to {largest} "
            f"for {ledger.ordinary_slots} ordinary slots"
        ),
        claims=keys(found),
        evidence=(
            Fact(fact="sessions that a pooler holds", value=len(found)),
            Fact(fact="pools (pooler process, user, database) among them", value=len(pools)),
            *((Fact(fact="sum of the pools' sizes", value=promised, source="SHOW DATABASES"),) if promised else ()),
            Fact(fact="slots for ordinary roles", value=ledger.ordinary_slots, source="pg_settings"),
        ),
        counter_evidence=(
            Fact(fact="sessions of other clients", value=len(case.tracks) - len(found)),
            Fact(fact="of the pooler's sessions, busy", value=len(found) - resting),
        ),
        culprits=culprits(found),
        remedies=(
            Advice(
                slug="resize-pool",
                difficulty="easy",
                disruption="none",
                command=f"SET default_pool_size = {fits}; RECONNECT;",
                frees=max(0, len(found) - fits * len(pools)),
                why="on each console, then in pgbouncer.ini; SET alone does not shrink a pool",
            ),
            Advice(
                slug="raise-max-connections",
                difficulty="hard",
                disruption="restart",
                why="only when all pools of all processes are counted and memory bears them",
            ),
        ),
    )


def _refusing(case: Case) -> Finding | None:
    """No console to ask, but a pooler's own refusals: met by us, or in its log within the last minute."""
    kinds = pooler_refusals(case)
    if not kinds or any(p.reachable for p in case.snapshot.poolers):
        return None
    kind = kinds[0]
    capped = kind in {"pooler-client-limit", "pooler-client-cap"}
    texts = [r.message for r in case.snapshot.refusals if r.kind == kind]
    log = case.snapshot.log
    return Finding(
        code=CODE,
        cause="pooler-misfit",
        severity="critical",
        confidence=0.85 if capped else 0.6,
        summary=f"PgBouncer turns clients away: {texts[0] if texts else kind}",
        evidence=(
            *(Fact(fact="refused by a pooler", value=text, source="login") for text in texts[:1]),
            *(
                Fact(fact=f"refusals of kind {k} in {log.recent_s:.0f} s", value=log.recent_by_kind[k], source="log")
                for k in kinds
                if log is not None and k in log.recent_by_kind
            ),
        ),
        counter_evidence=(*free_slots(case), Fact(fact="the pooler's console was not asked", source="--pgbouncer DSN")),
        remedies=(
            Advice(
                slug="raise-pooler-clients" if capped else "resize-pool",
                difficulty="easy",
                disruption="reload" if capped else "none",
                command="SHOW CONFIG; SHOW POOLS; SHOW LISTS;",
                why="look first, on the console; then pgvacancy doctor --pgbouncer with its DSN",
            ),
        ),
        weight=0.3 if case.full else 1.0,
        refusal_matches=not case.full,
    )


def _holds_most(case: Case, found: list[Track], settings: Settings) -> bool:
    return bool(found) and len(found) >= settings.min_share_ratio * max(1, case.peak_used)


EXAMPLES = (
    Example("no pooler, a full server", "quiet", lambda: snapshot(server(100), pool("web", 97, used=True))),
    Example(
        "a pooler with a pool that suffices",
        "quiet",
        lambda: snapshot(server(100), pool("web", 20, idle_s=(0, 2), used=True), poolers=(example_pooler(0),)),
    ),
    Example(
        "thirty clients wait for a pool of two, the server has room",
        "fires",
        lambda: snapshot(server(100), pool("web", 2, idle_s=(0, 1), used=True), poolers=(example_pooler(30, size=2),)),
    ),
    Example(
        "every client socket in use",
        "fires",
        lambda: snapshot(
            server(100), pool("web", 20, idle_s=(0, 2), used=True), poolers=(example_pooler(0, clients=100),)
        ),
    ),
    Example(
        "pools of three users fill the server",
        "fires",
        lambda: snapshot(
            server(100),
            *(pool("pgbouncer", n, user=u, idle_s=(0, 30), used=True) for u, n in (("a", 33), ("b", 33), ("c", 32))),
        ),
    ),
    Example(
        "after the pool was enlarged",
        "cleared",
        lambda: snapshot(server(100), pool("web", 20, idle_s=(0, 1), used=True), poolers=(example_pooler(0, size=20),)),
    ),
)
