"""Honest, busy, bounded demand meets a limit that was never raised.

What it is
----------
Several services, each with a pool of a sensible size, and all of them needed: together they want more sessions than
the server allows. Often the limit is the default of 100 (or the 22 to 25 of a small managed plan), chosen by nobody.

Why it takes slots
------------------
`max_connections` less the reserve is what ordinary roles share. Each service takes its part and keeps it, with good
reason. 97 of 100 *is* full: the last three are kept for superusers.

How we know
-----------
No slot is free; nearly every session was used while we looked; they spread over several clients; hardly any was born
or ended; nothing waits, nothing leaks, nobody hurries. It is what remains when no other cause explains the slots,
and so it claims last. Where a single client holds nearly all of them, a pool that is too large is the other reading,
and we are no surer than even. Whether the machine would bear more is computed from its memory, at ten megabytes for
each session beside shared_buffers, when the doctor runs on the server's machine.

What to do, least disruptive first
----------------------------------
1. Fence the services in, so that one of them cannot take the others' slots: `ALTER ROLE ... CONNECTION LIMIT n`.
2. Shrink the pools that do not need their size even at peak.
3. Put PgBouncer in front in transaction mode: many clients then share few sessions. Above a few hundred sessions this
   is the only remedy that scales.
4. Raise the limit, and the reserve in the same restart: `ALTER SYSTEM SET max_connections = n`, restart. Standbys
   first. Every slot costs shared memory, every session private memory, and `work_mem` times what runs at once.

Often mistaken for
------------------
Oversized pools (the same structure, but mostly unused) · a traffic spike (it passes; sessions work without rest) ·
a leak (grows) · a limit of a role or a database (another text: `too many connections for role`).

Sources
-------
https://www.postgresql.org/docs/current/runtime-config-connection.html#GUC-MAX-CONNECTIONS
https://www.postgresql.org/docs/current/runtime-config-connection.html#GUC-SUPERUSER-RESERVED-CONNECTIONS
https://www.postgresql.org/docs/current/hot-standby.html#HOT-STANDBY-ADMIN
https://wiki.postgresql.org/wiki/Number_Of_Database_Connections
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pgvacancy.causes._common import severity_of, sql_in
from pgvacancy.causes._demand import demand, stuck
from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.series import Case, Owner, Track, culprits, group, keys, revisit_s

CODE = "PGC100"
ORDER = 130
NEEDS = ({"sql", "states", "time", "server", "all-sessions"},)

DEFAULT_LIMIT = 100
"""Source: https://www.postgresql.org/docs/current/runtime-config-connection.html#GUC-MAX-CONNECTIONS"""
MEMORY_SHARE = 0.75
"""The rest is for the operating system and its page cache."""
HIGHEST = 5000
"""Beyond this a pooler is the answer, whatever the memory."""
BLOCK_BYTES = 8192
PATIENCE = 3
"""Mean pauses between two uses: a longer one happens by chance in five cases of a hundred."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of limit-too-small."""

    min_used_ratio: float = setting(0.8, "an honest demand uses nearly all of what it holds")
    min_clients_count: float = setting(2, "a single client that fills a server may as well have too large a pool")
    max_client_ratio: float = setting(0.8, "when one client holds nearly everything its pool may be the matter")
    max_turnover_ratio: float = setting(0.2, "sessions that come and go are a demand without bound or without pool")
    session_bytes: float = setting(10 * 1024 * 1024, "private memory of a session in use, on the safe side")


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find a full server whose sessions are all in steady use by several clients."""
    ledger = case.ledger
    if ledger is None or not case.full or case.window_s <= 0 or not case.tracks:
        return None
    in_use = used(case)
    clients = group(in_use, lambda t: (Owner.of(t), t.client))
    told_apart = demand(case, in_use).told_apart
    if not in_use:
        return None
    used_ratio = len(in_use) / len(case.tracks)
    turnover = (case.births + case.deaths) / len(case.tracks)
    largest = len(next(iter(clients.values()))) / len(in_use)
    if (
        used_ratio < settings.min_used_ratio
        or turnover > settings.max_turnover_ratio
        or 10 * len(stuck(case)) > len(case.tracks)
    ):
        return None
    shared = told_apart and len(clients) >= settings.min_clients_count and largest <= settings.max_client_ratio
    bearable = affordable(case, settings.session_bytes)
    return Finding(
        code=CODE,
        cause="limit-too-small",
        severity=severity_of(case, len(in_use) / max(1, ledger.ordinary_slots)),
        confidence=_confidence(len(clients), largest, shared=shared),
        summary=(
            f"{len(in_use)} sessions of {_clients(len(clients))} are in steady use, and max_connections is "
            f"{ledger.max_connections}: "
            + (
                "the demand is honest, the limit is small"
                if shared
                else "the limit is too small for that, or a pool too large"
            )
        ),
        claims=keys(in_use),
        evidence=(
            *_limit(case, bearable),
            Fact(fact="sessions in use", value=len(in_use)),
            Fact(fact="clients (owner and process or address) that share them", value=len(clients)),
            Fact(fact="share of the largest client", value=round(largest, 2)),
            Fact(fact="clients could be told apart" if told_apart else "clients could not be told apart (one address)"),
        ),
        counter_evidence=(
            Fact(fact="sessions not in use", value=len(case.tracks) - len(in_use)),
            Fact(fact="sessions born or ended while we looked", value=case.births + case.deaths),
            Fact(fact="sessions stuck behind a lock", value=len(stuck(case))),
            *_other_reading(clients, largest, shared=shared, told_apart=told_apart),
            Fact(fact="stability of the demand: a few seconds were seen, hours with a peak would make it certain"),
        ),
        culprits=culprits(in_use),
        remedies=_advice(case, in_use, bearable),
    )


def _confidence(clients: int, largest: float, *, shared: bool) -> float:
    if not shared:
        return 0.5  # what is left when nothing else explains a full server: as likely as the other reading
    return 0.85 if clients >= 3 and largest <= 0.6 else 0.65


def _clients(count: int) -> str:
    return f"{count} clients" if count > 1 else "1 client"


def _other_reading(
    clients: dict[tuple[Owner, str], tuple[Track, ...]], largest: float, *, shared: bool, told_apart: bool
) -> tuple[Fact, ...]:
    """What speaks for a pool that is too large rather than for a limit that is too small."""
    if shared:
        return ()
    (owner, client), tracks = next(iter(clients.items()))
    if not told_apart:
        return (Fact(fact="whether one client holds nearly all, and so has too large a pool, is not known"),)
    return (
        Fact(
            fact=f"a single client ({owner}, {client}) holds {100 * largest:.0f} %: its pool may be too large",
            value=len(tracks),
        ),
    )


def used(case: Case) -> list[Track]:
    """Sessions used while we looked, and those that only pause as long as their group's habit allows."""
    result: list[Track] = []
    for tracks in group(case.tracks, lambda t: (Owner.of(t), t.client)).values():
        patience_s = PATIENCE * revisit_s(tracks, case.window_s)
        now = sum(1 for t in tracks if t.used_in_window)
        most, some = 2 * now > len(tracks), 3 * now > len(tracks)
        result += [
            t
            for t in tracks
            # A slow habit is believed of a session only that has shown it before: used again well after its birth.
            if t.used_in_window or ((most or (some and t.used_late)) and t.idle and t.state_age_s < patience_s)
        ]
    return result


