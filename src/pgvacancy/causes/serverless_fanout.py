"""Many short-lived clients hold one to a few sessions each.

What it is
----------
Cloud functions, jobs and previews: the platform starts an instance for each request that comes at the same
time, each instance opens a session of its own (module-level connection or a pool of one), answers, and is
*frozen* until the next request or the end of its life. A frozen process can neither use nor close its session.

Why it takes slots
------------------
Slots follow the number of instances, not the work: a hundred instances at rest hold a hundred slots. A pool in
each instance multiplies them again. When the platform reclaims an instance, its session may stay until TCP
notices.

How we know
-----------
One role and database, reached from `min_clients_count` or more distinct clients (addresses, or processes on
this machine) with no more than `max_per_client_ratio` sessions each; most of them idle since shortly after
their birth (last use, `state_change`, close to `backend_start`); and clients come and go: births and deaths are
spread over time. Without births or deaths while we looked the structure alone speaks, at less confidence.
Behind a NAT or proxy all clients show one address: then only sessions that rest since their birth *and* come
and go speak for it.

What to do, least disruptive first
----------------------------------
1. Keep a bound on it: `ALTER ROLE ... CONNECTION LIMIT n` on the functions' role, so that others get in.
2. Give the role an idle limit: `ALTER ROLE ... SET idle_session_timeout = '60s'` (14+, new sessions). A frozen
   client cannot close its session, so the server has to.
3. Put a pooler in front (`pool_mode = transaction`); thousands of clients then share a few sessions.
4. One connection per instance, opened outside the handler, pool maximum 1; cap the concurrency of the function.

Ending the sessions helps for moments only: the next requests bring new ones.

Often mistaken for
------------------
A fleet of workers, each busy with one session (the limit is too small) · oversized pools (several sessions per
client, for a long time) · no pooling (few hosts, sessions that last milliseconds) · a leak (one client with
many sessions).

Sources
-------
https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-IDLE-SESSION-TIMEOUT
https://www.postgresql.org/docs/current/sql-alterrole.html
https://www.pgbouncer.org/features.html
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

from pgvacancy.causes._arrivals import life_s
from pgvacancy.causes._common import by_design, is_monitor, pooler_ini, severity_of, sql_in
from pgvacancy.causes._examples import Pair, pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.series import Case, Track, culprits, group, keys

CODE = "PGC111"
ORDER = 80
NEEDS = ({"sql", "states"},)

_PEOPLE = re.compile(
    r"psql|dbeaver|pgadmin|datagrip|postico|tableplus|navicat|dbvis|heidisql|beekeeper|jupyter|jetbrains", re.IGNORECASE
)
"""Tools of people: many of them, each with a session or two, are no functions."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of serverless-fanout."""

    min_clients_count: float = setting(8, "fewer clients than these are a handful of servers")
    max_per_client_ratio: float = setting(3, "an instance has one session or a tiny pool")
    min_share_ratio: float = setting(0.4, "they must be what takes the slots, not one tenant of many")
    min_frozen_ratio: float = setting(0.5, "most instances rest between two requests; busy ones are a fleet")
    min_life_s: float = setting(2, "where clients cannot be told apart, sessions shorter than this are requests")
    min_renewed_ratio: float = setting(0.15, "a fleet in steady use replaces none of its sessions within seconds")
    min_rest_s: float = setting(0.3, "what rested for less may be in the middle of its request")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crowd:
    """One role and database, and the clients that use it."""

    user: str
    database: str
    tracks: tuple[Track, ...]
    clients: int
    frozen: int
    born: int
    ended: int
    told_apart: bool
    """False when all come through one address and nothing tells the clients apart."""

    @property
    def per_client(self) -> float:
        """Sessions per client, mean."""
        return len(self.tracks) / self.clients

    @property
    def turnover(self) -> int:
        """Births and deaths seen."""
        return self.born + self.ended


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find a crowd of clients with a session or two each, most of them resting since they were born."""
    ledger = case.ledger
    if ledger is None or not case.scarce:
        return None
    candidates = [
        crowd
        for (user, database), tracks in group(_eligible(case), lambda t: (t.session.user, t.session.database)).items()
        if (crowd := _crowd(case, user or "", database or "", tracks, settings)) is not None
    ]
    if not candidates:
        return None
    crowd = max(candidates, key=lambda c: len(c.tracks))
    share = len(crowd.tracks) / max(1, ledger.ordinary_slots)
    confidence = _confidence(crowd)
    if share < settings.min_share_ratio or confidence is None:
        return None
    cap = max(2, ledger.ordinary_slots // 2)
    return Finding(
        code=CODE,
        cause="serverless-fanout",
        severity=severity_of(case, share),
        confidence=confidence,
        summary=(
            f"{crowd.clients if crowd.told_apart else 'many'} clients of role {crowd.user} hold {len(crowd.tracks)} "
            f"sessions, {crowd.frozen} of which rest since shortly after they were opened"
        ),
        claims=keys(crowd.tracks),
        evidence=(
            Fact(
                fact="distinct clients" if crowd.told_apart else "sessions, whose clients cannot be told apart",
                value=crowd.clients,
                source=_source(case),
            ),
            Fact(
                fact="sessions per client, mean", value=round(crowd.per_client, 2) if crowd.told_apart else "not known"
            ),
            Fact(fact="sessions that rest since shortly after their birth", value=crowd.frozen),
            Fact(fact="births while we looked", value=crowd.born),
            Fact(fact="deaths while we looked", value=crowd.ended),
            Fact(fact="age of the oldest session, in seconds", value=round(max(t.age_s for t in crowd.tracks), 1)),
        ),
        counter_evidence=(
            Fact(fact="sessions used again well after their birth", value=len(crowd.tracks) - crowd.frozen),
            Fact(fact="sessions of other roles and databases", value=len(case.tracks) - len(crowd.tracks)),
        ),
        culprits=culprits(crowd.tracks),
        remedies=(
            Advice(
                slug="limit-role-connections",
                difficulty="easy",
                disruption="none",
                command=f"ALTER ROLE {sql_in([crowd.user])} CONNECTION LIMIT {cap};",
                why="keeps room for everybody else while the crowd comes and goes",
            ),
            Advice(
                slug="set-idle-session-timeout",
                difficulty="easy",
                disruption="none",
                command=f"ALTER ROLE {sql_in([crowd.user])} SET idle_session_timeout = '60s';",
                why="a frozen client cannot close its session: the server does (PostgreSQL 14+, new sessions)",
            ),
            Advice(
                slug="deploy-pooler",
                difficulty="medium",
                disruption="none",
                command=pooler_ini(case, crowd.database),
                why="any number of clients then share a few sessions",
            ),
            Advice(
                slug="fix-application-code",
                difficulty="medium",
                disruption="none",
                why="one connection per instance, opened outside the handler; cap the function's concurrency",
            ),
        ),
    )


def _eligible(case: Case) -> list[Track]:
    """Sessions that may belong to functions: no people's tools, no watchers, no listeners."""
    return [
        t
        for t in case.tracks
        if not _PEOPLE.search(t.session.application_name) and not is_monitor(t) and not by_design(t)
    ]


