"""Does a fresh ordinary client get in right now? Asked the only honest way: by trying.

A start-up packet as a role that is neither superuser nor otherwise privileged costs one fork and leaves no session.
With trust or peer authentication the answer covers every limit; where a password is wanted it ends before role,
database and reserve limits are checked, and then the ledger has to tell.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

from pgvacancy.model.evidence import PoolerEvidence
from pgvacancy.model.ledger import holds_slot, make_ledger, may_hold_slot
from pgvacancy.model.snapshot import Access, Refusal, Sample, Server
from pgvacancy.observe.postgres.conninfo import Target, read_target
from pgvacancy.observe.postgres.probe import probe

TIMEOUT_S = 2.0
MAX_PROBES = 2
RETRIES = 3
RETRY_S = 0.1


def probe_as_ordinary(target: Target, server: Server, sample: Sample) -> list[Refusal]:
    """The refusals that ordinary clients get, at most two probes: first whoever is at a limit of their own."""
    refusals: list[Refusal] = []
    ledger = make_ledger(server, sample, Access(door="ordinary"))
    full = ledger.used - sum(1 for s in sample.sessions if s.is_own) >= ledger.ordinary_slots
    for user, database in _candidates(target, server, sample)[:MAX_PROBES]:
        seen = probe(target, user=user, database=database, timeout_s=TIMEOUT_S)
        for _ in range(RETRIES if seen.outcome == "refused" and not full else 0):
            # Our own session was closed a moment ago; its process may not have left yet.
            time.sleep(RETRY_S)
            seen = probe(target, user=user, database=database, timeout_s=TIMEOUT_S)
            if seen.outcome != "refused":
                break
        if seen.outcome == "refused" and seen.refusal is not None and seen.refusal.sqlstate == "53300":
            refusals.append(replace(seen.refusal, user=user, database=database))
    return refusals


def probe_through_pooler(dsn: str, evidence: PoolerEvidence) -> Refusal | None:
    """The refusal an ordinary client of the busiest pool gets from the pooler itself; None when it is let in."""
    pools = [p for p in evidence.pools if p.database != "pgbouncer"]
    if not evidence.reachable or not pools:
        return None
    busiest = max(pools, key=lambda p: (p.clients_waiting, p.clients_active))
    seen = probe(read_target(dsn), user=busiest.user, database=busiest.database, timeout_s=TIMEOUT_S)
    if seen.refusal is None or not seen.refusal.kind.startswith("pooler-"):
        return None
    return replace(seen.refusal, user=busiest.user, database=busiest.database, source="pooler")


def _candidates(target: Target, server: Server, sample: Sample) -> list[tuple[str, str]]:
    ordinary = {r.name for r in server.roles if not r.superuser and not r.uses_reserved and not r.replication}
    held = Counter(
        (s.user, s.database)
        for s in sample.sessions
        if (holds_slot(s) or may_hold_slot(s)) and s.user in ordinary and s.database is not None
    )
    at_limit: list[tuple[str, str]] = []
    per_role = Counter(s.user for s in sample.sessions if holds_slot(s))
    for role in server.roles:
        if role.name in ordinary and 0 < role.connection_limit <= per_role[role.name]:
            database = next((d for (u, d), _ in held.most_common() if u == role.name), target.database)
            at_limit.append((role.name, database or ""))
    per_database = Counter(s.database for s in sample.sessions if holds_slot(s))
    for database_row in server.databases:
        if 0 < database_row.connection_limit <= per_database[database_row.name]:
            user = next((u for (u, d), _ in held.most_common() if d == database_row.name), None)
            if user is not None:
                at_limit.append((user, database_row.name))
    usual = [(u or "", d or "") for (u, d), _ in held.most_common(1)]
    if not usual and target.user in ordinary:
        usual = [(target.user, target.database)]
    return list(dict.fromkeys([*at_limit, *usual]))