def affordable(case: Case, session_bytes: float) -> int | None:
    """How many sessions the machine's memory bears; None when its memory is not known."""
    host, srv = case.snapshot.host, case.snapshot.server
    if host is None or srv is None or not host.memory_bytes:
        return None
    buffers = srv.setting_int("shared_buffers") * BLOCK_BYTES
    return max(0, int((host.memory_bytes * MEMORY_SHARE - buffers) / session_bytes))


def _limit(case: Case, bearable: int | None) -> tuple[Fact, ...]:
    ledger, host = case.ledger, case.snapshot.host
    if ledger is None:
        return ()
    default = ", the default" if ledger.max_connections == DEFAULT_LIMIT else f", the default is {DEFAULT_LIMIT}"
    facts = [
        Fact(fact=f"max_connections{default}", value=ledger.max_connections, source="pg_settings"),
        Fact(fact="slots that ordinary roles can use", value=ledger.ordinary_slots, source="pg_settings"),
        Fact(fact="slots others hold", value=case.peak_used),
    ]
    if host is not None and bearable is not None:
        memory = round(host.memory_bytes / 2**30, 1)
        facts.append(Fact(fact=f"sessions the memory ({memory} GiB) bears, about", value=bearable, source="/proc"))
        facts.append(Fact(fact="cores", value=host.cores, source="/proc"))
    return tuple(facts)