def _crowd(case: Case, user: str, database: str, tracks: tuple[Track, ...], settings: Settings) -> _Crowd | None:
    # Among many small clients a server with a pool of its own may use the same role: it is none of them.
    counts = Counter(t.client for t in tracks)
    told_apart = _told_apart(tracks)
    if not told_apart and any(_process_known(t) and counts[t.client] > settings.min_clients_count for t in tracks):
        return None
    small = tuple(t for t in tracks if not told_apart or counts[t.client] <= 2 * settings.max_per_client_ratio)
    clients = len({t.client for t in small}) if told_apart else len(small)
    if clients < settings.min_clients_count or len(small) > settings.max_per_client_ratio * clients:
        return None
    frozen = sum(1 for t in small if t.idle and t.state_age_s >= max(settings.min_rest_s, 0.6 * t.age_s))
    resting = sum(1 for t in small if t.age_s >= settings.min_rest_s) or 1
    mine = [t for t in case.all_tracks if t.session.user == user and t.session.database == database]
    ended = [t for t in mine if not t.alive]
    born = sum(1 for t in mine if t.born_in_window)
    # Instances that are busy while they live are told from a fleet by how they come and go, one session each.
    renewed = min(born, len(ended)) >= max(3, settings.min_renewed_ratio * len(small))
    lived_s = sum(life_s(t) for t in ended) / max(1, len(ended))
    passing = told_apart and renewed and lived_s >= settings.min_life_s and len(small) <= 1.5 * clients
    if frozen / resting < settings.min_frozen_ratio and not passing:
        return None
    if not told_apart and sum(life_s(t) for t in ended) < settings.min_life_s * len(ended):
        return None
    return _Crowd(
        user=user,
        database=database,
        tracks=small,
        clients=clients,
        frozen=frozen,
        born=born,
        ended=len(ended),
        told_apart=told_apart,
    )


