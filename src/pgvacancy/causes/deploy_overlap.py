"""Two generations of the same application hold their pools at once.

What it is
----------
A rolling update starts the new release before the old one has left; a blue and a green side run together; an
autoscaler or a process manager replaces workers and lets the old ones drain. For that time the application
holds twice its usual number.

Why it takes slots
------------------
Each generation opens its pools at start. The old one gives its sessions back only when its processes end, which
may wait for slow requests, for a grace period, or for a shutdown hook that never closes the pool.

How we know
-----------
Sessions of one application (same role and database, names equal or different in a version, a colour or a
number) belong to two sets of clients, different processes or addresses, whose beginnings lie far apart compared
with those within each set. Both sets are of similar size and the younger one is recent. An old set that nobody
uses any more, or whose sessions end while we look, makes it surer.

What to do, least disruptive first
----------------------------------
1. Wait: it resolves itself when the old generation ends. The evidence prints since when both are there.
2. Cap the application's role at what one and a half generations need, so that other tenants keep their slots:
   `ALTER ROLE app CONNECTION LIMIT n`.
3. Make the pools small enough that twice their sum fits below `max_connections`.
4. End the sessions of an old generation that does not shrink.
5. For good: close the pool on SIGTERM, lower the surge of the rollout, or put PgBouncer in front.

Often mistaken for
------------------
Abandoned pools (the same process or address, often more than two steps) · oversized pools (all clients began
together) · scaling up or a traffic spike (the older clients work without a pause, and are wanted) · crash loops
(many small generations).

Sources
-------
https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#max-surge
https://www.postgresql.org/docs/current/sql-alterrole.html
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
    began_at,
    comes_and_goes,
    described,
    families,
    family_of,
    generations,
    members,
    names_release,
    tracks_of,
)
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.series import Case, culprits, keys

CODE = "PGC110"
ORDER = 80
NEEDS = ({"sql", "states"},)


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of deploy-overlap."""

    min_share_ratio: float = setting(0.5, "two generations that hold less than half of the slots fill nothing")
    max_younger_age_s: float = setting(
        900, "a rollout is over after a quarter of an hour; later it is a second set of replicas"
    )


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find an application with an old and a young generation of clients."""
    ledger = case.ledger
    if ledger is None or not case.scarce or not ledger.ordinary_slots:
        return None
    for family, lives in families(case).items():
        people = sum(1 for m in lives if PEOPLE.search(m.track.session.application_name))
        if len(lives) < settings.min_share_ratio * ledger.ordinary_slots or people > len(lives) / 2:
            continue
        if comes_and_goes(case, family):
            continue
        parts = [p for p in members(lives) if len(p) > 1] or members(lives)
        pair = generations(parts)
        if pair is None or _overloaded(pair[0]):
            continue
        if case.now_at - began_at(pair[1]) <= settings.max_younger_age_s:
            return _finding(case, family, *pair)
    return None


def _finding(case: Case, family: Family, older: Sequence[Life], younger: Sequence[Life]) -> Finding:
    slots = case.ledger.ordinary_slots if case.ledger else 0
    tracks = tracks_of([*older, *younger])
    old_names, new_names = _names(older), _names(younger)
    renamed = not old_names & new_names and any(map(names_release, old_names | new_names))
    replaced = not _clients(older) & _clients(younger)
    old_used = sum(1 for m in older if m.late_uses)
    new_used = sum(1 for m in younger if m.late_uses)
    old_clients = {t.client for t in tracks_of(older)}
    ended = sum(1 for t in case.all_tracks if not t.alive and t.client in old_clients and family_of(t) == family)
    apart_s = began_at(younger) - began_at(older)
    sure = 0.82 if replaced and min(len(_clients(older)), len(_clients(younger))) > 1 else 0.76
    sure += 0.06 * renamed + 0.05 * (ended > 0 or old_used < new_used) - 0.1 * (case.window_s <= 0)
    role = sql_in([family[0]])
    return Finding(
        code=CODE,
        cause="deploy-overlap",
        severity=severity_of(case, len(tracks) / max(1, slots)),
        confidence=round(min(sure, 0.92), 2),
        summary=(
            f"two generations of {described(family)} hold {len(older)} + {len(younger)} of {slots} slots; "
            f"the younger began {case.now_at - began_at(younger):.0f} s ago"
        ),
        claims=keys(tracks),
        evidence=(
            Fact(fact="sessions of the older generation", value=len(older)),
            Fact(fact="sessions of the younger generation", value=len(younger)),
            Fact(
                fact="clients of the older and of the younger",
                value=f"{len(_clients(older))} and {len(_clients(younger))}",
            ),
            Fact(fact="seconds between the beginnings of the two", value=round(apart_s, 1)),
            Fact(fact="seconds since the younger began", value=round(case.now_at - began_at(younger), 1)),
            Fact(fact="application names, older and younger", value=f"{_list(old_names)} and {_list(new_names)}"),
            Fact(fact="sessions of the older generation that ended while we looked", value=ended),
        ),
        counter_evidence=(
            Fact(fact="sessions of the older generation used while we looked", value=old_used),
            Fact(fact="sessions of the younger generation used while we looked", value=new_used),
        ),
        culprits=culprits(tracks),
        remedies=(
            Advice(
                slug="limit-role-connections",
                difficulty="easy",
                disruption="none",
                command=f"ALTER ROLE {role} CONNECTION LIMIT {max(1, int(1.5 * len(older)))};",
                why="others keep their slots; otherwise wait, it ends with the old generation",
            ),
            Advice(
                slug="resize-pool",
                difficulty="easy",
                disruption="none",
                frees=max(0, len(tracks) - int(0.9 * slots)),
                command=f"sum of one generation's pools at most {max(1, int(0.45 * slots))} of {slots} slots",
                why="so that two generations fit side by side",
            ),
            Advice(
                slug="end-idle-sessions",
                difficulty="easy",
                disruption="ends-sessions",
                frees=len(older),
                command=(
                    "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                    f" AND state = 'idle' AND pid IN ({', '.join(str(t.session.pid) for t in tracks_of(older)[:60])});"
                ),
                why="only when the old generation does not shrink by itself",
            ),
            Advice(
                slug="deploy-pooler",
                difficulty="medium",
                disruption="none",
                command=pooler_ini(case, family[1]),
                why="both generations then share one pool",
            ),
            Advice(
                slug="fix-application-code",
                difficulty="medium",
                disruption="none",
                why="close the pool on SIGTERM; start fewer new processes before old ones leave",
            ),
        ),
    )


def _overloaded(older: Sequence[Life]) -> bool:
    """Whether the older clients work without a pause: then the younger ones came to help, not to replace them."""
    busy = sum(m.track.active_samples for m in older) / max(1, sum(m.track.samples for m in older))
    return busy >= 0.5


def _names(lives: Sequence[Life]) -> set[str]:
    return {m.track.session.application_name for m in lives}


def _clients(lives: Sequence[Life]) -> set[str]:
    return {m.track.client for m in lives}


def _list(names: set[str]) -> str:
    shown = sorted(n or "(empty)" for n in names)
    return ", ".join(shown[:3]) + (" ..." if len(shown) > 3 else "")


EXAMPLES = (
    Example(
        "one generation of four replicas",
        "quiet",
        lambda: snapshot(
            server(100),
            *(pool("shop", 23, client=f"10.0.0.{n}", idle_s=(0, 2), age_s=3600, used=True) for n in range(4)),
        ),
    ),
    Example(
        "eight replicas that were started one after another",
        "quiet",
        lambda: snapshot(
            server(100),
            *(pool("shop", 12, client=f"10.0.0.{n}", idle_s=(0, 2), age_s=600 - n, used=True) for n in range(8)),
        ),
    ),
    Example(
        "four replicas of yesterday and four of a minute ago",
        "fires",
        lambda: snapshot(
            server(100),
            *(pool("shop", 12, client=f"10.0.0.{n}", idle_s=40, age_s=86_000 + n) for n in range(4)),
            *(pool("shop", 12, client=f"10.0.1.{n}", idle_s=1, age_s=40 + n, used=True) for n in range(4)),
        ),
    ),
    Example(
        "after the old generation has left",
        "cleared",
        lambda: snapshot(
            server(100), *(pool("shop", 12, client=f"10.0.1.{n}", idle_s=1, age_s=120 + n, used=True) for n in range(4))
        ),
    ),
)
