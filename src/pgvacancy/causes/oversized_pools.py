"""Pool size times processes times replicas exceeds the limit; each client holds the same number, mostly idle.

What it is
----------
A pool size is set once, in a configuration that looks modest: 10, or 5 with an overflow of 10. Then a web
server forks a worker per core, the orchestrator runs some replicas, a job queue brings workers of its own, and
each of these processes has a pool of that size. Nobody ever wrote down the product.

Why it takes slots
------------------
Most pools keep what they have opened, and many open their whole size at start. A slot is held by every member
of every pool, also by those that no request has ever needed.

How we know
-----------
Sessions of one application (same role and database, names that differ by an instance number at most) are
counted per client: a process on this machine, else an address, else a name of its own, else a step of births.
Several clients hold the *same* number, the sum fills the server, and most of these sessions were not used while
we looked. Pools that hand out the session used last show it best: a few members are busy, the others were used
at their birth only. A single client is named only when it shows exactly that and holds nearly all ordinary
slots.

What to do, least disruptive first
----------------------------------
1. Make the pools smaller: the evidence prints the sum that is there and a size that fits. In PgBouncer `SET
   default_pool_size`, in SQLAlchemy `pool_size` and `max_overflow`, in HikariCP `maximumPoolSize`.
2. Cap the role, so that other applications keep their slots: `ALTER ROLE app CONNECTION LIMIT n`.
3. Put PgBouncer in transaction mode in front: all processes then share one pool.
4. Raise `max_connections` last, and only when memory bears it: idle members need no slot, they need to go.

Ending these sessions does not help: the pools open them again at once.

Often mistaken for
------------------
A deployment in progress (two generations, seconds to minutes apart) · abandoned pools (one client, steps, the
old ones never used again) · a leak (grows) · a limit that is too small (the same structure, but the members are
busy) · a pooler's own pools · functions that hold one or two sessions each.

Sources
-------
https://docs.sqlalchemy.org/en/20/core/pooling.html
https://github.com/brettwooldridge/HikariCP/wiki/About-Pool-Sizing
https://www.pgbouncer.org/config.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pgvacancy.causes._common import pooler_ini, severity_of, sql_in
from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.causes._structure import (
    PEOPLE,
    Family,
    Life,
    comes_and_goes,
    common_size,
    described,
    equal_steps,
    families,
    generations,
    is_paced,
    is_ramp,
    members,
    tracks_of,
    without_bursts,
)
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.series import Case, culprits, keys

CODE = "PGC108"
ORDER = 80
NEEDS = ({"sql", "states"},)


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of oversized-pools."""

    min_share_ratio: float = setting(0.5, "pools that hold less than half of the slots leave room by themselves")
    min_equal_ratio: float = setting(0.6, "the last pools may be cut short by the limit, the others hold one number")
    min_unused_ratio: float = setting(0.5, "when most members were used within seconds, the size is wanted")
    min_idle_members_ratio: float = setting(
        0.25, "on a full server less will do, but with fewer members to spare no smaller size would help"
    )
    single_share_ratio: float = setting(0.75, "one client alone counts only when it leaves next to nothing for others")


@dataclass(frozen=True, slots=True)
class _Pools:
    """What one application's clients hold."""

    family: Family
    lives: tuple[Life, ...]
    sizes: tuple[int, ...]
    size: int
    equal_ratio: float
    unused_ratio: float
    sure: float
    told_apart_by: str


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find an application whose clients hold the same number each, and next to none of it in use."""
    ledger = case.ledger
    if ledger is None or not case.scarce or not ledger.ordinary_slots:
        return None
    found = [p for f, m in families(case).items() if (p := _pools(case, f, m, ledger.ordinary_slots, settings))]
    return _finding(case, max(found, key=lambda p: len(p.lives))) if found else None


def _pools(case: Case, family: Family, lives: Sequence[Life], slots: int, settings: Settings) -> _Pools | None:
    if len(lives) < settings.min_share_ratio * slots or _of_people(lives) or comes_and_goes(case, family):
        return None
    parts = members(lives)
    by = "client and application_name"
    if len(parts) == 1:
        stepped = equal_steps(lives)
        if not stepped:
            return _single(family, lives, slots, settings)
        if _forgotten(stepped):
            return None
        parts, by = stepped, "births (nothing else tells them apart)"
    elif generations(parts) is not None:
        return None
    if len(parts) > 1 and sum(1 for p in parts if _climbs(p)) > len(parts) / 2:
        return None
    size, equal = common_size(parts)
    largest = max(len(p) for p in parts)
    near = sum(1 for p in parts if len(p) >= 0.6 * largest) / len(parts)
    unused = sum(1 for m in lives if m.resting) / len(lives)
    if (size < 2 and largest < 2) or max(
        equal, near if case.full and len(parts) > 2 else 0.0
    ) < settings.min_equal_ratio:
        return None
    if len(parts) == 2 and equal < 1.0 and near < 1.0:
        return None
    lasting = unused >= settings.min_unused_ratio
    if not lasting and (not case.full or unused < settings.min_idle_members_ratio or _busy(case, lives)):
        return None
    sure = 0.88 if equal >= 0.75 else 0.75
    sure -= 0.2 * (not lasting) + 0.15 * (size <= 2) + 0.1 * (case.window_s <= 0) + 0.1 * by.startswith("births")
    return _Pools(family, tuple(lives), tuple(map(len, parts)), size, equal, unused, sure, by)


def _single(family: Family, lives: Sequence[Life], slots: int, settings: Settings) -> _Pools | None:
    """One client with nearly everything: its pool was filled in one go, a few members are used, most never were."""
    never = sum(1 for m in lives if m.used_once)
    used = sum(1 for m in lives if m.late_uses)
    if len(lives) < settings.single_share_ratio * slots or not used or never < 0.6 * len(lives) or _climbs(lives):
        return None
    return _Pools(family, tuple(lives), (len(lives),), len(lives), 1.0, never / len(lives), 0.6, "client")


def _climbs(lives: Sequence[Life]) -> bool:
    """Whether a client's unused sessions came one by one: that is no pool's doing."""
    late = without_bursts([m for m in lives if m.used_once])
    return len(late) >= max(3, 0.25 * len(lives)) and is_ramp(late) and is_paced(late)


def _of_people(lives: Sequence[Life]) -> bool:
    return sum(1 for m in lives if PEOPLE.search(m.track.session.application_name)) > len(lives) / 2


def _forgotten(stepped: Sequence[Sequence[Life]]) -> bool:
    """Whether all steps but the newest were left for good: then they are no pools any more."""
    return all(m.resting for step in stepped[:-1] for m in step)


def _busy(case: Case, lives: Sequence[Life]) -> bool:
    """Whether a member is used about once a second or more: then the pool's size is not idle luxury."""
    uses = sum(m.late_uses for m in lives)
    return case.window_s <= 0 or uses / (len(lives) * case.window_s) > 0.8