def _advice(case: Case, in_use: list[Track], bearable: int | None) -> tuple[Advice, ...]:
    ledger = case.ledger
    now = ledger.max_connections if ledger is not None else DEFAULT_LIMIT
    wanted = min(2 * now, HIGHEST, bearable if bearable is not None else HIGHEST)
    role, held = Counter(t.session.user or "" for t in in_use).most_common(1)[0]
    managed = case.snapshot.server.managed_by if case.snapshot.server is not None else None
    room = "the machine's memory is not known from here: compute it first"
    if bearable is not None:
        room = "the memory bears it" if bearable > now else "the memory does not bear more: use a pooler"
    command = (
        f"ALTER SYSTEM SET max_connections = {wanted};  -- then restart; standbys first"
        if wanted > now and managed is None
        else ""
    )
    if managed is not None:
        room += f"; set it where {managed} keeps its configuration"
    return (
        Advice(
            slug="limit-role-connections",
            difficulty="easy",
            disruption="none",
            command=f"ALTER ROLE {sql_in([role])} CONNECTION LIMIT {held};",
            why="keeps the largest service from taking what the others need",
        ),
        Advice(slug="resize-pool", difficulty="medium", disruption="none", why="where a pool is larger than its peak"),
        Advice(
            slug="deploy-pooler", difficulty="medium", disruption="none", why="many clients then share few sessions"
        ),
        Advice(
            slug="raise-max-connections",
            difficulty="medium",
            disruption="restart",
            frees=max(0, wanted - now),
            command=command,
            why=room,
        ),
        Advice(
            slug="reserve-slots",
            difficulty="medium",
            disruption="restart",
            why="in the same restart, so that an administrator and the monitoring get in",
        ),
    )


SERVICES = ("billing", "mail", "search", "shop")
EXAMPLES = (
    Example(
        "a large pool of one client, used again and again, on a server with a little room",
        "quiet",
        lambda: snapshot(server(100), pool("web", 90, idle_s=(0, 2), used=True)),
    ),
    Example(
        "a large pool of one client, used again and again, fills the server: nothing else explains it",
        "fires",
        lambda: snapshot(
            server(100),
            pool("web", 94, idle_s=(0, 2), used=True),
            pool("cron", 4, client="10.0.0.2", idle_s=(0, 2), used=True),
        ),
    ),
    Example(
        "the same services with a third of the sessions unused: pools too large",
        "quiet",
        lambda: snapshot(
            server(100),
            *(pool(f"service-{n}", 16, client=f"10.0.0.{n}", idle_s=(0, 1), used=True) for n in range(4)),
            *(pool(f"service-{n}", 8, client=f"10.0.0.{n}", idle_s=(400, 500)) for n in range(4)),
        ),
    ),
    Example(
        "the same services with room to spare",
        "quiet",
        lambda: snapshot(
            server(200),
            *(pool(f"service-{n}", 24, client=f"10.0.0.{n}", idle_s=(0, 1), used=True) for n in range(4)),
        ),
    ),
    Example(
        "five services, each at its modest size, all in use",
        "fires",
        lambda: snapshot(
            server(100),
            pool("gateway", 18, client="10.0.0.9", idle_s=(0, 1), age_s=9000, used=True),
            *(pool(name, 20, user=name, idle_s=(0, 1), age_s=9000, used=True) for name in SERVICES),
            transactions_per_s=200,
        ),
    ),
    Example(
        "after the limit was raised",
        "cleared",
        lambda: snapshot(
            server(150),
            pool("gateway", 17, client="10.0.0.9", idle_s=(0, 1), age_s=60, used=True),
            *(pool(name, 20, user=name, idle_s=(0, 1), age_s=60, used=True) for name in SERVICES),
            transactions_per_s=200,
        ),
    ),
)