def _process_known(track: Track) -> bool:
    """Whether the machine told which process holds the other end."""
    return track.client != (track.session.client_addr or "local")


def _told_apart(tracks: tuple[Track, ...]) -> bool:
    """Whether clients can be counted: by their processes, or by addresses that differ."""
    unknown = Counter(t.client for t in tracks if not _process_known(t))
    return not unknown or len(unknown) > 1 or max(unknown.values()) <= 0.3 * len(tracks)


def _confidence(crowd: _Crowd) -> float | None:
    """How sure: clients that come and go are the mark; the structure alone is a hint."""
    if not crowd.told_apart:
        # Unlike those of a leak, a pool or people, these sessions rest since their birth *and* come and go.
        least = min(crowd.born, crowd.ended)
        return 0.75 if least >= 5 else 0.6 if least >= 3 else None
    if crowd.born >= 1 and crowd.ended >= 1 and crowd.turnover >= 3:
        return 0.93 if crowd.clients >= 12 else 0.85
    if crowd.turnover >= 2 and crowd.per_client <= 2:
        return 0.8
    if crowd.clients >= 12 and crowd.per_client <= 1.5 and len({t.session.application_name for t in crowd.tracks}) == 1:
        return 0.7
    return None


def _source(case: Case) -> str:
    return "pg_stat_activity and the machine's sockets" if case.snapshot.host is not None else "pg_stat_activity"


def _functions(count: int, *, idle_s: float = 8, young: int = 2, used: bool = False, per: int = 1) -> list[Pair]:
    """An example: one client each, births spread, the last ``young`` born while we looked."""
    pairs: list[Pair] = []
    for n in range(count):
        age = 0.5 + n * 0.5 if n < young else 3.5 + n * idle_s / count
        pairs += pool(
            "", per, client=f"10.1.0.{n}", age_s=age, idle_s=0.1 if used else 0.9 * age, used=used and n >= young
        )
    return pairs


def _ending(count: int) -> list[Pair]:
    """Sessions that ended while we looked: at the last reading their row is a worker's, which takes no slot."""
    return [(a, replace(b, backend_type="background worker")) for a, b in _functions(count, young=0)]


EXAMPLES = (
    Example(
        "sixteen workers, each busy with one session",
        "quiet",
        lambda: snapshot(server(20), _functions(16, used=True)),
    ),
    Example(
        "one application that holds sixteen idle sessions",
        "quiet",
        lambda: snapshot(server(20), pool("web", 16, idle_s=(1, 20))),
    ),
    Example(
        "four servers with pools of four",
        "quiet",
        lambda: snapshot(server(20), *(pool("web", 4, client=f"10.0.0.{n}", idle_s=(20, 30)) for n in range(4))),
    ),
    Example(
        "seventeen functions, some come and some go", "fires", lambda: snapshot(server(20), _functions(17), _ending(2))
    ),
    Example("under a connection limit of the role", "cleared", lambda: snapshot(server(20), _functions(5), _ending(2))),
)