def _finding(case: Case, pools: _Pools) -> Finding:
    tracks = tracks_of(pools.lives)
    slots = case.ledger.ordinary_slots if case.ledger else 0
    clients = len(pools.sizes)
    held = f"{clients} clients × {pools.size}" if clients > 1 else "1 client"  # noqa: RUF001 - a product is meant
    fits = max(1, int(0.8 * slots) // max(1, clients))
    used = sum(1 for m in pools.lives if m.late_uses)
    role = sql_in([pools.family[0]])
    return Finding(
        code=CODE,
        cause="oversized-pools",
        severity=severity_of(case, len(tracks) / max(1, slots)),
        confidence=round(pools.sure, 2),
        summary=(
            f"{described(pools.family)}: {held} = {len(tracks)} of {slots} slots, "
            f"{100 * pools.unused_ratio:.0f} % of them unused while we looked"
        ),
        claims=keys(tracks),
        evidence=(
            Fact(fact="clients of this application", value=clients),
            Fact(fact="sessions that most of them hold", value=pools.size),
            Fact(fact="sum, of ordinary slots", value=f"{held} = {len(tracks)} of {slots}"),
            Fact(fact="share of clients that hold exactly that number", value=f"{100 * pools.equal_ratio:.0f} %"),
            Fact(fact="clients told apart by", value=pools.told_apart_by),
            Fact(fact="share of these sessions unused while we looked", value=f"{100 * pools.unused_ratio:.0f} %"),
        ),
        counter_evidence=(
            Fact(fact="of these sessions used while we looked", value=used),
            Fact(fact="clients with another number", value=sum(1 for n in pools.sizes if n != pools.size)),
        ),
        culprits=culprits(tracks),
        remedies=(
            Advice(
                slug="resize-pool",
                difficulty="easy",
                disruption="none",
                frees=max(0, len(tracks) - fits * clients),
                command=f"pool size {fits}: {clients} × {fits} = {clients * fits} of {slots}",  # noqa: RUF001 - a product
                why="the application reads its pool size at start; four fifths of the slots, shared by all clients",
            ),
            Advice(
                slug="limit-role-connections",
                difficulty="easy",
                disruption="none",
                command=f"ALTER ROLE {role} CONNECTION LIMIT {max(1, int(0.8 * slots))};",
                why="other applications keep their slots; this one is refused new sessions at once",
            ),
            Advice(
                slug="deploy-pooler",
                difficulty="medium",
                disruption="none",
                command=pooler_ini(case, pools.family[1]),
                why="all processes share one pool of the size that is really used",
            ),
            Advice(
                slug="raise-max-connections", difficulty="medium", disruption="restart", why="last, memory permitting"
            ),
        ),
    )


EXAMPLES = (
    Example(
        "four workers with five sessions each on a server with room",
        "quiet",
        lambda: snapshot(server(100), *(pool(f"web-{n}", 5, idle_s=100) for n in range(4))),
    ),
    Example(
        "the same structure, but every member is busy",
        "quiet",
        lambda: snapshot(
            server(100),
            *(
                pool("web", 12, client=f"10.0.0.{n}", state="active", idle_s=0.1, age_s=900, used=True)
                for n in range(8)
            ),
        ),
    ),
    Example(
        "five people's tools with unequal numbers",
        "quiet",
        lambda: snapshot(
            server(100),
            *(pool("psql", 10 + 4 * n, user=f"person{n}", client=f"10.0.1.{n}", idle_s=900) for n in range(5)),
        ),
    ),
    Example(
        "eight workers with pools of twelve, one member of each in use",
        "fires",
        lambda: snapshot(
            server(100),
            *(pool("web", 11, client=f"10.0.0.{n}", idle_s=(7000, 7000.2)) for n in range(8)),
            *(pool("web", 1, client=f"10.0.0.{n}", idle_s=0.1, age_s=7000, used=True) for n in range(8)),
        ),
    ),
    Example(
        "after the pools were made smaller",
        "cleared",
        lambda: snapshot(
            server(100), *(pool("web", 5, client=f"10.0.0.{n}", idle_s=0.1, age_s=100, used=True) for n in range(8))
        ),
    ),
)
